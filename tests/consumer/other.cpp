#include <bert4rec.hpp>

std::size_t parameters_elsewhere() {
  bert4rec::CpuEngine<float> engine({.num_items = 3000}, {.threads = 1});
  return engine.table().size();
}
