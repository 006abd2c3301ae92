// Vectors in GCC's vector extension, and sweeps over a row.
//
// One source, three machine codes: plain x86-64 and AVX2 on vectors of 32 bytes, AVX-512 on vectors of 64, picked at
// load time, so a wheel runs everywhere. A kernel is a template over its vector V, inlined into one entry point for
// each machine code (parallel.h). The extension (rather than auto-vectorised loops) keeps sums in lanes whose order is
// known and needs no -ffast-math, under which NaN checks vanish. Everything here is inlined into its caller: a vector
// never crosses a call, whose ABI would depend on the instruction set.
//
// 32 bytes are one register of AVX2: gcc 12 passes longer vectors through memory there.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(FASTMETA_CLONES)  // a test that compiles one of them for everything
#define FASTMETA_CPU_FEATURES "baseline"
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>  // declares the builtins below
#define FASTMETA_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define FASTMETA_NARROW __attribute__((target_clones("default", "arch=x86-64-v3")))
#define FASTMETA_WIDE __attribute__((target("arch=x86-64-v4")))
#define FASTMETA_CPU_FEATURES "baseline, AVX2, AVX-512"
#else
#define FASTMETA_CLONES
#define FASTMETA_CPU_FEATURES "baseline"
#endif
#ifndef FASTMETA_NARROW
#define FASTMETA_NARROW FASTMETA_CLONES
#endif
#define FASTMETA_INLINE inline __attribute__((always_inline))

namespace fastmeta::cpu {

// What exp takes of a type.
template <class A>
struct Exponential;

template <>
struct Exponential<float> {
  using Bits = uint32_t;  // whose overflow is defined: lanes beyond a row hold anything
  static constexpr int kMantissa = 23;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;  // n * kLn2Hi is exact
  static constexpr float kMin = -87.33f;                                   // exp of it is just a normal number
  // exp(r) = 1 + r + r^2 P(r) on |r| <= log(2) / 2, highest first: minimax, relative error 3.8e-9
  static constexpr float kPoly[] = {0x1.6a2434p-10f, 0x1.1239e2p-7f, 0x1.5558f2p-5f, 0x1.555492p-3f, 0x1.fffffcp-2f};
};

template <>
struct Exponential<double> {
  using Bits = uint64_t;
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

// A vector of kBytes / sizeof(A) lanes: what kernels call V.
template <class A, int kVectorBytes>
struct Simd {
  using Scalar = A;
  using Bits = typename Exponential<A>::Bits;
  typedef A Vec __attribute__((vector_size(kVectorBytes)));
  typedef Bits BitVec __attribute__((vector_size(kVectorBytes)));
  typedef std::make_signed_t<Bits> IntVec __attribute__((vector_size(kVectorBytes)));
  static constexpr int kBytes = kVectorBytes;
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));
};

template <class V>
using scalar_t = typename V::Scalar;
template <class V>
using Vec = typename V::Vec;

// The lanes of a vector that stand for elements of a row: all of them, or the first `count`.
struct Whole {};
struct Part {
  int64_t count;
};

