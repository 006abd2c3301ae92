// Class labels: one smoothing value per class, p_y = 1 - alpha_y and alpha_y / (C - 1) for every other class.
//
//   class_loss        loss, v = w (q - p) and entropy: read z once, write v
//   class_label_step  two launches, because the new v of a row depends on every row of its class:
//                       class_terms_kernel   reads z and u: gradient term and alignment of each row
//                       class_update_kernel  sums the terms of each row's class, new alpha, loss, v, entropy: reads z
//
// One group of threads per row (launch.cuh); equations are those of softmax_math.h.
#include "reduce.cuh"
#include "vector.cuh"

namespace fastmeta::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------

// Loss, v and entropy of row i for target y (in range) and smoothing alpha; NaN where anything is bad.
template <class T, class G, class Group, class Args>
__device__ void loss_of_row(Group& group, const Args& a, int64_t i, int64_t y, acc_t<T> alpha, bool bad) {
  using A = acc_t<T>;
  using Cols = Columns<G, slot_width<T>()>;
  const T* z_row = row_of<T>(a.logits, i);
  const Cols first(z_row, a.C, group.rank());
  const int chunks = Cols::chunks(z_row, a.C);
  Piece<T, Cols> z;
  SoftmaxSum<A> q;
  A others = 0, seen = 0;  // sum_{k != y} (max - z_k) over the columns seen, and how many they are
  const auto raise = [&](A m) {
    others += seen * below(m, q.max);
    q.raise(m);
  };
  for_chunks(first, chunks, [&](const Cols& cols) {
    z.load(z_row, cols);
    raise(z.max(cols, q.max));
    z.each(cols, [&](int s, int w) {
      q.add(z.at(s, w));
      if (cols.of(s) + w != static_cast<int>(y)) {
        others += below(q.max, z.at(s, w));
        seen += 1;
      }
    });
    q.sum += z.poison(cols);
  });
  A m = q.max;
  group.max(m);
  raise(m);
  group.sum(q.sum, others);

  A weight = weight_at<A>(a.weight, i);
  bad = bad || !is_finite(q.sum) || !is_finite(alpha) || !is_finite(weight);
  if (bad) weight = quiet_nan<A>();  // and with it all of v
  if (group.leader()) {
    const A y_below = below(q.max, to_acc(z_row[y]));
    static_cast<A*>(a.loss)[i] = bad ? quiet_nan<A>() : class_loss_from(alpha, a.C, y_below, others, q.log());
    static_cast<A*>(a.entropy)[i] = bad ? quiet_nan<A>() : class_entropy(alpha, a.C);
  }
  const A over = 1 / q.sum, p_y = 1 - alpha, p_other = class_other(alpha, a.C);
  for_chunks(first, chunks, [&](const Cols& cols) {
    if constexpr (!G::kResident) z.load(z_row, cols);
    write_row(row_of<T>(a.v, i), cols, [&](int s, int w) {
      const A p = cols.of(s) + w == static_cast<int>(y) ? p_y : p_other;
      return dlogits(exp_below(z.at(s, w), q.max) * over, p, A(1), weight);
    });
  });
}

// A target out of range reads alpha and z nowhere: class 0 stands in, and the row is bad.
template <class T, class G>
__global__ void __launch_bounds__(G::kBlock) class_loss_kernel(ClassLossArgs a) {
  using A = acc_t<T>;
  FASTMETA_SHARED(shared);
  Group<A, G> group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;
  const int64_t y = index_at(a.targets, i);
  const bool out = y < 0 || y >= a.C;
  loss_of_row<T, G>(group, a, i, out ? 0 : y, value_at<A>(a.alpha, out ? 0 : y), out);
}

