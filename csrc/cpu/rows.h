// Primitives over one row, inlined into the kernel of an operation, which is compiled for each instruction set.
//
// A row is read where it stands, if it is in A = acc(T), else in scratch memory, widened. Its last vector is read in
// part (simd.h). Rows in scratch are aligned to 64 bytes and padded to whole vectors, whose last lanes hold anything.
#pragma once

#include "../kernels.h"
#include "../softmax_math.h"
#include "simd.h"

namespace fastmeta::cpu {

// The body of a sweep. always_inline, or it would be compiled once, for plain x86-64.
#define FASTMETA_BODY(k, lanes) [&](int64_t k, auto lanes) __attribute__((always_inline))

// 16-bit rows to and from float: out of line (rows.cpp), for there are many of these and they are long.
void widen(const BFloat16* from, int64_t C, float* to);
void widen(const Float16* from, int64_t C, float* to);
void narrow(const float* from, int64_t C, BFloat16* to);
void narrow(const float* from, int64_t C, Float16* to);

// A row of a table rounded stochastically to bfloat16, in place.
void round_row(float* x, int64_t C, uint64_t seed, uint64_t step, uint64_t row);

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

// What a pass over a row tells about it.
template <class A>
struct Scan {
  A max;
  bool finite;  // all elements; where not, `max` may have lost a NaN, and so may exponentials below it

  FASTMETA_INLINE A poison() const { return finite ? A(0) : quiet_nan<A>(); }  // what makes a result NaN where not
};

template <class V>
struct Scanner {
  using A = scalar_t<V>;
  Max<V> most;
  Vec<V> zero{};

  FASTMETA_INLINE explicit Scanner(A first) : most(first) {}
  FASTMETA_INLINE void operator()(Vec<V> x) {
    most(x);
    zero += x * A(0);  // 0, or NaN where not finite
  }
  FASTMETA_INLINE Scan<A> result() const { return {most.value(), add_lanes<V>(zero) == 0}; }
};

// The scans of rows of C, side by side and each in two halves, because a running maximum waits for itself.
template <class V, class... Rows>
FASTMETA_INLINE void scan_rows(int64_t C, Rows&... rows) {
  constexpr int64_t kLanes = V::kLanes;
  int64_t k = 0;
  for (; k + 2 * kLanes <= C; k += 2 * kLanes) (rows.both(k), ...);
  if (k + kLanes <= C) {
    (rows.one(k, Whole{}), ...);
    k += kLanes;
  }
  if (k < C) (rows.one(k, Part{C - k}), ...);
}

template <class V>
class RowScan {
  using A = scalar_t<V>;

 public:
  FASTMETA_INLINE explicit RowScan(const A* row) : row_(row), even_(row[0]), odd_(row[0]) {}
  FASTMETA_INLINE void both(int64_t k) {
    even_(load<V>(row_ + k));
    odd_(load<V>(row_ + k + V::kLanes));
  }
  FASTMETA_INLINE void one(int64_t k, Whole) { even_(load<V>(row_ + k)); }
  FASTMETA_INLINE void one(int64_t k, Part part) { even_(load<V>(row_ + k, part, row_[0])); }
  FASTMETA_INLINE Scan<A> result() const {
    const Scan<A> a = even_.result(), b = odd_.result();
    return {a.max < b.max ? b.max : a.max, a.finite && b.finite};
  }

 private:
  const A* row_;
  Scanner<V> even_, odd_;
};

template <class V>
FASTMETA_INLINE Scan<scalar_t<V>> scan_row(const scalar_t<V>* row, int64_t C) {
  RowScan<V> scan(row);
  scan_rows<V>(C, scan);
  return scan.result();
}

template <class A>
FASTMETA_INLINE void store_row(const A* x, int64_t C, const Matrix& to, int64_t i) {
  char* row = static_cast<char*>(to.data) + i * to.row_stride * size_of(to.dtype);
  if constexpr (sizeof(A) == 4) {
    if (to.dtype == DType::kBFloat16) return narrow(x, C, reinterpret_cast<BFloat16*>(row));
    if (to.dtype == DType::kFloat16) return narrow(x, C, reinterpret_cast<Float16*>(row));
  }
  if (static_cast<const void*>(row) != x) std::memcpy(row, x, C * sizeof(A));
}

// A row on its way out of a sweep: straight to row i of `to` where that is in A, else by way of scratch memory.
template <class V>
class RowWriter {
  using A = scalar_t<V>;

