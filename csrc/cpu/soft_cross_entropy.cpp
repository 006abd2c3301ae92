// Soft cross-entropy of rows and its gradients.

#include "soft_cross_entropy.h"

#include "../softmax_math.h"
#include "parallel.h"
#include "rows.h"

namespace fastmeta::cpu {

namespace {

// `grad`: where weight (s q - p) goes, or nullptr
template <class V>
FASTMETA_INLINE void loss_rows(const SoftCrossEntropyArgs& a, const Matrix* grad, scalar_t<V> weight, int64_t begin,
                               int64_t end) {
  using A = scalar_t<V>;
  const int64_t C = a.C;
  Scratch<A> rows(2, C);
  const bool far = overflow_cache(5, C, a.logits.dtype);  // z, p, the gradient, the next z and p
  for (int64_t i = begin; i < end; ++i) {
    const A *z = row_in(a.logits, i, C, rows[0]), *p = row_in(a.probs, i, C, rows[1]);
    const Scan<A> scan = scan_row<V>(z, C);
    const int64_t next = i + 1 < end ? i + 1 : i;
    const AheadRow next_z(a.logits, next, far), next_p(a.probs, next, far);
    A* const e = grad == nullptr ? nullptr : static_cast<A*>(grad->data) + i * grad->row_stride;
    Sum<V> sum, below, s;
    sweep<V>(
        C,
        FASTMETA_BODY(k, lanes) {
          next_z.to_read(k);
          next_p.to_read(k);
          const Vec<V> d = load<V>(z + k, lanes) - scan.max, x = load<V>(p + k, lanes);
          const Vec<V> y = keep<V>(exp<V>(d), lanes);
          if (e != nullptr) store<V>(e + k, y, lanes);
          sum += y;
          below += x * -d;
          s += x;
        },
        sum, below, s);
    const A total = sum.value(), log_sum = std::log(total) + scan.poison();
    static_cast<A*>(a.loss)[i] = loss_from(below.value(), s.value(), log_sum);
    static_cast<A*>(a.lse)[i] = scan.max + log_sum;
    if (e == nullptr) continue;
    const A f = weight * s.value() / (total + scan.poison());
    sweep<V>(
        C, FASTMETA_BODY(k, lanes) {
          store<V>(e + k, load<V>(e + k, lanes) * f - load<V>(p + k, lanes) * weight, lanes);
        });
  }
}

template <class V>
FASTMETA_INLINE void forward_rows(const SoftCrossEntropyArgs& a, int64_t begin, int64_t end) {
  loss_rows<V>(a, nullptr, scalar_t<V>(1), begin, end);
}

template <class V>
FASTMETA_INLINE void with_grad_rows(const SoftCrossEntropyWithGradArgs& a, int64_t begin, int64_t end) {
  loss_rows<V>(a.forward, &a.grad_logits, static_cast<scalar_t<V>>(a.weight), begin, end);
}

template <class V>
FASTMETA_INLINE void backward_rows(const SoftCrossEntropyBackwardArgs& a, int64_t begin, int64_t end) {
  using A = scalar_t<V>;
  const int64_t C = a.C;
  Scratch<A> rows(3, C);
  A* e = rows[2];
  const bool far = overflow_cache(6, C, a.logits.dtype);  // z, p, e, the result, the next z and p
  for (int64_t i = begin; i < end; ++i) {
    const A w = value<A>(a.grad, i), lse = value<A>(a.lse, i);
    const A* z = row_in(a.logits, i, C, rows[0]);
    if (a.grad_logits.data != nullptr) {
      const A* p = row_in(a.probs, i, C, rows[1]);
      const int64_t next = i + 1 < end ? i + 1 : i;
      const AheadRow next_z(a.logits, next, far), next_p(a.probs, next, far), result(a.grad_logits, i, far);
      Sum<V> sum, s, zero;
      sweep<V>(
          C,
          FASTMETA_BODY(k, lanes) {
            next_z.to_read(k);
            next_p.to_read(k);
            result.to_write(k);
            const Vec<V> x = load<V>(z + k, lanes), y = keep<V>(exp<V>(x - lse), lanes);
            store<V>(e + k, y);
            sum += y;
            s += load<V>(p + k, lanes);
            zero += x * A(0);  // 0, or NaN where z is not finite
          },
          sum, s, zero);
      const A f = w * s.value() / (sum.value() + zero.value());
      const RowWriter<V> out(a.grad_logits, i, C, e);
      sweep<V>(C, FASTMETA_BODY(k, lanes) { out(k, load<V>(e + k) * f - load<V>(p + k, lanes) * w, lanes); });
      out.finish();
    }
    if (a.grad_probs.data != nullptr) {
      const RowWriter<V> out(a.grad_probs, i, C, e);
      sweep<V>(C, FASTMETA_BODY(k, lanes) { out(k, (load<V>(z + k, lanes) - lse) * -w, lanes); });
      out.finish();
    }
  }
}

}  // namespace

void soft_cross_entropy(const SoftCrossEntropyArgs& a) { FASTMETA_OVER_ROWS(forward_rows, a, a.logits.dtype, a.n); }

void soft_cross_entropy_with_grad(const SoftCrossEntropyWithGradArgs& a) {
  FASTMETA_OVER_ROWS(with_grad_rows, a, a.forward.logits.dtype, a.forward.n);
}

void soft_cross_entropy_backward(const SoftCrossEntropyBackwardArgs& a) {
  FASTMETA_OVER_ROWS(backward_rows, a, a.logits.dtype, a.n);
}

}  // namespace fastmeta::cpu
