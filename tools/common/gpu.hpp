// Which engine a tool computes with: the processor, or with --gpu a GPU, if the program was built
// with the CUDA Toolkit.

#ifndef BERT4REC_TOOLS_GPU_HPP
#define BERT4REC_TOOLS_GPU_HPP

#include "common/cli.hpp"

#if defined(BERT4REC_WITH_CUDA)
#include "cuda/engine.hpp"
#endif

namespace gpu {

struct Choice {
  std::optional<int> device;  // none: the processor
  bool half_precision = false;

  void add_flags(cli::CommandLine& line) {
    line.optional("gpu", device, 0, "compute on GPU N, of one or more (0): the same bits");
    line.flag("fp16", half_precision,
              "with --gpu: products in half precision (BF16 or FP16), not the same bits");
  }

  bert4rec::EngineMaker maker() const {
    if (half_precision && !device) throw cli::UsageError("--fp16 needs --gpu");
    if (!device) return bert4rec::make_cpu_engine;
#if defined(BERT4REC_WITH_CUDA)
    return bert4rec::cuda_engine_maker(*device, half_precision);
#else
    bert4rec::fail(
        "--gpu: this program was built without the CUDA Toolkit and knows no GPU; leave the ",
        "flag out to compute on the processor, or build with cmake -DBERT4REC_CUDA=ON");
#endif
  }
};

// A line for somebody whose run goes on in another arithmetic; empty if it is the same.
inline std::string changed_arithmetic(const bert4rec::Trainer& trainer) {
  const std::string now = trainer.arithmetic();
  if (now == trainer.begun_in()) return "";
  return bert4rec::join("note: begun in ", trainer.begun_in(), ", goes on in ", now,
                        ": from here on the bits are others than they would have been\n");
}

}  // namespace gpu

#endif
