// How kernels are launched: the geometry of a row, dispatch from run-time dtypes to types, and the error check.
//
// A row of C columns belongs to a *group* of threads, kThreads of them. Short rows share a warp, long ones get a block.
//
//   resident: the row is read once                      streamed: it is read again, chunk by chunk, pass by pass
//     C up to   threads  columns per thread               C up to   threads  columns per thread and chunk
//         128         4          32                           128         8          16
//         256         8          32                         4,096        32          16
//       1,024        32          32                        beyond       512          16
//       4,096       128          32                       float64       128           8
//      12,288       512          24
//      16,384   2 x 256          32
//      32,768   4 x 256          32
//      65,536   8 x 256          32
//
// The last three are thread block clusters, sm_90 and above, for the loss and the step of instance labels: each block
// keeps its part of the row, sums go through the shared memory of all of them (reduce.cuh). Other operations and
// devices keep to the upper lines. A multiprocessor has to hold several rows, of which one loads and stores while
// another computes; from 512 threads on these two operations keep in registers the logits alone for that.
// 4 threads: what each does once for the row is as much arithmetic as its columns are, and of the 32 columns of 8
// threads C = 100 would leave every fifth idle. 32 columns: the step keeps three operands, 96 registers. float64 has
// one generic geometry: it serves checks, not training.
//
// Few rows leave most of the card idle and take as long as one thread does: while the next wider group has room for all
// of them at once, a line of the left half serves up to a quarter of its columns. (Kernels of their own for them, with
// 8 columns for each thread and so a quarter of the code, were no faster on an H200.)
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "../kernels.h"
#include "../softmax_math.h"

// Dynamic shared memory under one name, so that an emulated block can bring its own.
#ifndef FASTMETA_SHARED
#define FASTMETA_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace fastmeta::cuda {

// ---------------------------------------------------------------------------------------------------------
// Geometry
// ---------------------------------------------------------------------------------------------------------

template <int kThreadsPerRow, int kColumnsPerThread, bool kIsResident>
struct Geometry {
  static constexpr int kThreads = kThreadsPerRow;
  static constexpr int kColumns = kColumnsPerThread;
  static constexpr bool kResident = kIsResident;
  static constexpr int kCluster = 1;  // blocks of a row
  static constexpr int kBlock = kThreads < 128 ? 128 : kThreads;
  static constexpr int kRowsPerBlock = kBlock / kThreads;
  static constexpr int kCapacity = kThreads * kColumns;
};

// A row for a cluster of blocks, 32 columns for each thread
template <int kBlocks, int kThreadsPerBlock>
struct ClusterGeometry : Geometry<kBlocks * kThreadsPerBlock, 32, true> {
  static constexpr int kCluster = kBlocks;
  static constexpr int kBlock = kThreadsPerBlock;
  static constexpr int kRowsPerBlock = 1;
};

using Streamed64 = Geometry<128, 8, false>;
using StreamedTiny = Geometry<8, 16, false>;
using StreamedShort = Geometry<32, 16, false>;
using StreamedLong = Geometry<512, 16, false>;

// Threads that a small batch spreads over: an H100 holds two of its blocks of 128 on each of 132 multiprocessors.
#ifndef FASTMETA_SPREAD
#define FASTMETA_SPREAD 32768
#endif

// Calls f(Geometry) for `rows` of C columns of T that are kept in registers where they fit. `lead` is how many columns
// a row may start past a boundary of its words: threads are laid out from that boundary (vector.cuh).
template <class T, class F>
void with_geometry(int64_t rows, int64_t C, int lead, F f) {
  if constexpr (sizeof(T) == 8) {
    f(Streamed64{});
  } else {
    const int64_t columns = C + lead;
    // up to `most` columns; fewer where the next wider group of `wider` threads has room for every row
    const auto suits = [&](int64_t most, int wider) {
      return columns <= (rows <= FASTMETA_SPREAD / wider ? most / 4 : most);
    };
    if (suits(128, 32)) return f(Geometry<4, 32, true>{});
    if (suits(256, 32)) return f(Geometry<8, 32, true>{});
    if (suits(1024, 128)) return f(Geometry<32, 32, true>{});
    if (suits(4096, 512)) return f(Geometry<128, 32, true>{});
    if (columns <= 12288) return f(Geometry<512, 24, true>{});
    f(StreamedLong{});
  }
}

