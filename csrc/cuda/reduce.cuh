// The group of threads that owns a row: its sums and maxima, and softmax statistics that grow chunk by chunk.
//
// Every reduction ends with the same bits in every thread of the group: butterflies of commutative operations inside
// a warp, then one butterfly over the warps' results, which a cluster's warps read from the shared memory of all its
// blocks. So decisions taken on a reduced value are uniform in the group,
// and results repeat bitwise from run to run.
#pragma once

#include <cooperative_groups.h>

#include "launch.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FASTMETA_CLUSTERS 1
#else
#define FASTMETA_CLUSTERS 0
#endif

namespace fastmeta::cuda {

// ---------------------------------------------------------------------------------------------------------
// Group
// ---------------------------------------------------------------------------------------------------------

template <class A, class G>
class Group {
 public:
  static constexpr int kThreads = G::kThreads;
  static constexpr int kLanes = kThreads < 32 ? kThreads : 32;  // lanes of one warp that belong to the group
  static constexpr int kWarps = kThreads / kLanes;
  static constexpr int kBlockWarps = kWarps / G::kCluster;     // of them in one block
  static constexpr int kGathered = kWarps < 32 ? kWarps : 32;  // lanes that bring the warps' results together
  static constexpr int kMaxValues = 4;                         // values that one reduction takes
  static constexpr size_t kSharedBytes = kWarps == 1 ? 0 : 2 * kMaxValues * kBlockWarps * sizeof(A);
  static constexpr bool kCompiled = G::kCluster == 1 || FASTMETA_CLUSTERS;  // else a kernel has to return at once

  __device__ explicit Group(unsigned char* shared) : scratch_(reinterpret_cast<A*>(shared)) {}
  Group(const Group&) = delete;
  __device__ ~Group() {
    if constexpr (G::kCluster > 1) sync();  // others may be reading this block's shared memory still
  }

  __device__ static int64_t row() {
    if constexpr (G::kCluster > 1) return blockIdx.x / G::kCluster;
    return static_cast<int64_t>(blockIdx.x) * G::kRowsPerBlock + static_cast<int>(threadIdx.x) / kThreads;
  }
  __device__ static int rank() {
    if constexpr (G::kCluster > 1) return static_cast<int>(blockIdx.x % G::kCluster * G::kBlock + threadIdx.x);
    return static_cast<int>(threadIdx.x) % kThreads;
  }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ static bool leader() { return rank() == 0; }

  // The lanes that take part: groups of one warp may be at different places of the kernel, so each names itself only.
  __device__ static unsigned mask() { return (0xffffffffu >> (32 - kLanes)) << (threadIdx.x % 32 / kLanes * kLanes); }

  // Orders memory between the threads of the group.
  __device__ static void sync() {
    if constexpr (kWarps == 1) {
      __syncwarp(mask());
    } else if constexpr (G::kCluster == 1) {
      __syncthreads();
    } else {
#if FASTMETA_CLUSTERS
      cooperative_groups::this_cluster().sync();
#endif
    }
  }

  // One bit per lane of the group; the same in every warp of the group where `value` depends on the lane alone.
  __device__ static unsigned ballot(bool value) {
    const unsigned bits = __ballot_sync(mask(), value);
    return (bits & mask()) >> (threadIdx.x % 32 / kLanes * kLanes);
  }

  template <class... X>
  __device__ void sum(X&... x) {
    reduce([](A a, A b) { return a + b; }, x...);
  }
  template <class... X>
  __device__ void max(X&... x) {
    reduce([](A a, A b) { return fmax(a, b); }, x...);  // a NaN gives way, and is found in the sums
  }

 private:
  template <class Op, class... X>
  __device__ void reduce(Op op, X&... x) {
    static_assert(sizeof...(X) <= kMaxValues);
    butterfly<kLanes>(op, x...);
    if constexpr (kWarps > 1) {
      const int warp = static_cast<int>(threadIdx.x) / 32;
      A* here = scratch_ + half_ * (kMaxValues * kBlockWarps);
      if (lane() == 0) {
        int k = 0;
        ((here[k++ * kBlockWarps + warp] = x), ...);
      }
#ifndef FASTMETA_PLANT_RACE
      sync();
#else  // tests build without this barrier, or with too small a one, to see that they would notice
      if (G::kCluster > 1) __syncthreads();
#endif
      int k = 0;
      ((x = gather(op, here + k++ * kBlockWarps)), ...);
      butterfly<kGathered>(op, x...);
      // The two halves of the scratch alternate, so one barrier is enough: who writes this half again has passed the
      // barrier of the next reduction, and by then every thread has read this one.
      half_ ^= 1;
    }
  }

  // A lane's share of the warps' results: that of one warp, or of one in 32
  template <class Op>
  __device__ static A gather(Op op, A* here) {
    if constexpr (G::kCluster == 1) {
      static_assert(kWarps <= 32);
      return here[lane() % kWarps];
    } else {
      static_assert(kWarps < 32 || kWarps % 32 == 0);
      A x = of_warp(here, lane() % kWarps);
#pragma unroll
      for (int warp = 32; warp < kWarps; warp += 32) x = op(x, of_warp(here, warp + lane()));
      return x;
    }
  }

  __device__ static A of_warp(A* here, int warp) {
#if FASTMETA_CLUSTERS
    return *cooperative_groups::this_cluster().map_shared_rank(here + warp % kBlockWarps,
                                                               static_cast<unsigned>(warp / kBlockWarps));
#else
    return here[warp % kBlockWarps];
#endif
  }

