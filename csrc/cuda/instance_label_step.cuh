// The step of instance labels: label gradient, SGD step written into the table, loss and v with the new row, entropy,
// alignment. Reads z, u, l and writes l, v once each: 5 n C elements.
//
// Here for unique rows that fit registers and shared memory, in instance_label_step_streamed.cuh for all others. One
// group of threads per batch row (launch.cuh), on clusters of blocks for long rows; equations are those of
// softmax_math.h.
#pragma once

#include "held.cuh"
#include "instance_label_step_streamed.cuh"
#include "reduce.cuh"
#include "row_rounding.cuh"

namespace fastmeta::cuda {

// How many blocks a multiprocessor shall hold, and their shared memory
template <class T, class U, class L, class G>
struct StepPlan {
  using Cols = Columns<G, slot_width<T, U, L>()>;
  using Tangents = Held<parks<G>(), U, Cols, G>;
  using Labels = Held<parks<G>(), L, Cols, G>;
  // one block less where rows are rounded with draws, which take registers
  static constexpr int kBlocks = !parks<G>() ? 1 : (G::kCluster > 1 ? 3 : 2) - (sizeof(L) == 2 ? 1 : 0);
  static constexpr size_t kGroupBytes = Group<acc_t<T>, G>::kSharedBytes;
  static constexpr size_t kSharedBytes = kGroupBytes + held_bytes<Tangents>() + held_bytes<Labels>();
};

template <class A>
__device__ void set_results(const InstanceLabelStepArgs& a, int64_t i, A loss, A entropy, A alignment) {
  static_cast<A*>(a.loss)[i] = loss;
  static_cast<A*>(a.entropy)[i] = entropy;
  static_cast<A*>(a.alignment)[i] = alignment;
}

// The usual case: rows fit registers and shared memory, and the caller promises that no label row comes twice.
template <class T, class U, class L, class G>
__global__ void __launch_bounds__(G::kBlock, StepPlan<T, U, L, G>::kBlocks)
    instance_label_step_resident_kernel(InstanceLabelStepArgs a) {
  static_assert(G::kResident);
  using A = acc_t<T>;
  if constexpr (!Group<A, G>::kCompiled) return;
  using Plan = StepPlan<T, U, L, G>;
  using Cols = typename Plan::Cols;
  FASTMETA_SHARED(shared);
  Group<A, G> group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  const T* z_row = row_of<T>(a.logits, i);
  T* v_row = row_of<T>(a.v, i);
  const Cols cols(z_row, a.C, group.rank());

  // All loads leave before the first is waited for, those that need no index before it is waited for.
  unsigned char* memory = shared + Plan::kGroupBytes;
  Piece<T, Cols> z;
  auto u = held<typename Plan::Tangents>(memory);
  auto l = held<typename Plan::Labels>(memory);
  z.load(z_row, cols);
  u.load(row_of<U>(a.u, i), cols);
  const int64_t r = a.functional ? i : index_at(a.index, i);
  if (r < 0 || r >= a.N) {
    if (group.leader()) set_results(a, i, quiet_nan<A>(), quiet_nan<A>(), quiet_nan<A>());
    return write_nan(v_row, cols, 1);
  }
  L* new_row = a.functional ? row_of<L>(a.rows_out, i) : row_of<L>(a.table, r);
  const L* old_row = a.functional ? row_of<L>(a.rows_in, i) : new_row;
  l.load(old_row, cols);
  A weight = weight_at<A>(a.weight, i);
  const A step = static_cast<A>(step_size(value_of(a.scale), value_of(a.label_lr))) * weight;

  // Softmax of both sides, <q, u>, <p, u>
  SoftmaxDot<A> q, p;
  q.max = z.max(cols, q.max);
  u.arrive(row_of<U>(a.u, i), cols);
  l.arrive(old_row, cols);
  p.max = max_of(l, cols, p.max);
  for_slots(cols, [&](int j, auto each) {
    const auto l_slot = l.get(j);
    const auto u_slot = u.get(j);
    each([&](int w) {
      q.add(z.at(j, w), to_acc(u_slot.e[w]));
      p.add(to_acc(l_slot.e[w]), to_acc(u_slot.e[w]));
    });
  });
  group.sum_below(
      q.max, p.max,
      [&](A m, A k) {
        q.raise(m);
        p.raise(k);
      },
      q.sum, q.dot, p.sum, p.dot);
  const A over_q = 1 / q.sum, over_p = 1 / p.sum;
  const A qu = q.dot * over_q, pu = p.dot * over_p;

  // The new row and its softmax; a row that turns out not finite stays as it was
  SoftmaxBelow<A> p_new;
  const RowRounding<L, !parks<G>()> rounding(a.rounding, a.index, i);
  for_slots(cols, [&](int j, auto each) {
    auto slot = l.get(j);
    const auto u_slot = u.get(j);
    A next[Cols::kWidth] = {};
    each([&](int w) {
      const A l_old = to_acc(slot.e[w]), p_old = exp_below(l_old, p.max) * over_p;
      next[w] = stepped(l_old, step, softmax_jvp(p_old, to_acc(u_slot.e[w]), pu, A(1)));
    });
    rounding(cols.of(j), next, slot.e);
    l.set(j, slot);
    each([&](int w) { p_new.max = fmax(p_new.max, to_acc(slot.e[w])); });
  });
  // Its exponentials below the thread's own maximum take the place of u, where that is as wide
  constexpr bool kKeepsNew = std::is_same_v<U, A>;
  for_slots(cols, [&](int j, auto each) {
    const auto slot = l.get(j);
    [[maybe_unused]] typename decltype(u)::Slot kept;
    each([&](int w) {
      const A e = p_new.add(to_acc(slot.e[w]));
      p_new.other += e * half_below(q.max, z.at(j, w));
      if constexpr (kKeepsNew) kept.e[w] = e;
    });
    if constexpr (kKeepsNew) u.set(j, kept);
  });
  const A new_own = p_new.max;
  group.sum_below(p_new.max, [&](A m) { p_new.raise(m, A(0)); }, p_new.sum, p_new.own, p_new.other);
  group.leave();

  const bool bad =
      !is_finite(qu) || !is_finite(pu) || !is_finite(weight) || !is_finite(p_new.own) || !is_finite(p_new.other);
  if (!bad) {
    l.store(new_row, cols);
  } else {
    weight = quiet_nan<A>();  // and with it all of v
    if (a.functional) copy_row(row_of<L>(a.rows_in, i), new_row, cols);
  }
  const A over_new = 1 / p_new.sum, over_kept = change_of_maximum(new_own, p_new.max) * over_new;
  write_slots(v_row, cols, [&](int j) {
    return [&, j, l_slot = l.get(j), kept = u.get(j)](int w) {
      const A p_k = kKeepsNew ? to_acc(kept.e[w]) * over_kept : exp_below(to_acc(l_slot.e[w]), p_new.max) * over_new;
      return dlogits(exp_below(z.at(j, w), q.max) * over_q, p_k, A(1), weight);
    };
  });
  if (group.leader()) {
    if (bad) {
      set_results(a, i, quiet_nan<A>(), quiet_nan<A>(), quiet_nan<A>());
    } else {
      set_results(a, i, loss_from(2 * (p_new.other * over_new), A(1), q.log()),
                  loss_from(2 * (p_new.own * over_new), A(1), p_new.log()), qu - pu);
    }
  }
}

template <class T, class U, class L, class G>
void launch_resident(const InstanceLabelStepArgs& a, void* stream) {
  launch<G>(instance_label_step_resident_kernel<T, U, L, G>, a, a.n, a.C, StepPlan<T, U, L, G>::kSharedBytes, stream,
            "instance_label_step");
}

// For logits of type T
template <class T>
void label_step(const InstanceLabelStepArgs& a, void* stream) {
  const DType label_dtype = a.functional ? a.rows_in.dtype : a.table.dtype;
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
      const int lead = max_lead<T, U, L>(a.logits);
      const bool launched = with_cluster_geometry<T>(a.C, lead, [&](auto g) {
        using G = decltype(g);
        return launch_in_clusters<G>(instance_label_step_resident_kernel<T, U, L, G>, a, a.n, a.C,
                                     StepPlan<T, U, L, G>::kSharedBytes, stream, "instance_label_step");
      });
      if (launched) return;
      with_geometry<T>(a.n, a.C, lead, [&](auto g) {
        using G = decltype(g);
        if constexpr (G::kResident) {
          launch_resident<T, U, L, G>(a, stream);
        } else {
          streamed(g);
        }
      });
    });
  });
}
}  // namespace fastmeta::cuda