template <class V>
FASTMETA_INLINE Vec<V> load(const scalar_t<V>* p, Whole = {}) {
  Vec<V> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class V>
FASTMETA_INLINE void store(scalar_t<V>* p, Vec<V> v, Whole = {}) {
  std::memcpy(p, &v, sizeof(v));
}

template <class V>
FASTMETA_INLINE Vec<V> all(scalar_t<V> x) {
  return x - Vec<V>{};
}

// Lanes beyond the part are `other`, and nothing is read there.
template <class V>
FASTMETA_INLINE Vec<V> load(const scalar_t<V>* p, Part part, scalar_t<V> other = 0) {
#ifdef FASTMETA_WIDE
  if constexpr (V::kBytes == 64) {
    const auto lanes = (1u << part.count) - 1;
    if constexpr (sizeof(scalar_t<V>) == 4)
      return __builtin_ia32_loadups512_mask(p, all<V>(other), static_cast<uint16_t>(lanes));
    else
      return __builtin_ia32_loadupd512_mask(p, all<V>(other), static_cast<uint8_t>(lanes));
  }
#endif
  Vec<V> v = all<V>(other);
#pragma GCC unroll 16
  for (int j = 0; j + 1 < V::kLanes; ++j)  // a branch for each: a loop would become a call of memcpy
    if (j < part.count) v[j] = p[j];
  return v;
}

template <class V>
FASTMETA_INLINE void store(scalar_t<V>* p, Vec<V> v, Part part) {
#ifdef FASTMETA_WIDE
  if constexpr (V::kBytes == 64) {
    const auto lanes = (1u << part.count) - 1;
    if constexpr (sizeof(scalar_t<V>) == 4)
      return __builtin_ia32_storeups512_mask(p, v, static_cast<uint16_t>(lanes));
    else
      return __builtin_ia32_storeupd512_mask(p, v, static_cast<uint8_t>(lanes));
  }
#endif
#pragma GCC unroll 16
  for (int j = 0; j + 1 < V::kLanes; ++j)
    if (j < part.count) p[j] = v[j];
}

// x with the lanes beyond the part set to zero, whatever they hold: they then add nothing to any sum.
template <class V>
FASTMETA_INLINE Vec<V> keep(Vec<V> x, Whole) {
  return x;
}
template <class V>
FASTMETA_INLINE Vec<V> keep(Vec<V> x, Part part) {
  constexpr int kLanes = V::kLanes;
  static constexpr struct Window {
    typename V::Bits bits[2 * kLanes];
    constexpr Window() : bits() {
      for (int i = 0; i < kLanes; ++i) bits[i] = ~typename V::Bits(0);
    }
  } kWindow;
  typename V::BitVec mask, value;
  std::memcpy(&mask, kWindow.bits + kLanes - part.count, sizeof(mask));
  std::memcpy(&value, &x, sizeof(x));
  value &= mask;
  std::memcpy(&x, &value, sizeof(x));
  return x;
}

// a, or where it is less (or NaN) b. gcc 12 takes a comparison of vectors apart into scalars wherever 32 bytes are more
// than one register: there the sign bit of a difference selects.
template <class V>
FASTMETA_INLINE Vec<V> at_least(Vec<V> a, scalar_t<V> b) {
#ifdef FASTMETA_WIDE
  if constexpr (V::kBytes == 64) {  // gcc 12 would make a mask and a blend of it
    if constexpr (sizeof(scalar_t<V>) == 4)
      return __builtin_ia32_maxps512_mask(a, all<V>(b), a, static_cast<uint16_t>(-1), _MM_FROUND_CUR_DIRECTION);
    else
      return __builtin_ia32_maxpd512_mask(a, all<V>(b), a, static_cast<uint8_t>(-1), _MM_FROUND_CUR_DIRECTION);
  } else
#endif
  {
    const Vec<V> d = a - b, least = all<V>(b);
    typename V::IntVec mask, x, y;
    std::memcpy(&mask, &d, sizeof(d));
    std::memcpy(&x, &least, sizeof(x));
    std::memcpy(&y, &a, sizeof(y));
    mask >>= 8 * static_cast<int>(sizeof(scalar_t<V>)) - 1;
    x = (x & mask) | (y & ~mask);
    std::memcpy(&a, &x, sizeof(a));
    return a;
  }
}

// exp for finite x <= 88 (709): within 1.2 ulp, with FMA within 0.9; below the normal range about the smallest normal
// number.
template <class V>
FASTMETA_INLINE Vec<V> exp(Vec<V> x) {
  using E = Exponential<scalar_t<V>>;
  x = at_least<V>(x, E::kMin);
  const Vec<V> shifted = x * E::kLog2e + E::kRound;
  const Vec<V> n = shifted - E::kRound;
  const Vec<V> r = (x - n * E::kLn2Hi) - n * E::kLn2Lo;
  Vec<V> poly = all<V>(E::kPoly[0]);
#pragma GCC unroll 16
  for (unsigned k = 1; k < sizeof(E::kPoly) / sizeof(E::kPoly[0]); ++k) poly = poly * r + E::kPoly[k];
  const Vec<V> mantissa = (poly * r + 1) * r + 1;
  // n added to the exponent: the result is normal by kMin, and the bits of kRound fall off at the top
  typename V::BitVec power, bits;
  std::memcpy(&power, &shifted, sizeof(power));
  std::memcpy(&bits, &mantissa, sizeof(bits));
  bits += power << E::kMantissa;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

template <class V>
FASTMETA_INLINE scalar_t<V> add_lanes(Vec<V> v) {
  if constexpr (V::kBytes == 16) {
    if constexpr (V::kLanes == 2)
      return v[0] + v[1];
    else
      return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    using H = Simd<scalar_t<V>, V::kBytes / 2>;
    Vec<H> h[2];
    std::memcpy(h, &v, sizeof(h));
    return add_lanes<H>(h[0] + h[1]);
  }
}

template <class V>
FASTMETA_INLINE scalar_t<V> max_lanes(Vec<V> v) {
  if constexpr (V::kBytes == 16) {
    scalar_t<V> m = v[0];
#pragma GCC unroll 4
    for (int k = 1; k < V::kLanes; ++k) m = v[k] > m ? v[k] : m;
    return m;
  } else {
    using H = Simd<scalar_t<V>, V::kBytes / 2>;
    Vec<H> h[2];
    std::memcpy(h, &v, sizeof(h));
    return max_lanes<H>(h[0] > h[1] ? h[0] : h[1]);
  }
}

// The largest element seen. NaN gives way, or stays: what comes after it is not looked at. In pieces that a comparison
// takes in one instruction: 16 bytes everywhere, 64 in AVX-512.
template <class V>
struct Max {
  using A = scalar_t<V>;
  using P = Simd<A, V::kBytes == 64 ? 64 : 16>;
  static constexpr int kPieces = V::kBytes / P::kBytes;
  static_assert(kPieces <= 2);
  Vec<P> most[kPieces];

  FASTMETA_INLINE explicit Max(A first) {
    for (int j = 0; j < kPieces; ++j) most[j] = all<P>(first);
  }
  FASTMETA_INLINE void operator()(Vec<V> v) {
    Vec<P> x[kPieces];
    std::memcpy(x, &v, sizeof(x));
#pragma GCC unroll 2
    for (int j = 0; j < kPieces; ++j) most[j] = most[j] > x[j] ? most[j] : x[j];
  }
  FASTMETA_INLINE A value() const {
    return kPieces == 1 ? max_lanes<P>(most[0])
                        : max_lanes<P>(most[0] > most[kPieces - 1] ? most[0] : most[kPieces - 1]);
  }
};

// A sum in lanes on two levels: blocks, and their total, compensated (Kahan), so that the error of a row of 65,536 is
// that of one block.
template <class V>
struct Sum {
  Vec<V> block{}, total{}, lost{};

  FASTMETA_INLINE void operator+=(Vec<V> x) { block += x; }
  FASTMETA_INLINE void close_block() {
    const Vec<V> x = block - lost;
    const Vec<V> next = total + x;
    lost = (next - total) - x;
    total = next;
    block = Vec<V>{};
  }
  FASTMETA_INLINE scalar_t<V> value() const { return add_lanes<V>(total + (block - lost)); }
};

// Elements that a row of C takes in scratch memory: padded to whole lines of 64 bytes.
template <class A>
constexpr int64_t padded(int64_t C) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(A));
  return (C + kLine - 1) & ~(kLine - 1);
}

// body(k, lanes) for each vector of a row of C >= 1, where `lanes` is Whole or, at most for the last one, Part. The
// sums are closed block by block, but for the last one.
template <class V, class Body, class... Sums>
FASTMETA_INLINE void sweep(int64_t C, Body body, Sums&... sums) {
  constexpr int64_t kLanes = V::kLanes, kBlock = 32 * kLanes;
  const int64_t whole = C & ~(kLanes - 1);
  for (int64_t k = 0; k < C;) {
    const int64_t stop = k + kBlock < whole ? k + kBlock : whole;
    for (; k < stop; k += kLanes) body(k, Whole{});
    if (k == whole && k < C) {
      body(k, Part{C - k});
      k = C;
    }
    if (k < C) (sums.close_block(), ...);
  }
}

}  // namespace fastmeta::cpu
