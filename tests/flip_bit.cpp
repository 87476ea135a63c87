// Flips one bit of a file in place, in the N-th (from 0) of COUNT evenly spread bytes:
//   flip_bit FILE N COUNT
// Once more, and the file is as it was.

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  std::FILE* const file = argc == 4 ? std::fopen(argv[1], "r+b") : nullptr;
  if (file == nullptr || std::fseek(file, 0, SEEK_END) != 0) return 2;
  const long size = std::ftell(file), number = std::atol(argv[2]), count = std::atol(argv[3]);
  if (size <= 0 || number < 0 || number >= count) return 2;
  const long place = size * number / count;
  std::fseek(file, place, SEEK_SET);
  const int byte = std::fgetc(file);
  std::fseek(file, place, SEEK_SET);
  std::fputc(byte ^ 1 << number % 8, file);
  return std::fclose(file) == 0 ? 0 : 2;
}