// Long rows: true where f(Geometry) has launched them on clusters. f may decline.
template <class T, class F>
bool with_cluster_geometry(int64_t C, int lead, F f) {
  if constexpr (sizeof(T) < 8) {
    const int64_t columns = C + lead;
    if (columns <= 12288 || columns > 65536) return false;
    if (columns <= 16384) return f(ClusterGeometry<2, 256>{});
    if (columns <= 32768) return f(ClusterGeometry<4, 256>{});
    return f(ClusterGeometry<8, 256>{});
  } else {
    return false;
  }
}

// The same as with_geometry for bodies that keep no row.
template <class T, class F>
void with_streamed_geometry(int64_t C, F f) {
  if constexpr (sizeof(T) == 8) {
    f(Streamed64{});
  } else if (C <= 128) {
    f(StreamedTiny{});
  } else if (C <= 4096) {
    f(StreamedShort{});
  } else {
    f(StreamedLong{});
  }
}

// ---------------------------------------------------------------------------------------------------------
// Dtypes. Only the combinations that kernels.h allows are compiled.
// ---------------------------------------------------------------------------------------------------------

[[noreturn]] inline void unsupported(const char* what) {
  throw std::runtime_error(std::string("fastmeta: the CUDA kernels have no such dtype for ") + what +
                           "; the argument checks should have refused it");
}

template <class T>
struct Type {
  using type = T;
};

// f(Type<T>) for the dtype of the logits
template <class F>
void with_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(Type<double>{});
    case DType::kFloat32:
      return f(Type<float>{});
    case DType::kBFloat16:
      return f(Type<BFloat16>{});
    case DType::kFloat16:
      return f(Type<Float16>{});
  }
}

// f(Type<U>) for u: T or acc(T)
template <class T, class F>
void with_tangent_dtype(DType dtype, DType logits, F f) {
  if (dtype == logits) return f(Type<T>{});
  if constexpr (sizeof(T) == 2) {
    if (dtype == DType::kFloat32) return f(Type<float>{});
  }
  unsupported("u");
}

// f(Type<L>) for label rows and probs: T, acc(T), or bfloat16 where acc(T) is float32
template <class T, class F>
void with_label_dtype(DType dtype, DType logits, F f) {
  if (dtype == logits) return f(Type<T>{});
  if constexpr (sizeof(T) == 2) {
    if (dtype == DType::kFloat32) return f(Type<float>{});
  }
  if constexpr (sizeof(T) == 4 || std::is_same_v<T, Float16>) {
    if (dtype == DType::kBFloat16) return f(Type<BFloat16>{});
  }
  unsupported("label rows");
}

// ---------------------------------------------------------------------------------------------------------
// Launch
// ---------------------------------------------------------------------------------------------------------

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // it is raised here: left behind, it would be taken for the next launch's of somebody else
    throw std::runtime_error(std::string("fastmeta: CUDA error in ") + what + ": " + cudaGetErrorString(error));
  }
}

