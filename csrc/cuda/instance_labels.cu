// Instance labels: every training sample has a row of label logits l, and p = softmax(l).
//
//   instance_loss        gathers the label rows, softmax of both sides, loss, v = w (q - p) and entropy: read z and l
//                        once, write v. p is never in memory.
//   instance_label_step  the whole of step 7: label gradient, SGD step written into the table, loss and v with the new
//                        row, entropy, alignment. Reads z, u, l and writes l, v once each: 5 n C elements. Here for
//                        unique rows that fit registers, in instance_labels_streamed.cuh for all others.
//
// One group of threads per batch row (launch.cuh), the loss and the step of unique rows also on clusters of blocks;
// equations are those of softmax_math.h.
#include "instance_labels_streamed.cuh"
#include "reduce.cuh"
#include "row_rounding.cuh"
#include "vector.cuh"

namespace fastmeta::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------

template <class T, class L, class G>
__global__ void __launch_bounds__(G::kBlock) instance_loss_kernel(InstanceLossArgs a) {
  using A = acc_t<T>;
  if constexpr (!Group<A, G>::kCompiled) return;
  using Cols = Columns<G, slot_width<T, L>()>;
  FASTMETA_SHARED(shared);
  Group<A, G> group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  const int64_t r = index_at(a.index, i);
  const T* z_row = row_of<T>(a.logits, i);
  T* v_row = row_of<T>(a.v, i);
  A* loss = static_cast<A*>(a.loss) + i;
  A* entropy = static_cast<A*>(a.entropy) + i;
  const Cols first(z_row, a.C, group.rank());
  const int chunks = Cols::chunks(z_row, a.C);
  if (r < 0 || r >= a.N) {
    if (group.leader()) *loss = *entropy = quiet_nan<A>();
    return write_nan(v_row, first, chunks);
  }
  const L* l_row = row_of<L>(a.label_logits, r);
  A weight = weight_at<A>(a.weight, i);

  Piece<T, Cols> z;
  Piece<L, Cols> l;
  SoftmaxSum<A> q;
  SoftmaxBelow<A> p;
  for_chunks(first, chunks, [&](const Cols& cols) {
    z.load(z_row, cols, Fill::kLowest);
    l.load(l_row, cols, Fill::kLowest);
    const A m = z.max(cols, q.max);
    p.raise(l.max(cols, p.max), below(m, q.max));
    q.raise(m);
    z.each(cols, [&](int j, int w) {
      q.add(z.at(j, w));
      p.other += p.add(l.at(j, w)) * below(m, z.at(j, w));
    });
    q.sum += z.poison(cols);
    p.sum += l.poison(cols);
  });
  A z_max = q.max, l_max = p.max;
  group.max(z_max, l_max);
  p.raise(l_max, below(z_max, q.max));
  q.raise(z_max);
  group.sum(q.sum, p.sum, p.own, p.other);

  const bool bad = !is_finite(q.sum) || !is_finite(p.sum) || !is_finite(weight);
  if (bad) weight = quiet_nan<A>();  // and with it all of v
  if (group.leader()) {
    *loss = bad ? quiet_nan<A>() : loss_from(p.other / p.sum, A(1), log(q.sum));
    *entropy = bad ? quiet_nan<A>() : loss_from(p.own / p.sum, A(1), log(p.sum));
  }
  const A over_q = 1 / q.sum, over_p = 1 / p.sum;
  for_chunks(first, chunks, [&](const Cols& cols) {
    if constexpr (!G::kResident) {
      z.load(z_row, cols, Fill::kLowest);
      l.load(l_row, cols, Fill::kLowest);
    }
    write_row(v_row, cols, [&](int j, int w) {
      return dlogits(exp_below(z.at(j, w) - q.max) * over_q, exp_below(l.at(j, w) - p.max) * over_p, A(1), weight);
    });
  });
}

