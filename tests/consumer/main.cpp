#include <bert4rec.hpp>
#include <iostream>

std::size_t parameters_elsewhere();

int main() {
  const std::size_t here = bert4rec::bert4rec_tensors({.num_items = 3000}).size();
  std::cout << BERT4REC_VERSION_STRING << " " << here << "\n";
  return here == 3171771 && parameters_elsewhere() == here ? 0 : 1;
}
