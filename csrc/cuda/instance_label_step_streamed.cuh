// The step of instance labels for rows that are read again, part by part: rows beyond the registers of a group, and
// batches that may hold a label row several times.
#pragma once

#include "reduce.cuh"
#include "row_rounding.cuh"
#include "vector.cuh"

namespace fastmeta::cuda {

// The first j in [from, to) with index_j = r, or -1. A group looks at as many rows at a time as it has lanes; the warps
// of a larger group do the same work, and so agree without a barrier. A batch costs n^2 reads of an index that lies in
// cache. Rejected: sorting the index first (more launches), a hash table (atomics, memory of unknown size).
template <class Group>
__device__ int64_t find(IndexVector index, int64_t from, int64_t to, int64_t r) {
  for (int64_t base = from; base < to; base += Group::kLanes) {
    const int64_t j = base + Group::lane();
    const unsigned found = Group::ballot(j < to && index_at(index, j) == r);
    if (found != 0) return base + __ffs(static_cast<int>(found)) - 1;
  }
  return -1;
}

// Any row length, any index. Where index holds a row several times, the group of its first occurrence *owns* the label
// row and does everything for all of them, and the other groups leave at once: nobody can read a row that somebody else
// is writing, and sums run in batch order. The gradient is linear in u, so an owner needs U = sum_j w_j u_j, made chunk
// by chunk, and <p, U> = sum_j w_j <p, u_j>. Rows are read again in each part; short ones then come from the L1 cache.
// One block per multiprocessor is asked for because ptxas would spill six registers to reach a fifth.
template <class T, class U, class L, class G>
__global__ void __launch_bounds__(G::kBlock, 1) instance_label_step_streamed_kernel(InstanceLabelStepArgs a) {
  using A = acc_t<T>;
  using Cols = Columns<G, slot_width<T, U, L>()>;
  FASTMETA_SHARED(shared);
  using GroupOf = Group<A, G>;
  GroupOf group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  A* loss = static_cast<A*>(a.loss);
  A* entropy = static_cast<A*>(a.entropy);
  A* alignment = static_cast<A*>(a.alignment);
  const Cols first(row_of<T>(a.logits, i), a.C, group.rank());
  const int chunks = Cols::chunks(row_of<T>(a.logits, i), a.C);
  const int64_t r = index_at(a.index, i);
  if (!a.functional && (r < 0 || r >= a.N)) {
    if (group.leader()) loss[i] = entropy[i] = alignment[i] = quiet_nan<A>();
    return write_nan(row_of<T>(a.v, i), first, chunks);
  }
  if (!a.unique && find<GroupOf>(a.index, 0, i, r) >= 0) return;
  L* new_row = a.functional ? row_of<L>(a.rows_out, i) : row_of<L>(a.table, r);
  const L* old_row = a.functional ? row_of<L>(a.rows_in, i) : new_row;

  // 1. Every occurrence: softmax of its logits, <q, u>, <p, u>. There may be any number of them, so what the later
  //    parts need is kept in the results' own memory: loss[j] = max z_j, NaN for a bad row, entropy[j] = sum of exp.
  Piece<T, Cols> z;
  Piece<U, Cols> u;
  Piece<L, Cols> l;
  A centre = 0;            // <p, U>
  A l_max = 0, l_sum = 1;  // of the old row
  int occurrences = 0, good = 0;
  for (int64_t j = i; j >= 0; j = a.unique ? -1 : find<GroupOf>(a.index, j + 1, a.n, r)) {
    const T* z_row = row_of<T>(a.logits, j);
    const U* u_row = row_of<U>(a.u, j);
    const A weight = weight_at<A>(a.weight, j);
    SoftmaxDot<A> q, p;
    for_chunks(first, chunks, [&](const Cols& cols) {
      z.load(z_row, cols);
      u.load(u_row, cols);
      l.load(old_row, cols);
      q.raise(z.max(cols, q.max));
      p.raise(l.max(cols, p.max));
      z.each(cols, [&](int s, int w) {
        q.add(z.at(s, w), u.at(s, w));
        p.add(l.at(s, w), u.at(s, w));
      });
      q.sum += z.poison(cols);
      p.sum += l.poison(cols);
    });
    A q_max = q.max, p_max = p.max;
    group.max(q_max, p_max);
    q.raise(q_max);
    p.raise(p_max);
    group.sum(q.sum, q.dot, p.sum, p.dot);

    const A qu = q.dot / q.sum, pu = p.dot / p.sum;
    const bool bad = !is_finite(qu) || !is_finite(pu) || !is_finite(weight);
    l_max = p.max;
    l_sum = p.sum;
    if (group.leader()) {
      alignment[j] = bad ? quiet_nan<A>() : qu - pu;
      loss[j] = bad ? quiet_nan<A>() : q.max;
      entropy[j] = q.sum;
    }
    ++occurrences;
    if (!bad) {
      ++good;
      centre += weight * pu;
    }
  }
  group.sync();  // what the leader wrote is read by all

  // 2. The new row's softmax. Nothing is written yet: a row that turns out not finite stays as it was.
  const A step = static_cast<A>(step_size(value_of(a.scale), value_of(a.label_lr)));
  const A over_l = 1 / l_sum;
  const RowRounding<L, true> rounding(a.rounding, a.index, i);
  const auto load_new_row = [&](const Cols& cols) {
    A total[Cols::kSlots][Cols::kWidth];  // U, then the new row
    l.load(old_row, cols);
    l.each(cols, [&](int s, int w) { total[s][w] = 0; });
    int64_t j = i;
    for (int k = 0; k < occurrences; ++k) {
      if (k > 0) j = find<GroupOf>(a.index, j + 1, a.n, r);
      if (!is_finite(loss[j])) continue;
      const A weight = weight_at<A>(a.weight, j);
      u.load(row_of<U>(a.u, j), cols);
      u.each(cols, [&](int s, int w) { total[s][w] += weight * u.at(s, w); });
    }
#pragma unroll
    for (int s = 0; s < Cols::kSlots; ++s) {
      if (cols.none(s)) break;
#pragma unroll
      for (int w = 0; w < Cols::kWidth; ++w) {
        const A p = exp_below(l.at(s, w), l_max) * over_l;
        total[s][w] = stepped(l.at(s, w), step, softmax_jvp(p, total[s][w], centre, A(1)));
      }
      rounding(cols.of(s), total[s], l.slot[s].e);
    }
  };
  SoftmaxBelow<A> p;
  for_chunks(first, chunks, [&](const Cols& cols) {
    load_new_row(cols);
    p.raise(l.max(cols, p.max), A(0));
    l.each(cols, [&](int s, int w) { p.add(l.at(s, w)); });
    p.sum += l.poison(cols);
  });
  A p_max = p.max;
  group.max(p_max);
  p.raise(p_max, A(0));
  group.sum(p.sum, p.own);
  const bool row_good = good > 0 && is_finite(p.sum);

  // 3. Write the row once. A thread reads and writes its own columns only, in all parts.
  for_chunks(first, row_good || a.functional ? chunks : 0, [&](const Cols& cols) {
    if (row_good) {
      load_new_row(cols);
    } else {
      l.load(old_row, cols);
    }
    l.store(new_row, cols);
  });

  // 4. Every occurrence: loss, v and entropy with the new row.
  const A over_p = 1 / p.sum;
  int64_t j = i;
  for (int k = 0; k < occurrences; ++k) {
    if (k > 0) j = find<GroupOf>(a.index, j + 1, a.n, r);
    const T* z_row = row_of<T>(a.logits, j);
    T* v_row = row_of<T>(a.v, j);
    const A z_max = loss[j], z_sum = entropy[j], over_q = 1 / z_sum;
    const bool bad = !row_good || !is_finite(z_max);
    const A weight = bad ? quiet_nan<A>() : weight_at<A>(a.weight, j);
    A distance = 0;  // sum_k exp(l_k - max l) (max z - z_k)
    for_chunks(first, chunks, [&](const Cols& cols) {
      z.load(z_row, cols);
      l.load(new_row, cols);
      if (a.functional && j != i) l.store(row_of<L>(a.rows_out, j), cols);
      write_row(v_row, cols, [&](int s, int w) {
        const A e = exp_below(l.at(s, w), p.max);
        distance += e * below(z_max, z.at(s, w));
        return dlogits(exp_below(z.at(s, w), z_max) * over_q, e * over_p, A(1), weight);
      });
    });
    group.sum(distance);
    group.sync();  // every thread has read loss[j] and entropy[j], which now get their results
    if (group.leader()) {
      loss[j] = bad ? quiet_nan<A>() : loss_from(distance * over_p, A(1), log_sum(z_sum, z_max));
      entropy[j] = bad ? quiet_nan<A>() : loss_from(2 * (p.own * over_p), A(1), p.log());
      if (bad) alignment[j] = quiet_nan<A>();
    }
  }
}

}  // namespace fastmeta::cuda