  template <int kWidth, class Op, class... X>
  __device__ static void butterfly(Op op, X&... x) {
#pragma unroll
    for (int offset = kWidth / 2; offset > 0; offset /= 2) {
      ((x = op(x, __shfl_xor_sync(mask(), x, offset))), ...);
    }
  }

  A* scratch_;  // (2, kMaxValues, kBlockWarps)
  int half_ = 0;
};

// ---------------------------------------------------------------------------------------------------------
// Softmax statistics
// ---------------------------------------------------------------------------------------------------------

// Exponentials below a maximum m, e_k = exp(x_k - m). In float32 they are 2^(x_k L - up(m L)), L = log2 e, with m L
// rounded up once: one fused product and the hardware's 2^x, two instructions. A row of 16-bit labels is limited by
// arithmetic, not memory, and takes six exponentials per element. The product is exact before its one rounding, so that
// all e_k of a row carry the same factor 2^(m L - up(m L)); probabilities are quotients of them, and log_sum takes it
// out again. As assembly because __expf spends three more instructions on results below 2^-126, which are nothing
// beside the largest term.
//
// That factor is between 2^-64 and 1 for |m| < 2^29, and no sum overflows for it. From there on two different numbers
// are 32 apart or more, so that all columns below the maximum have probability 0; L shrinks with the exponent of m,
// which keeps them at 0 and the factor in bounds.
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr int kExponentBias = 127, kLargeExponent = kExponentBias + 28;

__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}
__device__ __forceinline__ int exponent_of(float m) { return static_cast<int>(float_to_bits(m) >> 23 & 0xffu); }
__device__ __forceinline__ float scale_for(float m) {  // L, or less for a large m
  const int exponent = exponent_of(m) > kLargeExponent ? exponent_of(m) : kLargeExponent;
  return kLog2E * bits_to_float(static_cast<uint32_t>(kExponentBias + kLargeExponent - exponent) << 23);
}
__device__ __forceinline__ float in_twos(float m) {  // up(m L): never contracted into the sum that takes it
#ifdef __CUDA_ARCH__
  return __fmul_ru(m, scale_for(m));
#else
  const float near = m * scale_for(m);
  return std::fma(m, scale_for(m), -near) > 0 ? std::nextafter(near, INFINITY) : near;
#endif
}

__device__ __forceinline__ float exp_below(float x, float m) {
  return power_of_two(std::fma(x, scale_for(m), -in_twos(m)));
}
__device__ __forceinline__ double exp_below(double x, double m) { return exp(x - m); }

// What moves a sum of exp_below(x_k, from) below another maximum
__device__ __forceinline__ float change_of_maximum(float from, float to) {
  const bool large = exponent_of(from) > kLargeExponent || exponent_of(to) > kLargeExponent;
  return large && from != to ? 0.0f : power_of_two(in_twos(from) - in_twos(to));
}
__device__ __forceinline__ double change_of_maximum(double from, double to) { return exp(from - to); }

// log sum_k exp(x_k - m) from the sum of exp_below(x_k, m)
__device__ __forceinline__ float log_sum(float sum, float m) {
  return std::log(sum) - kLn2 * std::fma(m, scale_for(m), -in_twos(m));
}
__device__ __forceinline__ double log_sum(double sum, double) { return std::log(sum); }

template <class A>
__device__ __forceinline__ constexpr A largest() {
  return sizeof(A) == 8 ? static_cast<A>(1.7976931348623157e308) : static_cast<A>(3.402823466e38f);
}
// m - x, finite for finite m: columns past the row hold x = -inf, and their probability 0 must not meet an infinity.
template <class A>
__device__ __forceinline__ A below(A m, A x) {
  return fmin(m - x, largest<A>());
}

// Sums over the columns seen so far, with exponentials below the largest x seen so far: e_k = exp(x_k - max).
// `max` starts at the lowest finite value, not at -inf, whose difference to itself is NaN.
template <class A>
struct SoftmaxSum {
  A max = -largest<A>(), sum = 0;  // sum_k e_k

  __device__ void raise(A m) {
    sum *= change_of_maximum(max, m);
    max = m;
  }
  __device__ A log() const { return log_sum(sum, max); }
  __device__ void add(A x) { sum += exp_below(x, max); }
};

template <class A>
struct SoftmaxDot {
  A max = -largest<A>(), sum = 0, dot = 0;  // sum_k e_k u_k

  __device__ void raise(A m) {
    const A f = change_of_maximum(max, m);
    sum *= f;
    dot *= f;
    max = m;
  }
  __device__ A log() const { return log_sum(sum, max); }
  __device__ void add(A x, A u) {
    const A e = exp_below(x, max);
    sum += e;
    dot += e * u;
  }
};

// p = softmax(l) with two sums of distances, none with a negative term:
//   own   = sum_k e_k (max - l_k)        entropy      = own / sum + log sum
//   other = sum_k e_k (shift - z_k)      <p, lse - z> = other / sum + log S,   shift the maximum of z
template <class A>
struct SoftmaxBelow {
  A max = -largest<A>(), sum = 0, own = 0, other = 0;

  __device__ A log() const { return log_sum(sum, max); }
  // new maximum m of l; `rise` is how far the shift of z went up
  __device__ void raise(A m, A rise) {
    const A f = change_of_maximum(max, m);
    own = f * (own + sum * below(m, max));
    other = f * (other + sum * rise);
    sum *= f;
    max = m;
  }
  __device__ A add(A l) {
    const A e = exp_below(l, max);
    sum += e;
    own += e * below(max, l);
    return e;
  }
};

}  // namespace fastmeta::cuda
