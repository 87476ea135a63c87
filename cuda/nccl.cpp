#include "cuda/nccl.hpp"

#include <nccl.h>

namespace bert4rec {

namespace {

// Every call of NCCL stands in check().
void check(ncclResult_t result, std::string_view what, std::size_t rank) {
  require(result == ncclSuccess, "NCCL: ", what, " of rank ", rank, ": ",
          ncclGetErrorString(result), "; NCCL_DEBUG=WARN in the environment says more");
}

}  // namespace

struct NcclRanks::Communicator {
  // Rank 0 draws an id, by which all find one another.
  explicit Communicator(Collective& ranks) {
    ncclUniqueId id{};
    std::string own;
    if (ranks.rank() == 0) {
      check(ncclGetUniqueId(&id), "the id", 0);
      own.assign(id.internal, sizeof(id.internal));
    }
    const std::string first = ranks.gather(own).front();
    require(first.size() == sizeof(id.internal), "rank 0 gave ", first.size(),
            " bytes as NCCL's id, expected ", sizeof(id.internal));
    std::memcpy(id.internal, first.data(), first.size());
    check(ncclCommInitRank(&handle, static_cast<int>(ranks.size()), id,
                           static_cast<int>(ranks.rank())),
          "the communicator", ranks.rank());
  }
  // If a rank has failed, the others do not come to the end that destroying would wait for.
  ~Communicator() {
    const bool failed = std::uncaught_exceptions() > 0;
    static_cast<void>(failed ? ncclCommAbort(handle) : ncclCommDestroy(handle));
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  ncclComm_t handle = nullptr;
};

NcclRanks::NcclRanks(Collective& others) : others_(others) {}
NcclRanks::~NcclRanks() = default;

void NcclRanks::sum_on_device(float* numbers, std::size_t n, void* stream) {
  if (!communicator_) communicator_ = std::make_unique<Communicator>(others_);
  check(ncclAllReduce(numbers, numbers, n, ncclFloat, ncclSum, communicator_->handle,
                      static_cast<cudaStream_t>(stream)),
        "a sum", rank());
}

}  // namespace bert4rec
