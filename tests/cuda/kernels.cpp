// The kernels of the GPU, compiled as C++ with emulation.hpp in place of CUDA.
#include "../../cuda/kernels.cu"
