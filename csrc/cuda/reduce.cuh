// The group of threads that owns a row: its sums and maxima, and softmax statistics that grow chunk by chunk.
//
// Every reduction ends with the same bits in every thread of the group: butterflies of commutative operations inside
// a warp, then one butterfly over the results of the block's warps, then one over those of the cluster's blocks. So
// decisions taken on a reduced value are uniform in the group, and results repeat bitwise from run to run.
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
  static constexpr int kLanes = kThreads < 32 ? kThreads : 32;       // lanes of one warp that belong to the group
  static constexpr int kWarps = kThreads / kLanes / G::kCluster;     // of one block
  static constexpr int kMaxValues = 6;                               // values that one reduction takes
  static constexpr int kSlots = kWarps + (G::kCluster > 1 ? 1 : 0);  // results that wait: the warps', and the block's
  static constexpr size_t kSharedBytes = kSlots == 1 ? 0 : 2 * kMaxValues * kSlots * sizeof(A);
  static constexpr bool kCompiled = G::kCluster == 1 || FASTMETA_CLUSTERS;  // else a kernel has to return at once
  static_assert(kWarps <= 32);

  __device__ explicit Group(unsigned char* shared) : scratch_(reinterpret_cast<A*>(shared)) {}
  Group(const Group&) = delete;
  // Others may be reading this block's shared memory until they have left, too.
  __device__ ~Group() {
#if FASTMETA_CLUSTERS
    if constexpr (G::kCluster > 1) {
      leave();
      cooperative_groups::this_cluster().barrier_wait();
    }
#endif
  }
  // After its last reduction: a block that says so early does not wait for the others at the kernel's end.
  __device__ void leave() {
#if FASTMETA_CLUSTERS
    if constexpr (G::kCluster > 1) {
      if (!left_) cooperative_groups::this_cluster().barrier_arrive();
      left_ = true;
    }
#endif
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
    if constexpr (G::kCluster > 1) {
      sync_cluster();
    } else {
      sync_block();
    }
  }

  // One bit per lane of the group; the same in every warp of the group where `value` depends on the lane alone.
  __device__ static unsigned ballot(bool value) {
    const unsigned bits = __ballot_sync(mask(), value);
    return (bits & mask()) >> (threadIdx.x % 32 / kLanes * kLanes);
  }

  template <class... X>
  __device__ void sum(X&... x) {
    reduce([](auto lanes, auto&... y) { butterfly<lanes()>(plus, y...); }, x...);
  }
  template <class... X>
  __device__ void max(X&... x) {
    reduce([](auto lanes, auto&... y) { butterfly<lanes()>(larger, y...); }, x...);
  }

  // Sums below maxima, brought together in one reduction where max and sum would be two: raise(m...) moves the sums of
  // a thread below the larger maxima m.
  template <class Raise, class... X>
  __device__ void sum_below(A& max, Raise raise, X&... sums) {
    reduce(
        [&](auto lanes, auto&, auto&... y) {
          A m = max;
          butterfly<lanes()>(larger, m);
          raise(m);
          butterfly<lanes()>(plus, y...);
        },
        max, sums...);
  }
  template <class Raise, class... X>
  __device__ void sum_below(A& max, A& other, Raise raise, X&... sums) {
    reduce(
        [&](auto lanes, auto&, auto&, auto&... y) {
          A m = max, k = other;
          butterfly<lanes()>(larger, m, k);
          raise(m, k);
          butterfly<lanes()>(plus, y...);
        },
        max, other, sums...);
  }

 private:
  template <int kValue>
  struct Constant {
    __device__ constexpr int operator()() const { return kValue; }
  };
  __device__ static A plus(A a, A b) { return a + b; }
  __device__ static A larger(A a, A b) { return fmax(a, b); }  // a NaN gives way, and is found in the sums

  // over(lanes, x...) reduces x over so many neighbouring lanes
  template <class Over, class... X>
  __device__ void reduce(Over over, X&... x) {
    static_assert(sizeof...(X) <= kMaxValues);
    over(Constant<kLanes>(), x...);
    if constexpr (kSlots > 1) {
      // The two halves of the scratch alternate, so one barrier is enough: who writes this half again has passed the
      // barrier of the next reduction, and by then every thread has read this one.
      A* half = scratch_ + half_ * (kMaxValues * kSlots);
      half_ ^= 1;
      if constexpr (kWarps > 1) {
        put(half, static_cast<int>(threadIdx.x) / 32, lane() == 0, x...);
#ifndef FASTMETA_PLANT_RACE  // tests build without this barrier, or with too small a one, to see that they would notice
        sync_block();
#else
        if (G::kCluster > 1) sync_block();
#endif
        take(half + lane() % kWarps, x...);
        over(Constant<kWarps>(), x...);
      }
      if constexpr (G::kCluster > 1) {
        put(half, kWarps, threadIdx.x == 0, x...);
#ifndef FASTMETA_PLANT_RACE
        sync_cluster();
#else
        sync_block();
#endif
        take(of_block(half + kWarps, lane() % G::kCluster), x...);
        over(Constant<G::kCluster>(), x...);
      }
    }
  }

  template <class... X>
  __device__ static void put(A* half, int slot, bool mine, const X&... x) {
    if (!mine) return;
    int k = 0;
    ((half[k++ * kSlots + slot] = x), ...);
  }
  template <class... X>
  __device__ static void take(const A* slot, X&... x) {
    int k = 0;
    ((x = slot[k++ * kSlots]), ...);
  }

  // The same place in the shared memory of block `rank` of the cluster
  __device__ static A* of_block(A* here, int rank) {
#if FASTMETA_CLUSTERS
    return cooperative_groups::this_cluster().map_shared_rank(here, static_cast<unsigned>(rank));
#else
    return here;
#endif
  }

  __device__ static void sync_block() {
    if constexpr (kWarps == 1) {
      __syncwarp(mask());
    } else {
      __syncthreads();
    }
  }
  __device__ static void sync_cluster() {
#if FASTMETA_CLUSTERS
    cooperative_groups::this_cluster().sync();
#endif
  }

  template <int kWidth, class Op, class... X>
  __device__ static void butterfly(Op op, X&... x) {
#pragma unroll
    for (int offset = kWidth / 2; offset > 0; offset /= 2) {
      ((x = op(x, __shfl_xor_sync(mask(), x, offset))), ...);
    }
  }

  A* scratch_;  // (2, kMaxValues, kSlots)
  int half_ = 0;
  bool left_ = false;
};

