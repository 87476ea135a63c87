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

  void add_flag(cli::CommandLine& line) {
    line.optional("gpu", device, 0, "compute on GPU N, of one or more (0): the same bits");
  }

  bert4rec::EngineMaker maker() const {
    if (!device) return bert4rec::make_cpu_engine;
#if defined(BERT4REC_WITH_CUDA)
    return bert4rec::cuda_engine_maker(*device);
#else
    bert4rec::fail(
        "--gpu: this program was built without the CUDA Toolkit and knows no GPU; leave the ",
        "flag out to compute on the processor, or build with cmake -DBERT4REC_CUDA=ON");
#endif
  }
};

}  // namespace gpu

#endif
