// Vectors of 32 bytes in GCC's vector extension, and sweeps over a row.
//
// One source, three machine codes: FASTMETA_CLONES compiles a function for plain x86-64, AVX2 and AVX-512 and picks at
// load time, so a wheel runs everywhere. The extension (rather than auto-vectorised loops) keeps sums in the same lanes
// and order on each of them and needs no -ffast-math, under which NaN checks vanish. Everything here is inlined into
// its caller: a vector never crosses a call, whose ABI would depend on the instruction set.
//
// 32 bytes are one register of AVX2. With 64 the AVX-512 code of instance_label_step_ is 18% faster at rows of 1000 in
// cache and no faster at rows of 100, but gcc 12 passes the AVX2 code's vectors through memory and makes it 2.5 times
// slower.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(FASTMETA_CLONES)  // a test that compiles one of them for everything
#define FASTMETA_CPU_FEATURES "baseline"
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTMETA_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define FASTMETA_CPU_FEATURES "baseline, AVX2, AVX-512"
#else
#define FASTMETA_CLONES
#define FASTMETA_CPU_FEATURES "baseline"
#endif
#define FASTMETA_INLINE inline __attribute__((always_inline))

namespace fastmeta::cpu {

template <class A>
struct Simd;

template <>
struct Simd<float> {
  using Bits = int32_t;
  typedef float Vec __attribute__((vector_size(32)));
  typedef float Half __attribute__((vector_size(16)));
  typedef int32_t IntVec __attribute__((vector_size(32)));
  static constexpr int kLanes = 8;
  static constexpr int kMantissa = 23;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;  // n * kLn2Hi is exact
  static constexpr float kMin = -87.33f;                                   // exp of it is just a normal number
  // exp(r) = 1 + r + r^2 P(r) on |r| <= log(2) / 2; coefficients of Cephes' expf, highest first
  static constexpr float kPoly[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                    4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
};

template <>
struct Simd<double> {
  using Bits = int64_t;
  typedef double Vec __attribute__((vector_size(32)));
  typedef double Half __attribute__((vector_size(16)));
  typedef int64_t IntVec __attribute__((vector_size(32)));
  static constexpr int kLanes = 4;
  static constexpr int kMantissa = 52;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kLn2Hi = 6.93145751953125e-1, kLn2Lo = 1.42860682030941723212e-6;
  static constexpr double kMin = -708.39;
  // Taylor: the first term left out, r^14 / 14!, is below 5e-18
  static constexpr double kPoly[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                     1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                     1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2};
};

template <class A>
using Vec = typename Simd<A>::Vec;
template <class A>
using Half = typename Simd<A>::Half;

template <class A>
FASTMETA_INLINE Vec<A> load(const A* p) {
  Vec<A> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class A>
FASTMETA_INLINE void store(A* p, Vec<A> v) {
  std::memcpy(p, &v, sizeof(v));
}

template <class A>
FASTMETA_INLINE Vec<A> all(A x) {
  return x - Vec<A>{};
}

// d < 0 ? a : b by the sign bit of d. A comparison of whole vectors would be clearer, but gcc 12 takes it apart into
// scalars wherever 32 bytes are more than one register.
template <class A>
FASTMETA_INLINE Vec<A> where_negative(Vec<A> d, Vec<A> a, Vec<A> b) {
  typename Simd<A>::IntVec mask, x, y;
  std::memcpy(&mask, &d, sizeof(d));
  std::memcpy(&x, &a, sizeof(a));
  std::memcpy(&y, &b, sizeof(b));
  mask >>= 8 * sizeof(A) - 1;
  x = (x & mask) | (y & ~mask);
  std::memcpy(&a, &x, sizeof(a));
  return a;
}

// exp for finite x <= 88 (709): within 1.2 ulp, with FMA within 0.9; below the normal range about the smallest normal
// number.
template <class A>
FASTMETA_INLINE Vec<A> exp(Vec<A> x) {
  using S = Simd<A>;
  x = where_negative<A>(x - S::kMin, all<A>(S::kMin), x);
  const Vec<A> shifted = x * S::kLog2e + S::kRound;
  const Vec<A> n = shifted - S::kRound;
  const Vec<A> r = (x - n * S::kLn2Hi) - n * S::kLn2Lo;
  Vec<A> poly = all<A>(S::kPoly[0]);
#pragma GCC unroll 16
  for (unsigned k = 1; k < sizeof(S::kPoly) / sizeof(A); ++k) poly = poly * r + S::kPoly[k];
  const Vec<A> mantissa = (poly * r + A(1)) * r + A(1);
  // n added to the exponent: the result is normal by kMin, and the bits of kRound fall off at the top
  typename S::IntVec power, bits;
  std::memcpy(&power, &shifted, sizeof(power));
  std::memcpy(&bits, &mantissa, sizeof(bits));
  bits += power << S::kMantissa;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

template <class A>
FASTMETA_INLINE A add_lanes(Vec<A> v) {
  Half<A> h[2];
  std::memcpy(h, &v, sizeof(h));
  h[0] += h[1];
  if constexpr (sizeof(A) == 8)
    return h[0][0] + h[0][1];
  else
    return (h[0][0] + h[0][2]) + (h[0][1] + h[0][3]);
}

// The largest element seen, in halves of a vector: a comparison of 16 bytes is one instruction everywhere. NaN gives
// way, or stays: what comes after it is not looked at.
template <class A>
struct Max {
  Half<A> low, high;

  FASTMETA_INLINE explicit Max(A first) : low(first - Half<A>{}), high(low) {}
  FASTMETA_INLINE void operator()(const A* p) {
    Half<A> x, y;
    std::memcpy(&x, p, sizeof(x));
    std::memcpy(&y, p + Simd<A>::kLanes / 2, sizeof(y));
    low = low > x ? low : x;
    high = high > y ? high : y;
  }
  FASTMETA_INLINE A value() const {
    const Half<A> m = low > high ? low : high;
    A most = m[0];
#pragma GCC unroll 4
    for (unsigned k = 1; k < 16 / sizeof(A); ++k) most = m[k] > most ? m[k] : most;
    return most;
  }
};

// A sum in lanes on two levels: blocks, and their total, compensated (Kahan), so that the error of a row of 65,536 is
// that of one block.
template <class A>
struct Sum {
  Vec<A> block{}, total{}, lost{};

  FASTMETA_INLINE void operator+=(Vec<A> x) { block += x; }
  FASTMETA_INLINE void close_block() {
    const Vec<A> x = block - lost;
    const Vec<A> next = total + x;
    lost = (next - total) - x;
    total = next;
    block = Vec<A>{};
  }
  FASTMETA_INLINE A value() const { return add_lanes<A>(total); }
};

// Elements that a row of C takes in scratch memory: padded to whole vectors.
template <class A>
constexpr int64_t padded(int64_t C) {
  return (C + Simd<A>::kLanes - 1) & ~int64_t(Simd<A>::kLanes - 1);
}

// body(k) for each vector of a padded row of C >= 1, then the sums are closed block by block.
template <class A, class Body, class... Sums>
FASTMETA_INLINE void sweep(int64_t C, Body body, Sums&... sums) {
  constexpr int64_t kLanes = Simd<A>::kLanes, kBlock = 32 * kLanes;
  for (int64_t start = 0; start < C; start += kBlock) {
    const int64_t stop = start + kBlock < C ? start + kBlock : C;
    for (int64_t k = start; k < stop; k += kLanes) body(k);
    (sums.close_block(), ...);
  }
}

// x with the lanes that stand for elements from C on set to zero: they then add nothing to any sum. x is at element k.
template <class A>
FASTMETA_INLINE Vec<A> below_end(Vec<A> x, int64_t k, int64_t C) {
  using Bits = typename Simd<A>::Bits;
  constexpr int64_t kLanes = Simd<A>::kLanes;
  static constexpr struct Window {
    Bits bits[2 * kLanes];
    constexpr Window() : bits() {
      for (int i = 0; i < kLanes; ++i) bits[i] = -1;
    }
  } kWindow;
  if (k + kLanes <= C) return x;
  typename Simd<A>::IntVec mask, value;
  std::memcpy(&mask, kWindow.bits + (k + kLanes - C), sizeof(mask));
  std::memcpy(&value, &x, sizeof(x));
  value &= mask;
  std::memcpy(&x, &value, sizeof(x));
  return x;
}

}  // namespace fastmeta::cpu
