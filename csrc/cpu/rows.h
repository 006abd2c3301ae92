// Primitives over one row in scratch memory, inlined into the loop of an operation, which FASTMETA_CLONES compiles for
// each instruction set.
//
// A row in scratch is padded to whole vectors and aligned to 64 bytes, in A = acc(T). The padding repeats the row's
// first element (so it never is a new maximum and is finite when the row is), except in rows of exponentials and where
// load_row is told otherwise: there it is zero and adds nothing to a sum.
#pragma once

#include "../kernels.h"
#include "../softmax_math.h"
#include "simd.h"

namespace fastmeta::cpu {

// The body of a sweep. always_inline, or it would be compiled once, for plain x86-64.
#define FASTMETA_BODY(k) [&](int64_t k) __attribute__((always_inline))

enum class Padding { kFirst, kZero };

template <class T, class A>
FASTMETA_INLINE void widen(const T* from, int64_t C, A* to) {
  for (int64_t k = 0; k < C; ++k) to[k] = to_acc(from[k]);
}

template <class T, class A>
FASTMETA_INLINE void narrow(const A* from, int64_t C, T* to) {
  for (int64_t k = 0; k < C; ++k) to[k] = from_acc<T>(from[k]);
}

template <class A>
FASTMETA_INLINE void load_row(const ConstMatrix& from, int64_t i, int64_t C, A* x, Padding padding = Padding::kFirst) {
  const char* row = static_cast<const char*>(from.data) + i * from.row_stride * size_of(from.dtype);
  if (from.dtype == DType::kBFloat16 && sizeof(A) == 4)
    widen(reinterpret_cast<const BFloat16*>(row), C, x);
  else if (from.dtype == DType::kFloat16 && sizeof(A) == 4)
    widen(reinterpret_cast<const Float16*>(row), C, x);
  else
    widen(reinterpret_cast<const A*>(row), C, x);
  for (int64_t k = C; k < padded<A>(C); ++k) x[k] = padding == Padding::kFirst ? x[0] : A(0);
}

template <class A>
FASTMETA_INLINE void store_row(const A* x, int64_t C, const Matrix& to, int64_t i) {
  char* row = static_cast<char*>(to.data) + i * to.row_stride * size_of(to.dtype);
  if constexpr (sizeof(A) == 4) {
    if (to.dtype == DType::kBFloat16) return narrow(x, C, reinterpret_cast<BFloat16*>(row));
    if (to.dtype == DType::kFloat16) return narrow(x, C, reinterpret_cast<Float16*>(row));
  }
  narrow(x, C, reinterpret_cast<A*>(row));
}

template <class A>
FASTMETA_INLINE void fill_row(A value, int64_t C, A* out) {
  sweep<A>(C, FASTMETA_BODY(k) { store(out + k, all<A>(value)); });
}

// Whether all elements are finite: 0 * x is 0, or NaN where x is not.
template <class A>
FASTMETA_INLINE bool finite_row(const A* x, int64_t C) {
  Sum<A> zero;
  sweep<A>(C, FASTMETA_BODY(k) { zero += load(x + k) * A(0); }, zero);
  return zero.value() == 0;
}

template <class A>
FASTMETA_INLINE A max_row(const A* x, int64_t C) {
  Vec<A> most = load(x);
  sweep<A>(
      C, FASTMETA_BODY(k) {
        const Vec<A> v = load(x + k);
        most = where_negative<A>(most - v, v, most);  // a NaN may get lost here; it shows in the exponentials
      });
  return max_lanes<A>(most);
}

template <class A>
FASTMETA_INLINE A sum_row(const A* x, int64_t C) {  // padding zero
  Sum<A> sum;
  sweep<A>(C, FASTMETA_BODY(k) { sum += load(x + k); }, sum);
  return sum.value();
}

template <class A>
FASTMETA_INLINE A dot_row(const A* a, const A* b, int64_t C) {  // the padding of a or b is zero
  Sum<A> sum;
  sweep<A>(C, FASTMETA_BODY(k) { sum += load(a + k) * load(b + k); }, sum);
  return sum.value();
}

// sum_k a_k (m - x_k); the padding of a is zero
template <class A>
FASTMETA_INLINE A below_row(const A* a, A m, const A* x, int64_t C) {
  Sum<A> sum;
  sweep<A>(C, FASTMETA_BODY(k) { sum += load(a + k) * (m - load(x + k)); }, sum);
  return sum.value();
}

// e_k = exp(x_k - shift), padding zero; returns sum_k e_k
template <class A>
FASTMETA_INLINE A exp_row(const A* x, A shift, int64_t C, A* e) {
  Sum<A> sum;
  sweep<A>(
      C,
      FASTMETA_BODY(k) {
        const Vec<A> y = below_end<A>(exp<A>(load(x + k) - shift), k, C);
        store(e + k, y);
        sum += y;
      },
      sum);
  return sum.value();
}

// m and S of a row; e_k = exp(x_k - m), padding zero
template <class A>
FASTMETA_INLINE MaxSum<A> softmax_row(const A* x, int64_t C, A* e) {
  const A m = max_row(x, C);
  return {m, exp_row(x, m, C, e)};
}

// The same, and dot = sum_k e_k u_k
template <class A>
FASTMETA_INLINE MaxSum<A> softmax_dot_row(const A* x, const A* u, int64_t C, A* e, A& dot) {
  const A m = max_row(x, C);
  Sum<A> sum, product;
  sweep<A>(
      C,
      FASTMETA_BODY(k) {
        const Vec<A> y = below_end<A>(exp<A>(load(x + k) - m), k, C);
        store(e + k, y);
        sum += y;
        product += y * load(u + k);
      },
      sum, product);
  dot = product.value();
  return {m, sum.value()};
}

// The same, and entropy = log S + sum_k e_k (m - x_k) / S
template <class A>
FASTMETA_INLINE MaxSum<A> softmax_entropy_row(const A* x, int64_t C, A* e, A& entropy) {
  const A m = max_row(x, C);
  Sum<A> sum, below;
  sweep<A>(
      C,
      FASTMETA_BODY(k) {
        const Vec<A> d = load(x + k) - m;
        const Vec<A> y = below_end<A>(exp<A>(d), k, C);
        store(e + k, y);
        sum += y;
        below += y * -d;
      },
      sum, below);
  const A s = sum.value();
  entropy = std::log(s) + below.value() / s;
  return {m, s};
}

// out_k = a_k f - b_k g
template <class A>
FASTMETA_INLINE void difference_row(const A* a, A f, const A* b, A g, int64_t C, A* out) {
  sweep<A>(C, FASTMETA_BODY(k) { store(out + k, load(a + k) * f - load(b + k) * g); });
}

// out_k = a_k f (b_k - c)
template <class A>
FASTMETA_INLINE void centred_product_row(const A* a, A f, const A* b, A c, int64_t C, A* out) {
  sweep<A>(C, FASTMETA_BODY(k) { store(out + k, load(a + k) * f * (load(b + k) - c)); });
}

// out_k = f (x_k - c)
template <class A>
FASTMETA_INLINE void centred_row(const A* x, A f, A c, int64_t C, A* out) {
  sweep<A>(C, FASTMETA_BODY(k) { store(out + k, f * (load(x + k) - c)); });
}

}  // namespace fastmeta::cpu
