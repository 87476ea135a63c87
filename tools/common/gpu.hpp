// Which engine a tool computes with: the processor, or with --gpu a GPU, if the program was built
// with the CUDA Toolkit.

#ifndef BERT4REC_TOOLS_GPU_HPP
#define BERT4REC_TOOLS_GPU_HPP

#include <set>

#include "common/cli.hpp"

#if defined(BERT4REC_WITH_CUDA)
#include "cuda/engine.hpp"
#endif
#if defined(BERT4REC_WITH_NCCL)
#include "cuda/nccl.hpp"
#endif

namespace gpu {

// Of several ranks: which one this is of those on its machine, and which machine.
struct Seat {
  int number = 0;
  std::size_t machine = 0;
};

struct Choice {
  static constexpr int own = -1;  // --gpu without a number: by the seat

  std::optional<int> asked;  // none: the processor
  bool half_precision = false;
  Seat seat;

  int device() const { return *asked == own ? seat.number : *asked; }

  // What was asked for, as it is typed: "" or " --gpu", " --gpu 1 --fp16".
  std::string flags() const {
    if (!asked) return "";
    return bert4rec::join(" --gpu", *asked == own ? "" : bert4rec::join(" ", *asked),
                          half_precision ? " --fp16" : "");
  }

  void add_flags(cli::CommandLine& line) {
    line.optional(
        "gpu", asked, own,
        "compute on GPU N, of one or more (0; of several processes on a machine: each its "
        "own): the same bits");
    line.flag("fp16", half_precision,
              "with --gpu: products in half precision (BF16 or FP16), not the same bits");
  }

  // Throws where there is no such GPU, or no such kernels.
  void check(const bert4rec::TrainConfig& train) const {
    static_cast<void>(maker());
    if (!asked) static_cast<void>(bert4rec::detail::find_kernels<float>(train.kernels));
  }

  bert4rec::EngineMaker maker() const {
    if (half_precision && !asked) throw cli::UsageError("--fp16 needs --gpu");
    if (!asked) return bert4rec::make_cpu_engine;
#if defined(BERT4REC_WITH_CUDA)
    return bert4rec::cuda_engine_maker(device(), half_precision);
#else
    bert4rec::fail(
        "--gpu: this program was built without the CUDA Toolkit and knows no GPU; leave the ",
        "flag out to compute on the processor, or build with cmake -DBERT4REC_CUDA=ON");
#endif
  }
};

// The ranks as they add up between their GPUs, if this program can and each has one of its own;
// otherwise null: they do so as they are, on the host.
inline std::unique_ptr<bert4rec::Collective> between_gpus(bert4rec::Collective& ranks,
                                                          const Choice& choice) {
#if defined(BERT4REC_WITH_NCCL)
  const bool can = choice.asked.has_value();
#else
  const bool can = false;
#endif
  if (ranks.size() == 1) return nullptr;
  const auto all = ranks.gather(
      can ? bert4rec::join("GPU ", choice.device(), " of machine ", choice.seat.machine) : "");
  const std::set<std::string> different(all.begin(), all.end());
  if (different.size() < all.size() || different.contains("")) return nullptr;
#if defined(BERT4REC_WITH_NCCL)
  return std::make_unique<bert4rec::NcclRanks>(ranks);
#else
  return nullptr;
#endif
}

// A line for somebody whose run goes on in another arithmetic; empty if it is the same.
inline std::string changed_arithmetic(const bert4rec::Trainer& trainer) {
  const std::string now = trainer.arithmetic();
  if (now == trainer.begun_in()) return "";
  return bert4rec::join("note: begun in ", trainer.begun_in(), ", goes on in ", now,
                        ": from here on the bits are others than they would have been\n");
}

}  // namespace gpu

#endif
