// The engine on a GPU, for a program that is linked with engine.cpp and kernels.cu (README.md):
//
//     bert4rec::Trainer(data, model, train, "output", bert4rec::make_cuda_engine).run();
//
// In float32 it gives the bits of the engine on the processor: the same losses, the same files.
#ifndef BERT4REC_CUDA_ENGINE_HPP
#define BERT4REC_CUDA_ENGINE_HPP

#include "bert4rec.hpp"

namespace bert4rec {

// An EngineMaker: on the first GPU of this machine. Throws where there is none.
std::unique_ptr<Engine> make_cuda_engine(const ModelConfig& model, const TrainConfig& train,
                                         Start start);

// On another one, counted from 0; and, if asked for, with products in half precision (BF16, or FP16
// before sm_80): faster, and no longer with the bits of the processor.
EngineMaker cuda_engine_maker(int device, bool half_precision = false);

// Ranks (chapter 16 of the header) that can also add up where the numbers are, on their GPUs. With
// any other Collective a step copies its message to the host and back.
class DeviceCollective : public Collective {
 public:
  // As sum(), of numbers[n] in the memory of this rank's GPU, which is the one in use: behind what
  // was started on `stream`, a cudaStream_t, before, and ahead of what will be.
  virtual void sum_on_device(float* numbers, std::size_t n, void* stream) = 0;
};

}  // namespace bert4rec

#endif
