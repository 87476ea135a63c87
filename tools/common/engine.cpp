// The float engine and its kernels, compiled once for all tools and tests instead of in each.
#define BERT4REC_INSTANTIATE
#include "bert4rec.hpp"