// ---------------------------------------------------------------------------------------------------------
// Softmax statistics
// ---------------------------------------------------------------------------------------------------------

// Exponentials below a maximum m, e_k = exp(x_k - m). In float32 they are 2^(x_k L - M), L = log2 e, M the next integer
// from m L on: one fused product and the hardware's 2^x, two instructions. Rows of 16 bits are limited by arithmetic,
// not memory. The product is exact before its one rounding, so that all e_k of a row carry the same factor 2^(m L - M);
// probabilities are quotients of them, and log_sum takes it out again. Integers, because what moves e_k from one
// maximum to another is an exact power of two then, and threads may begin before the row's maximum is known. As
// assembly because
// __expf spends three more instructions on results below 2^-126, which are nothing beside the largest term.
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
__device__ __forceinline__ float in_twos(float m) {  // M: never contracted into the sum that takes it
#ifdef __CUDA_ARCH__
  return ceilf(__fmul_ru(m, scale_for(m)));
#else
  const float near = m * scale_for(m);
  return std::ceil(std::fma(m, scale_for(m), -near) > 0 ? std::nextafter(near, INFINITY) : near);
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
// m - x, finite for finite m: a probability of 0 must not meet an infinity.
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
  __device__ A add(A x) {
    const A e = exp_below(x, max);
    sum += e;
    return e;
  }
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

// (m - x) / 2, finite for all finite numbers, in one instruction
template <class A>
__device__ __forceinline__ A half_below(A m, A x) {
  return std::fma(x, A(-0.5), m * A(0.5));
}

// p = softmax(l) with two sums of half distances, none with a negative term:
//   own   = sum_k e_k (max - l_k) / 2        entropy      = 2 own / sum + log sum
//   other = sum_k e_k (shift - z_k) / 2      <p, lse - z> = 2 other / sum + log S,   shift the maximum of z
// A column at -inf makes them infinite or NaN, though its e_k is 0.
template <class A>
struct SoftmaxBelow {
  A max = -largest<A>(), sum = 0, own = 0, other = 0;

  __device__ A log() const { return log_sum(sum, max); }
  // new maximum m of l; `rise` is half of how far the shift of z went up
  __device__ void raise(A m, A rise) {
    const A f = change_of_maximum(max, m);
    own = f * (own + sum * half_below(m, max));
    other = f * (other + sum * rise);
    sum *= f;
    max = m;
  }
  __device__ A add(A l) {
    const A e = exp_below(l, max);
    sum += e;
    own += e * half_below(max, l);
    return e;
  }
};

}  // namespace fastmeta::cuda
