// train_model on several processes that MPI starts, on one machine or, with --host, on many:
//
//     mpirun -q -n 2 --bind-to none build/train_model_mpi --data data/demo --output output
//
// Each reads the same data and takes its rows of every batch; rank 0 writes the files and prints.
// (-q: mpirun adds nothing to the line that says why a rank failed. --bind-to none: a process may
// use all cores of its machine; where several share one, --threads says how many each takes. With
// --gpu each takes the GPU of its number among those of its machine, and where NCCL was found
// gradients go from one to the other.)

#include <mpi.h>

#include "common/training.hpp"

namespace {

constexpr std::size_t most = std::numeric_limits<int>::max();  // MPI counts in int

struct MpiRanks : bert4rec::Collective {
  std::size_t rank() const override { return answer(MPI_Comm_rank); }
  std::size_t size() const override { return answer(MPI_Comm_size); }
  void sum(std::span<float> numbers) override {
    for (std::size_t n = 0; !numbers.empty(); numbers = numbers.subspan(n)) {
      n = std::min(numbers.size(), most);
      MPI_Allreduce(MPI_IN_PLACE, numbers.data(), static_cast<int>(n), MPI_FLOAT, MPI_SUM,
                    MPI_COMM_WORLD);
    }
  }
  std::vector<std::string> gather(std::string_view own) override {
    std::vector<std::string> all(size());
    for (std::size_t from = 0; from < all.size(); ++from) {
      std::uint64_t length = own.size();
      MPI_Bcast(&length, 1, MPI_UINT64_T, static_cast<int>(from), MPI_COMM_WORLD);
      cli::require(length <= most, "rank ", from, " gives ", length, " bytes, more than ", most);
      if (from == rank()) all[from] = own;
      all[from].resize(length);
      MPI_Bcast(all[from].data(), static_cast<int>(length), MPI_BYTE, static_cast<int>(from),
                MPI_COMM_WORLD);
    }
    return all;
  }
  static std::size_t answer(int (*ask)(MPI_Comm, int*)) {
    int number = 0;
    ask(MPI_COMM_WORLD, &number);
    return static_cast<std::size_t>(number);
  }
};

// By the first rank of its machine, which gives that its name.
gpu::Seat seat() {
  MPI_Comm here = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here);
  gpu::Seat seat;
  MPI_Comm_rank(here, &seat.number);
  std::uint64_t first = MpiRanks::answer(MPI_Comm_rank);
  MPI_Bcast(&first, 1, MPI_UINT64_T, 0, here);
  MPI_Comm_free(&here);
  seat.machine = first;
  return seat;
}

int train(int argc, char** argv, MpiRanks& ranks) {
  try {
    cli::require(ranks.size() > 1, "a single rank: train_model is for that; start more, with the ",
                 "mpirun of the MPI that this program was built with");
    return training::run(argc, argv, ranks, seat());
  } catch (...) {
    // Where all fail alike, rank 0 says why and meanwhile ends the others.
    if (ranks.rank() > 0) std::this_thread::sleep_for(std::chrono::seconds(3));
    throw;
  }
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  std::atexit([] { MPI_Finalize(); });
  MpiRanks ranks;
  if (ranks.rank() > 0 && std::freopen("/dev/null", "w", stdout) == nullptr) return 1;
  const int code = cli::run("train_model_mpi", argc, argv,
                            [&](int count, char** words) { return train(count, words, ranks); });
  if (code == 1 || code == 2) MPI_Abort(MPI_COMM_WORLD, code);
  return code;
}
