// <a_i, b_i> for each row.

#include "parallel.h"
#include "rows.h"

namespace fastmeta::cpu {

namespace {

template <class A>
FASTMETA_CLONES void dot_rows(const RowDotArgs& a, int64_t begin, int64_t end) {
  Scratch<A> rows(2, a.C);
  for (int64_t i = begin; i < end; ++i) {
    load_row(a.a, i, a.C, rows[0], Padding::kZero);
    load_row(a.b, i, a.C, rows[1], Padding::kZero);
    static_cast<A*>(a.out)[i] = dot_row(rows[0], rows[1], a.C);
  }
}

}  // namespace

void row_dot(const RowDotArgs& a) { FASTMETA_OVER_ROWS(dot_rows, a, a.a.dtype, a.n); }

}  // namespace fastmeta::cpu
