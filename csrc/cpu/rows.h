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

// 16-bit rows to and from float: out of line (rows.cpp), for there are many of these and they are long.
void widen(const BFloat16* from, int64_t C, float* to);
void widen(const Float16* from, int64_t C, float* to);
void narrow(const float* from, int64_t C, BFloat16* to);
void narrow(const float* from, int64_t C, Float16* to);

// A row of a table rounded stochastically to bfloat16, in place.
void round_row(float* x, int64_t C, uint64_t seed, uint64_t step, uint64_t row);

// What a pass over a row tells about it.
template <class A>
struct Scan {
  A max;
  bool finite;  // all elements; where not, `max` may have lost a NaN, and so may exponentials below it

  FASTMETA_INLINE A poison() const { return finite ? A(0) : quiet_nan<A>(); }  // what makes a result NaN where not
};

template <class A>
struct Scanner {
  Max<A> most;
  Vec<A> zero{};

  FASTMETA_INLINE explicit Scanner(A first) : most(first) {}
  FASTMETA_INLINE void operator()(const A* p) {
    most(p);
    zero += load(p) * A(0);  // 0, or NaN where not finite
  }
  FASTMETA_INLINE Scan<A> result() const { return {most.value(), add_lanes<A>(zero) == 0}; }
};

template <class A>
FASTMETA_INLINE void pad_row(A* x, int64_t C, Padding padding = Padding::kFirst) {
  for (int64_t k = C; k < padded<A>(C); ++k) x[k] = padding == Padding::kFirst ? x[0] : A(0);
}

template <class A>
FASTMETA_INLINE const A* row_at(const ConstMatrix& m, int64_t i) {
  return reinterpret_cast<const A*>(static_cast<const char*>(m.data) + i * m.row_stride * size_of(m.dtype));
}

// Row i of `m` where it is, if it is in A; 16-bit rows in scratch.
template <class A>
FASTMETA_INLINE const A* row_in(const ConstMatrix& m, int64_t i, int64_t C, A* scratch) {
  if constexpr (sizeof(A) == 4) {
    if (size_of(m.dtype) == 2) {
      if (m.dtype == DType::kBFloat16)
        widen(row_at<BFloat16>(m, i), C, scratch);
      else
        widen(row_at<Float16>(m, i), C, scratch);
      return scratch;
    }
  }
  return row_at<A>(m, i);
}

// A row on its way into scratch memory, vector by vector where it is in A; 16-bit rows, there already, onto themselves.
template <class A>
class RowLoader {
 public:
  FASTMETA_INLINE RowLoader(const ConstMatrix& m, int64_t i, int64_t C, A* x)
      : from(row_in(m, i, C, x)), to(x), scan(from[0]) {}
  FASTMETA_INLINE void operator()(int64_t k) {
    store(to + k, load(from + k));
    scan(from + k);
  }
  FASTMETA_INLINE void last(int64_t k, int64_t C) {
    const A first = from[0];
    for (int64_t j = 0; j < Simd<A>::kLanes; ++j) to[k + j] = k + j < C ? from[k + j] : first;
    scan(to + k);
  }
  FASTMETA_INLINE Scan<A> result() const { return scan.result(); }

 private:
  const A* from;
  A* to;
  Scanner<A> scan;
};

// Row i of each matrix in scratch, scanned on the way: loaders.result(). Together, because the running maximum of
// one row alone waits for itself.
template <class A, class... Loaders>
FASTMETA_INLINE void load_rows(int64_t C, Loaders&... loaders) {
  int64_t k = 0;
  for (; k + Simd<A>::kLanes <= C; k += Simd<A>::kLanes) (loaders(k), ...);
  if (k < C) (loaders.last(k, C), ...);
}

template <class A>
FASTMETA_INLINE Scan<A> load_row(const ConstMatrix& from, int64_t i, int64_t C, A* x,
                                 Padding padding = Padding::kFirst) {
  RowLoader<A> loader(from, i, C, x);
  load_rows<A>(C, loader);
  pad_row(x, C, padding);
  return loader.result();
}

template <class A>
FASTMETA_INLINE void store_row(const A* x, int64_t C, const Matrix& to, int64_t i) {
  char* row = static_cast<char*>(to.data) + i * to.row_stride * size_of(to.dtype);
  if constexpr (sizeof(A) == 4) {
    if (to.dtype == DType::kBFloat16) return narrow(x, C, reinterpret_cast<BFloat16*>(row));
    if (to.dtype == DType::kFloat16) return narrow(x, C, reinterpret_cast<Float16*>(row));
  }
  std::memcpy(row, x, C * sizeof(A));
}

// A row on its way out of a sweep: straight to row i of `to` where that is in A, else by way of scratch memory.
template <class A>
class RowWriter {
 public:
  FASTMETA_INLINE RowWriter(const Matrix& to, int64_t i, int64_t C, A* scratch)
      : to_(to), i_(i), C_(C), scratch_(scratch), direct_(size_of(to.dtype) == sizeof(A)) {
    row_ = direct_ ? static_cast<A*>(to.data) + i * to.row_stride : scratch;
    whole_ = direct_ ? C : padded<A>(C);
  }
  FASTMETA_INLINE void operator()(int64_t k, Vec<A> v) const {
    if (k + Simd<A>::kLanes <= whole_) return store(row_ + k, v);
    A tail[Simd<A>::kLanes];
    store(tail, v);
    for (int64_t j = 0; k + j < whole_; ++j) row_[k + j] = tail[j];
  }
  FASTMETA_INLINE void finish() const {
    if (!direct_) store_row(scratch_, C_, to_, i_);
  }

 private:
  const Matrix& to_;
  int64_t i_, C_, whole_;
  A *scratch_, *row_;
  bool direct_;
};

template <class A>
FASTMETA_INLINE void fill_row(A value, int64_t C, A* out) {
  sweep<A>(C, FASTMETA_BODY(k) { store(out + k, all<A>(value)); });
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

// The same, and eu = sum_k e_k u_k
template <class A>
FASTMETA_INLINE A exp_dot_row(const A* x, A shift, const A* u, int64_t C, A* e, A& eu) {
  Sum<A> sum, product;
  sweep<A>(
      C,
      FASTMETA_BODY(k) {
        const Vec<A> y = below_end<A>(exp<A>(load(x + k) - shift), k, C);
        store(e + k, y);
        sum += y;
        product += y * load(u + k);
      },
      sum, product);
  eu = product.value();
  return sum.value();
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
