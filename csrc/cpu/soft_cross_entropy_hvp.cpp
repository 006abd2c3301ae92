// The two maps of a direction that the second derivatives of soft cross-entropy are made of.

#include "../softmax_math.h"
#include "parallel.h"
#include "rows.h"

namespace fastmeta::cpu {

namespace {

// v - <q, v> of each row, times s q where kCurved
template <class V, bool kCurved>
FASTMETA_INLINE void centred_rows(const HvpArgs& a, int64_t begin, int64_t end) {
  using A = scalar_t<V>;
  const int64_t C = a.C;
  Scratch<A> rows(3, C);
  A* e = rows[2];
  const bool far = overflow_cache(6, C, a.logits.dtype);  // z, v, e, the result, the next z and v
  for (int64_t i = begin; i < end; ++i) {
    const A *z = row_in(a.logits, i, C, rows[0]), *v = row_in(a.v, i, C, rows[1]);
    const Scan<A> scan = scan_row<V>(z, C);
    const int64_t next = i + 1 < end ? i + 1 : i;
    const AheadRow next_z(a.logits, next, far), next_v(a.v, next, far), result(a.out, i, far);
    Sum<V> e_sum, ev;
    sweep<V>(
        C,
        FASTMETA_BODY(k, lanes) {
          next_z.to_read(k);
          next_v.to_read(k);
          result.to_write(k);
          const Vec<V> y = keep<V>(exp<V>(load<V>(z + k, lanes) - scan.max), lanes);
          if constexpr (kCurved) store<V>(e + k, y);
          e_sum += y;
          ev += y * load<V>(v + k, lanes);
        },
        e_sum, ev);
    const A sum = e_sum.value() + scan.poison(), mean = ev.value() / sum;
    const RowWriter<V> out(a.out, i, C, e);
    if constexpr (kCurved) {
      // z is no longer needed, nor is its place
      const A s = a.probs.data != nullptr ? sum_row<V>(row_in(a.probs, i, C, rows[0]), C) : A(1);
      const A f = s / sum;
      sweep<V>(C, FASTMETA_BODY(k, lanes) { out(k, load<V>(e + k) * f * (load<V>(v + k, lanes) - mean), lanes); });
    } else {
      sweep<V>(C, FASTMETA_BODY(k, lanes) { out(k, load<V>(v + k, lanes) - mean, lanes); });
    }
    out.finish();
  }
}

template <class V>
FASTMETA_INLINE void hvp_rows(const HvpArgs& a, int64_t begin, int64_t end) {
  centred_rows<V, true>(a, begin, end);
}

template <class V>
FASTMETA_INLINE void label_grad_rows(const HvpArgs& a, int64_t begin, int64_t end) {
  centred_rows<V, false>(a, begin, end);
}

}  // namespace

void soft_cross_entropy_hvp(const HvpArgs& a) { FASTMETA_OVER_ROWS(hvp_rows, a, a.logits.dtype, a.n); }

void soft_cross_entropy_label_grad(const HvpArgs& a) { FASTMETA_OVER_ROWS(label_grad_rows, a, a.logits.dtype, a.n); }

}  // namespace fastmeta::cpu
