// Soft cross-entropy L = sum_k p_k (lse - z_k) and its gradients in logits and probs.
//
//   forward    one pass over z and p, whatever C: sums grow chunk by chunk below the largest z seen so far, and every
//              term of the loss is positive, so that moving to a larger maximum cancels nothing.
//   backward   S = sum_k exp(z_k - lse) and s = sum_k p_k, then w (s q - p) and w (lse - z).
//
// One group of threads per row (launch.cuh); equations are those of softmax_math.h.
#include "reduce.cuh"
#include "vector.cuh"

namespace fastmeta::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------

template <class T, class P, class G>
__global__ void __launch_bounds__(G::kBlock) soft_cross_entropy_kernel(SoftCrossEntropyArgs a) {
  using A = acc_t<T>;
  using Cols = Columns<G, slot_width<T, P>()>;
  FASTMETA_SHARED(shared);
  Group<A, G> group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  const T* z_row = row_of<T>(a.logits, i);
  const P* p_row = row_of<P>(a.probs, i);
  Piece<T, Cols> z;
  Piece<P, Cols> p;
  SoftmaxSum<A> q;
  A mass = 0, distance = 0;  // sum_k p_k, sum_k p_k (max - z_k)
  const auto raise = [&](A m) {
    distance += mass * below(m, q.max);
    q.raise(m);
  };
  for_chunks(Cols(z_row, a.C, group.rank()), Cols::chunks(z_row, a.C), [&](const Cols& cols) {
    z.load(z_row, cols);
    p.load(p_row, cols);
    raise(z.max(cols, q.max));
    z.each(cols, [&](int s, int w) {
      q.add(z.at(s, w));
      mass += p.at(s, w);
      distance += p.at(s, w) * below(q.max, z.at(s, w));
    });
    q.sum += z.poison(cols);
  });
  A m = q.max;
  group.max(m);
  raise(m);
  group.sum(q.sum, mass, distance);
  if (group.leader()) {
    static_cast<A*>(a.loss)[i] = loss_from(distance, mass, q.log());
    static_cast<A*>(a.lse)[i] = q.max + q.log();
  }
}

template <class T, class P, class G>
__global__ void __launch_bounds__(G::kBlock) soft_cross_entropy_backward_kernel(SoftCrossEntropyBackwardArgs a) {
  using A = acc_t<T>;
  using Cols = Columns<G, slot_width<T, P>()>;
  FASTMETA_SHARED(shared);
  Group<A, G> group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  const T* z_row = row_of<T>(a.logits, i);
  const P* p_row = row_of<P>(a.probs, i);
  const A lse = value_at<A>(a.lse, i), grad = value_at<A>(a.grad, i);
  const Cols first(z_row, a.C, group.rank());
  const int chunks = Cols::chunks(z_row, a.C);
  Piece<T, Cols> z;
  Piece<P, Cols> p;
  if constexpr (G::kResident) z.load(z_row, first);
  if (a.grad_logits.data != nullptr) {
    A sum = 0, mass = 0;
    for_chunks(first, chunks, [&](const Cols& cols) {
      if constexpr (!G::kResident) z.load(z_row, cols);
      p.load(p_row, cols);
      z.each(cols, [&](int s, int w) {
        sum += exp_below(z.at(s, w), lse);
        mass += p.at(s, w);
      });
    });
    group.sum(sum, mass);
    const A over = 1 / sum;
    for_chunks(first, chunks, [&](const Cols& cols) {
      if constexpr (!G::kResident) {
        z.load(z_row, cols);
        p.load(p_row, cols);
      }
      write_row(row_of<T>(a.grad_logits, i), cols,
                [&](int s, int w) { return dlogits(exp_below(z.at(s, w), lse) * over, p.at(s, w), mass, grad); });
    });
  }
  if (a.grad_probs.data != nullptr) {
    for_chunks(first, chunks, [&](const Cols& cols) {
      if constexpr (!G::kResident) z.load(z_row, cols);
      write_row(row_of<P>(a.grad_probs, i), cols, [&](int s, int w) { return dprobs(lse, z.at(s, w), grad); });
    });
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------

void soft_cross_entropy(const SoftCrossEntropyArgs& a, void* stream) {
  with_dtype(a.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_label_dtype<T>(a.probs.dtype, a.logits.dtype, [&](auto p) {
      using P = typename decltype(p)::type;
      with_streamed_geometry<T>(a.C, [&](auto g) {
        using G = decltype(g);
        launch<G>(soft_cross_entropy_kernel<T, P, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes, stream,
                  "soft_cross_entropy");
      });
    });
  });
}

void soft_cross_entropy_backward(const SoftCrossEntropyBackwardArgs& a, void* stream) {
  with_dtype(a.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_label_dtype<T>(a.probs.dtype, a.logits.dtype, [&](auto p) {
      using P = typename decltype(p)::type;
      with_geometry<T>(a.n, a.C, max_lead<T, P>(a.logits), [&](auto g) {
        using G = decltype(g);
        launch<G>(soft_cross_entropy_backward_kernel<T, P, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes, stream,
                  "soft_cross_entropy_backward");
      });
    });
  });
}

}  // namespace fastmeta::cuda