// workspace[i] = w_i (mean_{k != y} u_k - u_y), NaN for a bad row; workspace[n + i] = alpha_y before the step
template <class T, class U, class G>
__global__ void __launch_bounds__(G::kBlock) class_terms_kernel(ClassLabelStepArgs a) {
  using A = acc_t<T>;
  using Cols = Columns<G, slot_width<T, U>()>;
  FASTMETA_SHARED(shared);
  Group<A, G> group(shared);

  // For the second launch: untouched classes keep their alpha
  A* alpha_out = static_cast<A*>(a.alpha_out);
  if (a.alpha_in.data != a.alpha_out) {
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t c = thread; c < a.C; c += threads) alpha_out[c] = value_at<A>(a.alpha_in, c);
  }
  const int64_t i = group.row();
  if (i >= a.n) return;

  const int64_t y = index_at(a.targets, i);
  A* alignment = static_cast<A*>(a.alignment) + i;
  A* workspace = static_cast<A*>(a.workspace) + i;
  if (y < 0 || y >= a.C) {
    if (group.leader()) *workspace = *alignment = quiet_nan<A>();
    return;
  }
  const T* z_row = row_of<T>(a.logits, i);
  const U* u_row = row_of<U>(a.u, i);
  Piece<T, Cols> z;
  Piece<U, Cols> u;
  SoftmaxDot<A> q;
  A u_others = 0;  // sum_{k != y} u_k
  for_chunks(Cols(z_row, a.C, group.rank()), Cols::chunks(z_row, a.C), [&](const Cols& cols) {
    z.load(z_row, cols);
    u.load(u_row, cols);
    q.raise(z.max(cols, q.max));
    z.each(cols, [&](int s, int w) {
      q.add(z.at(s, w), u.at(s, w));
      u_others += cols.of(s) + w == static_cast<int>(y) ? A(0) : u.at(s, w);
    });
    q.sum += z.poison(cols);
  });
  A m = q.max;
  group.max(m);
  q.raise(m);
  group.sum(q.sum, q.dot, u_others);
  if (!group.leader()) return;

  const A alpha = value_at<A>(a.alpha_in, y), weight = weight_at<A>(a.weight, i), u_y = to_acc(u_row[y]);
  const A qu = q.dot / q.sum, term = class_grad(a.C, u_y, u_others, weight);
  const bool bad = !is_finite(qu) || !is_finite(alpha) || !is_finite(term);
  *alignment = bad ? quiet_nan<A>() : qu - class_dot(alpha, a.C, u_y, u_others);
  *workspace = bad ? quiet_nan<A>() : term;
  workspace[a.n] = alpha;
}

// Every row sums its class's terms for itself: n^2 reads of targets that lie in cache, but no third launch, no atomics,
// and the order (a thread's own terms in batch order, then the group's tree) is the same for all rows of a launch.
// alpha may be updated in place: the old values come from the workspace, and the first row of a class writes.
template <class T, class G>
__global__ void __launch_bounds__(G::kBlock) class_update_kernel(ClassLabelStepArgs a) {
  using A = acc_t<T>;
  FASTMETA_SHARED(shared);
  Group<A, G> group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  const int64_t y = index_at(a.targets, i);
  const A* terms = static_cast<const A*>(a.workspace);
  const bool out = y < 0 || y >= a.C;
  A sum = 0, good = 0, earlier = 0;
  for (int64_t j = group.rank(); j < a.n; j += G::kThreads) {
    if (index_at(a.targets, j) != y) continue;
    if (j < i) earlier = 1;
    if (!is_finite(terms[j])) continue;
    sum += terms[j];
    good = 1;
  }
  group.sum(sum, good, earlier);

  const bool bad = out || !is_finite(terms[i]);
  const A step = static_cast<A>(step_size(value_of(a.scale), value_of(a.label_lr)));
  const A old_alpha = out || good == 0 ? A(0) : terms[a.n + i];
  A alpha = clamp_unit(stepped(old_alpha, step, sum));
  if (!is_finite(step)) alpha = quiet_nan<A>();  // the clamp would turn an infinite step into 0 or 1
  if (group.leader()) {
    if (!out && good != 0 && earlier == 0 && is_finite(alpha)) static_cast<A*>(a.alpha_out)[y] = alpha;
    if (!is_finite(alpha)) static_cast<A*>(a.alignment)[i] = quiet_nan<A>();
  }
  loss_of_row<T, G>(group, a, i, out ? 0 : y, alpha, bad);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------

void class_loss(const ClassLossArgs& a, void* stream) {
  with_dtype(a.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_geometry<T>(a.n, a.C, max_lead<T>(a.logits), [&](auto g) {
      using G = decltype(g);
      launch<G>(class_loss_kernel<T, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes, stream, "class_loss");
    });
  });
}

void class_label_step(const ClassLabelStepArgs& a, void* stream) {
  with_dtype(a.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_tangent_dtype<T>(a.u.dtype, a.logits.dtype, [&](auto u) {
      using U = typename decltype(u)::type;
      with_streamed_geometry<T>(a.C, [&](auto g) {
        using G = decltype(g);
        // at least one block, which copies alpha also for an empty batch
        launch<G>(class_terms_kernel<T, U, G>, a, a.n > 0 ? a.n : 1, a.C, Group<acc_t<T>, G>::kSharedBytes, stream,
                  "class_label_step");
      });
    });
    with_geometry<T>(a.n, a.C, max_lead<T>(a.logits), [&](auto g) {
      using G = decltype(g);
      launch<G>(class_update_kernel<T, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes, stream, "class_label_step");
    });
  });
}

}  // namespace fastmeta::cuda
