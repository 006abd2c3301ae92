// CUDA thread blocks on the host: stands in for <cuda_runtime.h> when csrc/cuda/*.cu are compiled as C++.
//
// Every CUDA thread is an OS thread, and all blocks of a launch run at once (in waves of kWave threads), so that
// ThreadSanitizer sees races inside a block and between blocks. What orders memory on the device orders it here, and
// nothing else does:
//
//   __syncthreads, __syncwarp      a barrier with acquire and release, as is a cluster's (cooperative_groups.h)
//   shuffles, ballots              values are exchanged by *relaxed* atomics: the lanes meet, but their other memory is
//                                  not ordered, so a missing __syncwarp is a data race here as well
//   waking and awaiting workers    the launch and the end of a kernel
//
// A block's shared memory is gone as soon as its last thread has left: a cluster's other blocks must not read it then.
//
// A word of 8 or 16 bytes is a type that has to stand on its boundary, and shared memory is as long as the launch asked
// for: the sanitizers of alignment and of addresses see what leaves either.
//
// Limits: a launch is synchronous, streams are ignored, and a thread names the same mask in all its warp operations.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#define CUDART_VERSION 13000
#define __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define FASTMETA_SHARED(name) unsigned char* name = emulation::self.block->shared.get()

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};

// ---------------------------------------------------------------------------------------------------------
// Blocks, warps, threads
// ---------------------------------------------------------------------------------------------------------

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kWave = 1024;  // threads that run at once

// Sleeping and waking by the system's own futex: the waiting in the standard library synchronises through memory that
// ThreadSanitizer follows, and would hide races.
inline void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
inline void wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// The lanes of one mask: they meet by counting arrivals, and leave values for each other in two alternating slots.
struct Lanes {
  std::atomic<uint32_t> arrived{0};
  std::atomic<uint64_t> value[2][32] = {};
};

struct Warp {
  Lanes lanes[32];  // by first lane of the mask
};

struct Block;

struct Cluster {
  explicit Cluster(unsigned threads) : barrier(threads) {}
  std::barrier<> barrier;
  std::vector<Block*> blocks;
};

struct Block {
  Block(unsigned threads, size_t shared_bytes, Cluster* cluster)
      : cluster(cluster),
        barrier(threads),
        inside(threads),
        warps(threads / 32),
        shared(new unsigned char[shared_bytes]) {}
  Cluster* cluster;
  std::barrier<> barrier;
  std::atomic<unsigned> inside;  // threads that have not left
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> shared;  // exactly as long as the launch asked for: AddressSanitizer sees the end
};

struct Thread {
  Block* block = nullptr;
  uint32_t turn = 0;
  std::optional<std::barrier<>::arrival_token> arrived = {};  // at the cluster's barrier, which is waited for later

  Lanes& lanes(unsigned mask) const { return block->warps[threadIdx.x / 32].lanes[std::countr_zero(mask)]; }

  // Waits until every lane of the mask has come here once more.
  void meet(unsigned mask, std::memory_order arrive, std::memory_order leave) {
    std::atomic<uint32_t>& arrived = lanes(mask).arrived;
    const uint32_t all = ++turn * static_cast<uint32_t>(std::popcount(mask));
    if (arrived.fetch_add(1, arrive) + 1 == all) wake(arrived);
    for (uint32_t now; static_cast<int32_t>((now = arrived.load(leave)) - all) < 0;) sleep_while(arrived, now);
  }

