// Ranks that add up between their GPUs, by NCCL, for a program that is linked with nccl.cpp and
// NCCL (README.md):
//
//     bert4rec::NcclRanks direct(ranks);  // `ranks`: any Collective, such as that of MPI
//     bert4rec::Trainer(data, model, train, "output", make, direct).run();
#ifndef BERT4REC_CUDA_NCCL_HPP
#define BERT4REC_CUDA_NCCL_HPP

#include "cuda/engine.hpp"

namespace bert4rec {

// The gradients of a step go by NCCL; all else, and how ranks find one another, by the others. Each
// rank must have a GPU of its own. All ranks receive the same bits. Between two ranks these are
// those of any other way; of more the order of a sum is NCCL's, and the same each time as long as
// it chooses the same algorithm, which NCCL_ALGO=Ring in the environment makes sure of.
class NcclRanks : public DeviceCollective {
 public:
  explicit NcclRanks(Collective& others);  // which outlive this
  ~NcclRanks() override;
  std::size_t rank() const override { return others_.rank(); }
  std::size_t size() const override { return others_.size(); }
  void sum(std::span<float> numbers) override { others_.sum(numbers); }
  std::vector<std::string> gather(std::string_view own) override { return others_.gather(own); }

  // The first call begins with the meeting of all ranks, each on the GPU that it has in use then.
  void sum_on_device(float* numbers, std::size_t n, void* stream) override;

 private:
  struct Communicator;  // of nccl.cpp
  Collective& others_;
  std::unique_ptr<Communicator> communicator_;
};

}  // namespace bert4rec

#endif
