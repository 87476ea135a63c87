// What cuda/nccl.cpp calls of NCCL, between threads of one program on the emulated device.

#ifndef BERT4REC_TESTS_CUDA_NCCL_H
#define BERT4REC_TESTS_CUDA_NCCL_H

#include <atomic>

#include "emulation.hpp"
#include "ranks.hpp"

// clang-format off
enum ncclResult_t {
  ncclSuccess = 0, ncclInvalidArgument = 4, ncclInvalidUsage = 5, ncclRemoteError = 6
};
enum ncclDataType_t { ncclFloat = 7 };
enum ncclRedOp_t { ncclSum = 0 };
struct ncclUniqueId { char internal[128]; };
// clang-format on
struct ncclComm {
  std::shared_ptr<Meeting> meeting;
  std::size_t rank;
};
using ncclComm_t = ncclComm*;

namespace emulation {

// Meetings by the id that their first rank drew.
class NcclWorld {
 public:
  ncclUniqueId draw() {
    const std::lock_guard lock(mutex_);
    ncclUniqueId id{};
    std::snprintf(id.internal, sizeof id.internal, "meeting %zu", ++drawn_);
    return id;
  }
  std::shared_ptr<Meeting> meeting(const ncclUniqueId& id, std::size_t size) {
    const std::lock_guard lock(mutex_);
    std::weak_ptr<Meeting>& known = meetings_[id.internal];
    std::shared_ptr<Meeting> found = known.lock();
    if (!found) known = found = std::make_shared<Meeting>(size);
    return found->size() == size ? found : nullptr;
  }

  std::atomic<std::size_t> sums = 0, destroyed = 0, aborted = 0;  // for tests
  std::atomic<bool> sums_fail = false;

 private:
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<Meeting>> meetings_;
  std::size_t drawn_ = 0;
};

inline NcclWorld nccl;

}  // namespace emulation

inline const char* ncclGetErrorString(ncclResult_t result) {
  if (result == ncclRemoteError) return "remote error";
  return result == ncclInvalidUsage ? "invalid usage" : "invalid argument";
}

inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  *id = emulation::nccl.draw();
  return ncclSuccess;
}

inline ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
  const auto meeting = emulation::nccl.meeting(id, static_cast<std::size_t>(size));
  if (!meeting || rank < 0 || rank >= size) return ncclInvalidUsage;
  meeting->exchange(static_cast<std::size_t>(rank), "");
  *comm = new ncclComm{meeting, static_cast<std::size_t>(rank)};
  return ncclSuccess;
}

inline ncclResult_t ncclAllReduce(const void* from, void* to, std::size_t n, ncclDataType_t type,
                                  ncclRedOp_t operation, ncclComm_t comm, cudaStream_t stream) {
  const bool known = type == ncclFloat && operation == ncclSum && from == to && stream != nullptr;
  if (!known || emulation::device_memory.room(to) < n * sizeof(float)) return ncclInvalidArgument;
  if (emulation::nccl.sums_fail) return ncclInvalidUsage;
  ++emulation::nccl.sums;
  try {
    comm->meeting->sum(comm->rank, {static_cast<float*>(to), n});
  } catch (const bert4rec::Error&) {
    return ncclRemoteError;
  }
  return ncclSuccess;
}

inline ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  ++emulation::nccl.destroyed;
  delete comm;
  return ncclSuccess;
}

inline ncclResult_t ncclCommAbort(ncclComm_t comm) {
  ++emulation::nccl.aborted;
  comm->meeting->leave(comm->rank, "it was aborted");
  delete comm;
  return ncclSuccess;
}

#endif  // BERT4REC_TESTS_CUDA_NCCL_H