  // Leaves `bits` for the other lanes and returns what all of them left. Two slots alternate: who writes one again has
  // met the others since, and each of them had read it before it came. The fences order the values for the processor;
  // ThreadSanitizer does not follow fences, and so takes no order between the lanes' other memory from them.
  const std::atomic<uint64_t>* exchange(unsigned mask, uint64_t bits) {
    std::atomic<uint64_t>* slot = lanes(mask).value[turn % 2];
    slot[threadIdx.x % 32].store(bits, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    meet(mask, std::memory_order_relaxed, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    return slot;
  }
};

inline thread_local Thread self;

// A thread that is kept between launches: under ThreadSanitizer making one takes a millisecond.
struct Worker {
  std::function<void()> work;  // empty: leave
  std::atomic<uint32_t> orders{0}, done{0};
  std::thread thread{[this] {
    for (uint32_t taken = 0;;) {
      while (orders.load(std::memory_order_acquire) == taken) sleep_while(orders, taken);
      if (!work) return;
      work();
      done.store(++taken, std::memory_order_release);
      wake(done);
    }
  }};

  void start(std::function<void()> next) {
    work = std::move(next);
    orders.fetch_add(1, std::memory_order_release);
    wake(orders);
  }
  void finish() {
    for (uint32_t now; (now = done.load(std::memory_order_acquire)) != orders;) sleep_while(done, now);
  }
  ~Worker() {
    start(nullptr);
    thread.join();
  }
};

template <class Body>
void run(dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes, const Body& body) {
  static std::deque<Worker> workers;
  const unsigned per_wave = std::max(1u, kWave / (block.x * cluster)) * cluster;
  for (unsigned first = 0; first < grid.x; first += per_wave) {
    const unsigned blocks = std::min(per_wave, grid.x - first), threads = blocks * block.x;
    while (workers.size() < threads) workers.emplace_back();
    std::deque<Cluster> clusters;
    std::deque<Block> here;
    for (unsigned b = 0; b < blocks; ++b) {  // all of them before the first thread runs: clusters look at each other
      if (b % cluster == 0) clusters.emplace_back(cluster * block.x);
      clusters.back().blocks.push_back(&here.emplace_back(block.x, shared_bytes, &clusters.back()));
    }
    for (unsigned w = 0; w < threads; ++w) {
      workers[w].start([=, &body, block_of = &here[w / block.x]] {
        self = {block_of};
        threadIdx = dim3(w % block.x);
        blockIdx = dim3(first + w / block.x);
        blockDim = block;
        gridDim = grid;
        body();
        block_of->barrier.arrive_and_drop();  // __syncthreads waits for the threads that have not left
        block_of->cluster->barrier.arrive_and_drop();
        if (block_of->inside.fetch_sub(1) == 1) block_of->shared.reset();
      });
    }
    for (unsigned w = 0; w < threads; ++w) workers[w].finish();
  }
}

}  // namespace emulation

// ---------------------------------------------------------------------------------------------------------
// Device functions
// ---------------------------------------------------------------------------------------------------------

inline void __syncthreads() { emulation::self.block->barrier.arrive_and_wait(); }

inline void __syncwarp(unsigned mask) {
  emulation::self.meet(mask, std::memory_order_release, std::memory_order_acquire);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const int source = static_cast<int>(threadIdx.x % 32) ^ offset;
  bits = emulation::self.exchange(mask, bits)[source].load(std::memory_order_relaxed);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned __ballot_sync(unsigned mask, bool value) {
  const auto* slot = emulation::self.exchange(mask, value);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0 && slot[lane].load(std::memory_order_relaxed) != 0) bits |= 1u << lane;
  }
  return bits;
}

inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }

using std::exp, std::fmax, std::fmin, std::log;

// ---------------------------------------------------------------------------------------------------------
// Host functions
// ---------------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
using cudaStream_t = void*;

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
struct cudaFuncAttributes {
  int ptxVersion;
};

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "bad launch"; }

// An sm_90, or what EMULATED_CAPABILITY names
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  const char* given = std::getenv("EMULATED_CAPABILITY");
  *value = given == nullptr ? 9 : std::atoi(given);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* code, const void*) {
  code->ptxVersion = 90;
  return cudaSuccess;
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= 99 * 1024 ? cudaSuccess : cudaErrorInvalidValue;  // what every supported architecture allows
}
inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = 1;
  return cudaSuccess;
}
inline cudaError_t last_error = cudaSuccess;
inline cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

template <class... Formal, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Formal...), Actual&&... args) {
  const unsigned cluster = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
  if (std::getenv("EMULATED_FAILURE") != nullptr || config->gridDim.x == 0 || config->blockDim.x == 0 ||
      config->blockDim.x > 1024 || config->blockDim.x % 32 != 0 || config->gridDim.x % cluster != 0) {
    return last_error = cudaErrorInvalidConfiguration;
  }
  emulation::run(config->gridDim, config->blockDim, cluster, config->dynamicSmemBytes, [&] { kernel(args...); });
  return cudaSuccess;
}
