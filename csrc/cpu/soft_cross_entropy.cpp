// Soft cross-entropy of rows, its gradients, and the two maps of a direction that its second derivatives are made of.

#include "../softmax_math.h"
#include "parallel.h"
#include "rows.h"

namespace fastmeta::cpu {

void soft_cross_entropy(const SoftCrossEntropyArgs& a) {
  with_acc(a.logits.dtype, [&](auto acc) {
    using A = decltype(acc);
    over_rows(a.n, a.C, [&](int64_t begin, int64_t end) {
      Scratch<A> rows(3, a.C);
      A *z = rows[0], *p = rows[1], *e = rows[2];
      for (int64_t i = begin; i < end; ++i) {
        load_row(a.logits, i, a.C, z);
        load_row(a.probs, i, a.C, p, Padding::kZero);
        const MaxSum<A> q = softmax_row(z, a.C, e);
        static_cast<A*>(a.loss)[i] = loss_from(below_row(p, q.max, z, a.C), sum_row(p, a.C), std::log(q.sum));
        static_cast<A*>(a.lse)[i] = q.lse();
      }
    });
  });
}

void soft_cross_entropy_backward(const SoftCrossEntropyBackwardArgs& a) {
  with_acc(a.logits.dtype, [&](auto acc) {
    using A = decltype(acc);
    over_rows(a.n, a.C, [&](int64_t begin, int64_t end) {
      Scratch<A> rows(3, a.C);
      A *z = rows[0], *p = rows[1], *e = rows[2];
      for (int64_t i = begin; i < end; ++i) {
        const A w = value<A>(a.grad, i), lse = value<A>(a.lse, i);
        load_row(a.logits, i, a.C, z);
        if (a.grad_logits.data != nullptr) {
          load_row(a.probs, i, a.C, p, Padding::kZero);
          const A sum = exp_row(z, lse, a.C, e);
          difference_row(e, w * sum_row(p, a.C) / sum, p, w, a.C, e);
          store_row(e, a.C, a.grad_logits, i);
        }
        if (a.grad_probs.data != nullptr) {
          centred_row(z, -w, lse, a.C, z);
          store_row(z, a.C, a.grad_probs, i);
        }
      }
    });
  });
}

void soft_cross_entropy_hvp(const HvpArgs& a) {
  with_acc(a.logits.dtype, [&](auto acc) {
    using A = decltype(acc);
    over_rows(a.n, a.C, [&](int64_t begin, int64_t end) {
      Scratch<A> rows(3, a.C);
      A *z = rows[0], *v = rows[1], *e = rows[2];
      for (int64_t i = begin; i < end; ++i) {
        load_row(a.logits, i, a.C, z);
        load_row(a.v, i, a.C, v);
        const A sum = softmax_row(z, a.C, e).sum;
        const A qv = dot_row(e, v, a.C) / sum;
        A s = 1;
        if (a.probs.data != nullptr) {
          load_row(a.probs, i, a.C, z, Padding::kZero);
          s = sum_row(z, a.C);
        }
        centred_product_row(e, s / sum, v, qv, a.C, v);
        store_row(v, a.C, a.out, i);
      }
    });
  });
}

void soft_cross_entropy_label_grad(const HvpArgs& a) {
  with_acc(a.logits.dtype, [&](auto acc) {
    using A = decltype(acc);
    over_rows(a.n, a.C, [&](int64_t begin, int64_t end) {
      Scratch<A> rows(3, a.C);
      A *z = rows[0], *v = rows[1], *e = rows[2];
      for (int64_t i = begin; i < end; ++i) {
        load_row(a.logits, i, a.C, z);
        load_row(a.v, i, a.C, v);
        const A sum = softmax_row(z, a.C, e).sum;
        centred_row(v, A(1), dot_row(e, v, a.C) / sum, a.C, v);
        store_row(v, a.C, a.out, i);
      }
    });
  });
}

}  // namespace fastmeta::cpu
