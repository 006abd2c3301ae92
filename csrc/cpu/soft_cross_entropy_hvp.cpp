// The two maps of a direction that the second derivatives of soft cross-entropy are made of.

#include "../softmax_math.h"
#include "parallel.h"
#include "rows.h"

namespace fastmeta::cpu {

namespace {

template <class A>
FASTMETA_CLONES void hvp_rows(const HvpArgs& a, int64_t begin, int64_t end) {
  Scratch<A> rows(3, a.C);
  A *z = rows[0], *v = rows[1], *e = rows[2];
  for (int64_t i = begin; i < end; ++i) {
    const Scan<A> scan = load_row(a.logits, i, a.C, z);
    load_row(a.v, i, a.C, v);
    A ev;
    const A sum = exp_dot_row(z, scan.max, v, a.C, e, ev) + scan.poison();
    A s = 1;
    if (a.probs.data != nullptr) {
      load_row(a.probs, i, a.C, z, Padding::kZero);
      s = sum_row(z, a.C);
    }
    centred_product_row(e, s / sum, v, ev / sum, a.C, v);
    store_row(v, a.C, a.out, i);
  }
}

template <class A>
FASTMETA_CLONES void label_grad_rows(const HvpArgs& a, int64_t begin, int64_t end) {
  Scratch<A> rows(3, a.C);
  A *z = rows[0], *v = rows[1], *e = rows[2];
  for (int64_t i = begin; i < end; ++i) {
    const Scan<A> scan = load_row(a.logits, i, a.C, z);
    load_row(a.v, i, a.C, v);
    A ev;
    const A sum = exp_dot_row(z, scan.max, v, a.C, e, ev) + scan.poison();
    centred_row(v, A(1), ev / sum, a.C, v);
    store_row(v, a.C, a.out, i);
  }
}

}  // namespace

void soft_cross_entropy_hvp(const HvpArgs& a) { FASTMETA_OVER_ROWS(hvp_rows, a, a.logits.dtype, a.n); }

void soft_cross_entropy_label_grad(const HvpArgs& a) { FASTMETA_OVER_ROWS(label_grad_rows, a, a.logits.dtype, a.n); }

}  // namespace fastmeta::cpu
