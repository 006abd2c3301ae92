// <a_i, b_i> for each row.

#include "parallel.h"
#include "rows.h"

namespace fastmeta::cpu {

namespace {

template <class A>
FASTMETA_CLONES void dot_rows(const RowDotArgs& a, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = Simd<A>::kLanes;
  Scratch<A> rows(2, a.C);
  const int64_t whole = a.C / kLanes * kLanes;
  for (int64_t i = begin; i < end; ++i) {
    const A* x = row_in(a.a, i, a.C, rows[0]);
    const A* y = row_in(a.b, i, a.C, rows[1]);
    A tail[2][kLanes] = {};
    for (int64_t k = whole; k < a.C; ++k) {
      tail[0][k - whole] = x[k];
      tail[1][k - whole] = y[k];
    }
    static_cast<A*>(a.out)[i] = dot_row(x, y, whole) + dot_row(tail[0], tail[1], kLanes);
  }
}

}  // namespace

void row_dot(const RowDotArgs& a) { FASTMETA_OVER_ROWS(dot_rows, a, a.a.dtype, a.n); }

}  // namespace fastmeta::cpu