// Two blocks of a cluster on a multiprocessor, so that one loads and stores while the other computes: 128 registers for
// each thread. Three float32 operands of 32 columns leave too few of them, so u waits in shared memory for its second
// use.
template <class T, class U, class L, class G>
struct StepPlan {
  static constexpr int kBlocks = G::kCluster > 1 ? 2 : 1;
  static constexpr bool kParks = G::kCluster > 1 && sizeof(T) + sizeof(U) + sizeof(L) >= 10;
  static constexpr size_t kGroupBytes = Group<acc_t<T>, G>::kSharedBytes;
  static constexpr size_t shared_bytes() { return kGroupBytes + (kParks ? G::kBlock * G::kColumns * sizeof(U) : 0); }
  static_assert(kGroupBytes % 16 == 0 || !kParks);
};

template <class A>
__device__ void set_results(const InstanceLabelStepArgs& a, int64_t i, A loss, A entropy, A alignment) {
  static_cast<A*>(a.loss)[i] = loss;
  static_cast<A*>(a.entropy)[i] = entropy;
  static_cast<A*>(a.alignment)[i] = alignment;
}

// The usual case: rows fit registers and the caller promises that no label row comes twice.
template <class T, class U, class L, class G>
__global__ void __launch_bounds__(G::kBlock, StepPlan<T, U, L, G>::kBlocks)
    instance_label_step_resident_kernel(InstanceLabelStepArgs a) {
  static_assert(G::kResident);
  using A = acc_t<T>;
  if constexpr (!Group<A, G>::kCompiled) return;
  using Cols = Columns<G, slot_width<T, U, L>()>;
  using Plan = StepPlan<T, U, L, G>;
  FASTMETA_SHARED(shared);
  uint4* place = reinterpret_cast<uint4*>(shared + Plan::kGroupBytes) + threadIdx.x;
  Group<A, G> group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  const T* z_row = row_of<T>(a.logits, i);
  T* v_row = row_of<T>(a.v, i);
  const Cols cols(z_row, a.C, group.rank());
  const int64_t r = a.functional ? i : index_at(a.index, i);
  if (r < 0 || r >= a.N) {
    if (group.leader()) set_results(a, i, quiet_nan<A>(), quiet_nan<A>(), quiet_nan<A>());
    return write_nan(v_row, cols, 1);
  }
  L* new_row = a.functional ? row_of<L>(a.rows_out, i) : row_of<L>(a.table, r);
  const L* old_row = a.functional ? row_of<L>(a.rows_in, i) : new_row;

  // All loads leave before the first is waited for.
  Piece<T, Cols> z;
  Piece<U, Cols> u;
  Piece<L, Cols> l;
  z.load(z_row, cols, Fill::kLowest);
  l.load(old_row, cols, Fill::kLowest);
  u.load(row_of<U>(a.u, i), cols, Fill::kZero);
  A weight = weight_at<A>(a.weight, i);
  const A step = static_cast<A>(step_size(value_of(a.scale), value_of(a.label_lr))) * weight;

  // Softmax of both sides, <q, u>, <p, u>
  SoftmaxDot<A> q, p;
  q.max = z.max(cols, q.max);
  p.max = l.max(cols, p.max);
  group.max(q.max, p.max);
  z.each(cols, [&](int s, int w) {
    q.add(z.at(s, w), u.at(s, w));
    p.add(l.at(s, w), u.at(s, w));
    if (Plan::kParks && w == 0) u.template park<G::kBlock>(s, place);
  });
  q.sum += z.poison(cols);
  p.sum += l.poison(cols);
  group.sum(q.sum, q.dot, p.sum, p.dot);
  const A over_q = 1 / q.sum, over_p = 1 / p.sum;
  const A qu = q.dot * over_q, pu = p.dot * over_p;

  // The new row and its softmax; a row that turns out not finite stays as it was
  SoftmaxBelow<A> p_new;
  const RowRounding<L, G::kCluster == 1> rounding(a.rounding, a.index, i);
#pragma unroll
  for (int s = 0; s < Cols::kSlots; ++s) {
    if (cols.none(s)) break;
    if constexpr (Plan::kParks) u.template take_back<G::kBlock>(s, place);
    A next[Cols::kWidth];
#pragma unroll
    for (int w = 0; w < Cols::kWidth; ++w) {
      const A p_old = exp_below(l.at(s, w) - p.max) * over_p;
      next[w] = stepped(l.at(s, w), step, softmax_jvp(p_old, u.at(s, w), pu, A(1)));
    }
    rounding(cols.of(s), next, l.slot[s].e);
  }
  p_new.max = l.max(cols, p_new.max);
  group.max(p_new.max);
  z.each(cols, [&](int s, int w) { p_new.other += p_new.add(l.at(s, w)) * below(q.max, z.at(s, w)); });
  p_new.sum += l.poison(cols);
  group.sum(p_new.sum, p_new.own, p_new.other);
  const A over_new = 1 / p_new.sum;

  const bool bad = !is_finite(qu) || !is_finite(pu) || !is_finite(weight) || !is_finite(p_new.sum);
  if (!bad) {
    l.store(new_row, cols);
  } else {
    weight = quiet_nan<A>();  // and with it all of v
    if (a.functional) {
      l.load(row_of<L>(a.rows_in, i), cols, Fill::kLowest);
      l.store(new_row, cols);
    }
  }
  write_row(v_row, cols, [&](int s, int w) {
    return dlogits(exp_below(z.at(s, w) - q.max) * over_q, exp_below(l.at(s, w) - p_new.max) * over_new, A(1), weight);
  });
  if (group.leader()) {
    if (bad) {
      set_results(a, i, quiet_nan<A>(), quiet_nan<A>(), quiet_nan<A>());
    } else {
      set_results(a, i, loss_from(p_new.other * over_new, A(1), log(q.sum)),
                  loss_from(p_new.own * over_new, A(1), log(p_new.sum)), qu - pu);
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------

void instance_loss(const InstanceLossArgs& a, void* stream) {
  with_dtype(a.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_label_dtype<T>(a.label_logits.dtype, a.logits.dtype, [&](auto l) {
      using L = typename decltype(l)::type;
      const int lead = max_lead(a.logits);
      const bool launched = with_cluster_geometry<T>(a.C, lead, [&](auto g) {
        using G = decltype(g);
        return launch_in_clusters<G>(instance_loss_kernel<T, L, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes,
                                     stream, "instance_loss");
      });
      if (launched) return;
      with_geometry<T>(a.n, a.C, lead, [&](auto g) {
        using G = decltype(g);
        launch<G>(instance_loss_kernel<T, L, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes, stream,
                  "instance_loss");
      });
    });
  });
}

void instance_label_step(const InstanceLabelStepArgs& a, void* stream) {
  const DType label_dtype = a.functional ? a.rows_in.dtype : a.table.dtype;
  with_dtype(a.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_tangent_dtype<T>(a.u.dtype, a.logits.dtype, [&](auto u) {
      using U = typename decltype(u)::type;
      with_label_dtype<T>(label_dtype, a.logits.dtype, [&](auto l) {
        using L = typename decltype(l)::type;
        const auto streamed = [&](auto g) {
          using G = decltype(g);
          launch<G>(instance_label_step_streamed_kernel<T, U, L, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes,
                    stream, "instance_label_step");
        };
        if (!a.unique) return with_streamed_geometry<T>(a.C, streamed);
        const int lead = max_lead(a.logits);
        const bool launched = with_cluster_geometry<T>(a.C, lead, [&](auto g) {
          using G = decltype(g);
          return launch_in_clusters<G>(instance_label_step_resident_kernel<T, U, L, G>, a, a.n, a.C,
                                       StepPlan<T, U, L, G>::shared_bytes(), stream, "instance_label_step");
        });
        if (launched) return;
        with_geometry<T>(a.n, a.C, lead, [&](auto g) {
          using G = decltype(g);
          if constexpr (G::kResident) {
            launch<G>(instance_label_step_resident_kernel<T, U, L, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes,
                      stream, "instance_label_step");
          } else {
            streamed(g);
          }
        });
      });
    });
  });
}

}  // namespace fastmeta::cuda
