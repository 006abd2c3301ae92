// Soft cross-entropy of rows and its gradients.

#include "../softmax_math.h"
#include "parallel.h"
#include "rows.h"

namespace fastmeta::cpu {

namespace {

template <class A>
FASTMETA_CLONES void forward_rows(const SoftCrossEntropyArgs& a, int64_t begin, int64_t end) {
  const int64_t C = a.C;
  Scratch<A> rows(2, C);
  A *z = rows[0], *p = rows[1];
  for (int64_t i = begin; i < end; ++i) {
    RowLoader<A> z_in(a.logits, i, C, z), p_in(a.probs, i, C, p);
    load_rows<A>(C, z_in, p_in);
    const Scan<A> scan = z_in.result();
    Sum<A> sum, below, s;
    sweep<A>(
        C,
        FASTMETA_BODY(k) {
          const Vec<A> d = load(z + k) - scan.max, x = below_end<A>(load(p + k), k, C);
          sum += below_end<A>(exp<A>(d), k, C);
          below += x * -d;
          s += x;
        },
        sum, below, s);
    const A log_sum = std::log(sum.value()) + scan.poison();
    static_cast<A*>(a.loss)[i] = loss_from(below.value(), s.value(), log_sum);
    static_cast<A*>(a.lse)[i] = scan.max + log_sum;
  }
}

template <class A>
FASTMETA_CLONES void backward_rows(const SoftCrossEntropyBackwardArgs& a, int64_t begin, int64_t end) {
  const int64_t C = a.C;
  Scratch<A> rows(3, C);
  A *z = rows[0], *p = rows[1], *e = rows[2];
  for (int64_t i = begin; i < end; ++i) {
    const A w = value<A>(a.grad, i), lse = value<A>(a.lse, i);
    RowLoader<A> z_in(a.logits, i, C, z);
    if (a.grad_logits.data != nullptr) {
      RowLoader<A> p_in(a.probs, i, C, p);
      load_rows<A>(C, z_in, p_in);
      Sum<A> sum, s;
      sweep<A>(
          C,
          FASTMETA_BODY(k) {
            const Vec<A> y = below_end<A>(exp<A>(load(z + k) - lse), k, C);
            store(e + k, y);
            sum += y;
            s += below_end<A>(load(p + k), k, C);
          },
          sum, s);
      const A f = w * s.value() / (sum.value() + z_in.result().poison());
      const RowWriter<A> out(a.grad_logits, i, C, e);
      sweep<A>(C, FASTMETA_BODY(k) { out(k, load(e + k) * f - load(p + k) * w); });
      out.finish();
    } else {
      load_rows<A>(C, z_in);
    }
    if (a.grad_probs.data != nullptr) {
      const RowWriter<A> out(a.grad_probs, i, C, z);
      sweep<A>(C, FASTMETA_BODY(k) { out(k, (load(z + k) - lse) * -w); });
      out.finish();
    }
  }
}

}  // namespace

void soft_cross_entropy(const SoftCrossEntropyArgs& a) { FASTMETA_OVER_ROWS(forward_rows, a, a.logits.dtype, a.n); }

void soft_cross_entropy_backward(const SoftCrossEntropyBackwardArgs& a) {
  FASTMETA_OVER_ROWS(backward_rows, a, a.logits.dtype, a.n);
}

}  // namespace fastmeta::cpu