// What a launch of one group per row asks for; `blocks` of them, in clusters where the geometry has any.
template <class G>
struct LaunchConfig : cudaLaunchConfig_t {
  LaunchConfig(int64_t rows, int64_t C, size_t shared_bytes, void* on, const char* name) : cudaLaunchConfig_t{} {
    if (C > INT_MAX / 2) throw std::runtime_error(std::string("fastmeta: ") + name + " takes at most 2^30 classes");
    const int64_t blocks = (rows + G::kRowsPerBlock - 1) / G::kRowsPerBlock * G::kCluster;
    if (blocks > INT_MAX)
      throw std::runtime_error(std::string("fastmeta: ") + name + " got too many rows for one launch");
    gridDim = dim3(static_cast<unsigned>(blocks));
    blockDim = dim3(G::kBlock);
    dynamicSmemBytes = shared_bytes;
    stream = static_cast<cudaStream_t>(on);
    if (G::kCluster > 1) {
      cluster_.id = cudaLaunchAttributeClusterDimension;
      cluster_.val.clusterDim.x = G::kCluster;
      cluster_.val.clusterDim.y = cluster_.val.clusterDim.z = 1;
      attrs = &cluster_;
      numAttrs = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;

 private:
  cudaLaunchAttribute cluster_ = {};
};

// Shared memory beyond 48 KiB has to be asked for, once for each kernel and device.
inline void allow_shared(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  if (bytes <= 48 * 1024) return;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.contains({kernel, device})) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "asking for shared memory");
  allowed.insert({kernel, device});
}

// Launches kernel(args) with one group per row, on `stream`; throws where the launch fails. A launch of no rows is
// none.
template <class G, class Args>
void launch(void (*kernel)(Args), const Args& args, int64_t rows, int64_t C, size_t shared_bytes, void* stream,
            const char* name) {
  if (rows == 0) return;
  const LaunchConfig<G> config(rows, C, shared_bytes, stream, name);
  allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  check(cudaLaunchKernelEx(&config, kernel, args), name);
}

// Whether the current device can run the kernel in clusters: its hardware, and the machine code that it has of it (code
// compiled below sm_90 is empty). Asked once for each kernel and device.
inline bool runs_in_clusters(const void* kernel, const cudaLaunchConfig_t& config) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, bool> known;
  int device = 0, major = 0, clusters = 0;
  check(cudaGetDevice(&device), "asking for the device");
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({kernel, device});
  if (found != known.end()) return found->second;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the architecture");
  cudaFuncAttributes code = {};
  if (major >= 9) check(cudaFuncGetAttributes(&code, kernel), "asking for the compiled architecture");
  if (code.ptxVersion >= 90 && cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess)
    cudaGetLastError();  // a refusal is an answer, not an error to leave behind
  return known[{kernel, device}] = clusters > 0;
}

// The same as launch with one cluster per row, or false where the device cannot.
template <class G, class Args>
bool launch_in_clusters(void (*kernel)(Args), const Args& args, int64_t rows, int64_t C, size_t shared_bytes,
                        void* stream, const char* name) {
  if (rows == 0) return true;
  const LaunchConfig<G> config(rows, C, shared_bytes, stream, name);
  allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  if (!runs_in_clusters(reinterpret_cast<const void*>(kernel), config)) return false;
  check(cudaLaunchKernelEx(&config, kernel, args), name);
  return true;
}

// ---------------------------------------------------------------------------------------------------------
// Reading arguments in a kernel
// ---------------------------------------------------------------------------------------------------------

template <class S>
__device__ __forceinline__ const S* row_of(ConstMatrix m, int64_t i) {
  return static_cast<const S*>(m.data) + i * m.row_stride;  // 64-bit: a label table passes 2^31 elements
}
template <class S>
__device__ __forceinline__ S* row_of(Matrix m, int64_t i) {
  return static_cast<S*>(m.data) + i * m.row_stride;
}

template <class A>
__device__ __forceinline__ A value_at(ConstVector v, int64_t i) {
  return static_cast<const A*>(v.data)[i * v.stride];
}
// weight_i, 1 where there are no weights
template <class A>
__device__ __forceinline__ A weight_at(ConstVector weight, int64_t i) {
  return weight.data == nullptr ? A(1) : value_at<A>(weight, i);
}
__device__ __forceinline__ int64_t index_at(IndexVector index, int64_t i) { return index.data[i * index.stride]; }

__device__ __forceinline__ double value_of(Scalar s) {
  if (s.device == nullptr) return s.host;
  return s.dtype == DType::kFloat64 ? *static_cast<const double*>(s.device) : *static_cast<const float*>(s.device);
}
__device__ __forceinline__ int64_t value_of(const Counter& c) { return c.device == nullptr ? c.host : *c.device; }

}  // namespace fastmeta::cuda
