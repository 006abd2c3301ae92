// Row maths that both devices share: conversions, the running max and sum, and each equation once. No torch header.
//
// Symbols: z logits, q = softmax(z), l label logits, p label distribution, u logit tangent, w row weight, s = sum_k
// p_k, m = max_k z_k, S = sum_k exp(z_k - m), lse = m + log S, A the accumulation type.
//
// Two rules keep the sums accurate:
//   * no s * lse - <p, z>: at |z| = 1e4 its two terms cancel. sum_k p_k (m - z_k) + s log S has no negative term.
//   * no exp(z - lse) as a probability: lse is rounded at |z|. A saved lse serves as the shift in place of m (it saves
//     the pass for the max); the exponentials are summed anew and divided by their sum.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define FASTMETA_HD __host__ __device__ __forceinline__
#else
#define FASTMETA_HD inline __attribute__((always_inline))
#endif

namespace fastmeta {

// ---------------------------------------------------------------------------------------------------------
// Element types. The 16-bit ones are bits alone; rounding is to nearest, ties to even, NaN stays NaN.
// ---------------------------------------------------------------------------------------------------------

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using acc_t = typename AccOf<T>::type;

FASTMETA_HD float bits_to_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
#endif
}

FASTMETA_HD uint32_t float_to_bits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
#endif
}

FASTMETA_HD double to_acc(double x) { return x; }
FASTMETA_HD float to_acc(float x) { return x; }
FASTMETA_HD float to_acc(BFloat16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
FASTMETA_HD float to_acc(Float16 x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  // The exponent moves from bias 15 to bias 127 by a product with 2^112, which also turns half subnormals into
  // normal floats; written without a branch so that the loop over a row vectorises.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t body = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const float scaled = bits_to_float(body) * 0x1p112f;
  const uint32_t special = body >= 0x0f800000u ? 0x7f800000u | (body & 0x007fffffu) : float_to_bits(scaled);
  return bits_to_float(sign | special);
#endif
}

template <class T>
FASTMETA_HD T from_acc(acc_t<T> x) {
  return x;
}
template <>
FASTMETA_HD BFloat16 from_acc<BFloat16>(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}
template <>
FASTMETA_HD Float16 from_acc<Float16>(float x) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t body = bits & 0x7fffffffu;
  // below 2^-14 the result is subnormal: adding 0.5 lets the float adder round at the half's last place, 2^-24
  const uint32_t small = float_to_bits(bits_to_float(body) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (body - 0x38000000u + 0xfffu + ((body >> 13) & 1u)) >> 13;
  const uint32_t finite = body < 0x38800000u ? small : normal;
  const uint32_t special = body > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return {static_cast<uint16_t>(sign | (body >= 0x477ff000u ? special : finite))};
#endif
}

FASTMETA_HD bool is_finite(float x) { return (float_to_bits(x) & 0x7f800000u) != 0x7f800000u; }
FASTMETA_HD bool is_finite(double x) { return x - x == 0; }  // inf - inf and NaN - NaN are NaN

template <class A>
FASTMETA_HD A quiet_nan() {
  return static_cast<A>(NAN);
}

// ---------------------------------------------------------------------------------------------------------
// Softmax of a row in pieces: the running maximum and the sum of exponentials below it.
// ---------------------------------------------------------------------------------------------------------

template <class A>
FASTMETA_HD A shift_factor(A from, A to) {  // exp(from - to): moves a sum of exp(z - from) below the maximum `to`
  return from == to ? A(1) : std::exp(from - to);  // equal, also when both are -inf: an empty piece
}

template <class A>
struct MaxSum {
  A max, sum;  // m, S

  static FASTMETA_HD MaxSum empty() { return {-static_cast<A>(INFINITY), A(0)}; }
  FASTMETA_HD A lse() const { return max + std::log(sum); }
};

template <class A>
FASTMETA_HD MaxSum<A> merge(MaxSum<A> a, MaxSum<A> b) {
  const A m = a.max < b.max ? b.max : a.max;
  return {m, a.sum * shift_factor(a.max, m) + b.sum * shift_factor(b.max, m)};
}

// ---------------------------------------------------------------------------------------------------------
// Equations
// ---------------------------------------------------------------------------------------------------------

// L = sum_k p_k (lse - z_k), from below = sum_k p_k (m - z_k), s and log S
template <class A>
FASTMETA_HD A loss_from(A below, A s, A log_sum) {
  return below + s * log_sum;
}

// dL/dz = w (s q - p)
template <class A>
FASTMETA_HD A dlogits(A q, A p, A s, A w) {
  return w * (s * q - p);
}

// dL/dp = w (lse - z)
template <class A>
FASTMETA_HD A dprobs(A lse, A z, A w) {
  return w * (lse - z);
}

// u - <p, u>: what a softmax's Jacobian takes off a direction; alone it is the label-gradient term of p
template <class A>
FASTMETA_HD A centred(A u, A pu) {
  return u - pu;
}

// w p (u - <p, u>): gradient term of a row of label logits; with q, v, s it is the HVP in z: s q (v - <q, v>)
template <class A>
FASTMETA_HD A softmax_jvp(A p, A u, A pu, A w) {
  return w * p * centred(u, pu);
}

// label_lr * scale, the factor of a summed gradient. In double whatever A is, so that both devices round alike.
FASTMETA_HD double step_size(double scale, double label_lr) { return label_lr * scale; }

// l - step * gradient
template <class A>
FASTMETA_HD A stepped(A l, A step, A grad) {
  return l - step * grad;
}

// -x log x with 0 log 0 = 0; -inf below zero, as torch.special.entr
template <class A>
FASTMETA_HD A entr(A x) {
  return x > 0 ? -x * std::log(x) : x == 0 ? A(0) : x < 0 ? -static_cast<A>(INFINITY) : x;
}

// Class labels: p_y = 1 - a, every other class a / (C - 1).
template <class A>
FASTMETA_HD A class_other(A a, int64_t C) {
  return a / static_cast<A>(C - 1);
}

// L from below_y = m - z_y, below_others = sum_{k != y} (m - z_k), log S
template <class A>
FASTMETA_HD A class_loss_from(A a, int64_t C, A below_y, A below_others, A log_sum) {
  return (1 - a) * below_y + class_other(a, C) * below_others + log_sum;
}

template <class A>
FASTMETA_HD A class_entropy(A a, int64_t C) {
  return entr(1 - a) + static_cast<A>(C - 1) * entr(class_other(a, C));
}

// <p, u> from u_y and sum_{k != y} u_k
template <class A>
FASTMETA_HD A class_dot(A a, int64_t C, A u_y, A u_others) {
  return (1 - a) * u_y + class_other(a, C) * u_others;
}

// w (mean_{k != y} u_k - u_y): gradient term of alpha_y
template <class A>
FASTMETA_HD A class_grad(int64_t C, A u_y, A u_others, A w) {
  return w * (u_others / static_cast<A>(C - 1) - u_y);
}

// clamp(a, 0, 1); NaN stays NaN
template <class A>
FASTMETA_HD A clamp_unit(A a) {
  return a < 0 ? A(0) : a > 1 ? A(1) : a;
}

}  // namespace fastmeta
