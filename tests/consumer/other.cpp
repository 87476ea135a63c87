#include <bert4rec.hpp>

std::size_t parameters_elsewhere() {
  const bert4rec::TensorTable table = bert4rec::bert4rec_tensors({.num_items = 3000});
  bert4rec::ThreadPool threads(2);
  return bert4rec::initial_parameters(table, 0.02, 42, threads).size();
}