 public:
  FASTMETA_INLINE RowWriter(const Matrix& to, int64_t i, int64_t C, A* scratch)
      : to_(to),
        i_(i),
        C_(C),
        row_(size_of(to.dtype) == sizeof(A) ? static_cast<A*>(to.data) + i * to.row_stride : scratch) {}
  template <class Lanes>
  FASTMETA_INLINE void operator()(int64_t k, Vec<V> v, Lanes lanes) const {
    store<V>(row_ + k, v, lanes);
  }
  FASTMETA_INLINE void finish() const { store_row(static_cast<const A*>(row_), C_, to_, i_); }

 private:
  const Matrix& to_;
  int64_t i_, C_;
  A* row_;
};

template <class V>
FASTMETA_INLINE scalar_t<V> sum_row(const scalar_t<V>* x, int64_t C) {
  Sum<V> sum;
  sweep<V>(C, FASTMETA_BODY(k, lanes) { sum += load<V>(x + k, lanes); }, sum);
  return sum.value();
}

// e_k = exp(x_k - shift); returns sum_k e_k
template <class V>
FASTMETA_INLINE scalar_t<V> exp_row(const scalar_t<V>* x, scalar_t<V> shift, int64_t C, scalar_t<V>* e) {
  Sum<V> sum;
  sweep<V>(
      C,
      FASTMETA_BODY(k, lanes) {
        const Vec<V> y = keep<V>(exp<V>(load<V>(x + k, lanes) - shift), lanes);
        store<V>(e + k, y);
        sum += y;
      },
      sum);
  return sum.value();
}

// Whether so many rows of C are more than the first cache holds: 32 KiB, of many x86-64. Scratch counts as one of them,
// also where it is wider: rows of 1000 in 16 bits gained nothing from being asked for further away.
constexpr bool overflow_cache(int64_t rows, int64_t C, DType dtype) { return rows * C * size_of(dtype) > 32768; }

// Memory that is asked for ahead of its turn, vector by vector while there is something to compute: the rows of the
// next batch row, and where this one's result goes. A stream of rows ends with each page, so the hardware alone comes
// late: 4096 rows of 1000, gathered, then took 1.6 times as long. If `far` they are brought to the second cache alone:
// where the first has no room for them beside the rows at work, they would come and go before their turn.
class AheadRow {
 public:
  FASTMETA_INLINE AheadRow(const void* data, int64_t row_stride, DType dtype, int64_t i, bool far)
      : row_(static_cast<const char*>(data) + i * row_stride * size_of(dtype)), size_(size_of(dtype)), far_(far) {}
  FASTMETA_INLINE AheadRow(const ConstMatrix& m, int64_t i, bool far)
      : AheadRow(m.data, m.row_stride, m.dtype, i, far) {}
  FASTMETA_INLINE AheadRow(const Matrix& m, int64_t i, bool far) : AheadRow(m.data, m.row_stride, m.dtype, i, far) {}

  FASTMETA_INLINE void to_read(int64_t k) const { ask<0>(row_ + k * size_); }
  FASTMETA_INLINE void to_write(int64_t k) const { ask<1>(row_ + k * size_); }

 private:
  template <int kWrites>
  FASTMETA_INLINE void ask(const char* p) const {
    if (far_)
      __builtin_prefetch(p, kWrites, 2);
    else
      __builtin_prefetch(p, kWrites);
  }

  const char* row_;
  int64_t size_;
  bool far_;
};

}  // namespace fastmeta::cpu
