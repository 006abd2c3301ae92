// Two kernels that are wrong on purpose: planted misaligned|shared|neither. The emulation has to notice both.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda_runtime.h"

namespace {

struct Args {
  const float* from;
  float* to;
  size_t shared_words;
};

__global__ void copy_kernel(Args a) {
  const uint4 word = *reinterpret_cast<const uint4*>(a.from + 4 * threadIdx.x);
  std::memcpy(a.to + 4 * threadIdx.x, &word, sizeof(word));
}

__global__ void shared_kernel(Args a) {
  FASTMETA_SHARED(raw);
  float* shared = reinterpret_cast<float*>(raw);
  shared[threadIdx.x] = a.from[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) a.to[0] = shared[a.shared_words];
}

template <class Kernel>
int launch(Kernel kernel, const Args& args, size_t shared_bytes) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = shared_bytes;
  return cudaLaunchKernelEx(&config, kernel, args) == cudaSuccess ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  alignas(16) static float from[4 * 32 + 4] = {}, to[4 * 32];
  const bool misaligned = std::strcmp(argv[1], "misaligned") == 0, shared = std::strcmp(argv[1], "shared") == 0;
  return launch(copy_kernel, Args{from + (misaligned ? 1 : 0), to, 0}, 0) |
         launch(shared_kernel, Args{from, to, shared ? 32u : 31u}, 32 * sizeof(float));
}
