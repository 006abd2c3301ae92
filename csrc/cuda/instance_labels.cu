// Instance labels: every training sample has a row of label logits l, and p = softmax(l).
//
//   instance_loss        gathers the label rows, softmax of both sides, loss, v = w (q - p) and entropy: read z and l
//                        once, write v. p is never in memory.
//   instance_label_step  the whole of step 7: label gradient, SGD step written into the table, loss and v with the new
//                        row, entropy, alignment. Reads z, u, l and writes l, v once each: 5 n C elements.
//
// One group of threads per batch row (launch.cuh), the loss and the step of unique rows also on clusters of blocks;
// equations are those of softmax_math.h.
#include "../counter_rng.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace fastmeta::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------

// v_i = NaN, and the row is counted
template <class T, class Cols, class Group>
__device__ void skip_row(Group& group, T* v, const Cols& first, int chunks, int32_t* skipped) {
  for_chunks(first, chunks,
             [&](const Cols& cols) { write_row(v, cols, [](int, int) { return quiet_nan<acc_t<T>>(); }); });
  if (group.leader()) atomicAdd(skipped, 1);
}

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
    return skip_row(group, v_row, first, chunks, a.skipped);
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
    if (bad) atomicAdd(a.skipped, 1);
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

// How the new label row r is rounded to storage, a slot at a time. With kKeep the step and the row stay in registers;
// else they are read anew for each block, because clusters have no register to spare.
template <class L, bool kKeep>
class RowRounding {
 public:
  __device__ RowRounding(const Rounding& rounding, const IndexVector& index, int64_t i)
      : rounding_(rounding), index_(index), i_(i) {
    if constexpr (kCanDraw && kKeep) {
      if (!rounding.stochastic) return;
      step_ = step();
      row_ = row();
    }
  }

  // x: the columns from `column` on, which is negative in a slot that begins before the row
  template <int kWidth>
  __device__ void operator()(int column, const acc_t<L> (&x)[kWidth], L (&out)[kWidth]) const {
    if constexpr (kCanDraw) {
      static_assert(kWidth == 8);  // as many columns as a block has bits for
      if (rounding_.stochastic) {
        const int lead = column & 7;
        if (lead == 0) {
          const RandomBits block = bits(column >> 3);
#pragma unroll
          for (int w = 0; w < kWidth; ++w) out[w] = store_as<L>(round_stochastically(x[w], column_bits(block, w)));
          return;
        }
        // A slot off the blocks' grid reaches into the next one. One after the other: both at once spill registers.
#pragma unroll 1
        for (int begin = 0; begin <= 8; begin += 8) {
          const RandomBits block = bits((column + begin) >> 3);
#pragma unroll
          for (int w = 0; w < kWidth; ++w) {
            const int k = lead + w - begin;
            if (k >= 0 && k < 8) out[w] = store_as<L>(round_stochastically(x[w], pick(block, k)));
          }
        }
        return;
      }
    }
#pragma unroll
    for (int w = 0; w < kWidth; ++w) out[w] = store_as<L>(x[w]);
  }

 private:
  static constexpr bool kCanDraw = std::is_same_v<L, BFloat16>;

  __device__ uint64_t step() const {
    return static_cast<uint64_t>(rounding_.step.device == nullptr ? rounding_.step.host : *rounding_.step.device);
  }
  __device__ uint64_t row() const { return static_cast<uint64_t>(index_at(index_, i_)); }

  __device__ RandomBits bits(int block) const {
    return random_bits(rounding_.seed, kKeep ? step_ : step(), kKeep ? row_ : row(), static_cast<uint32_t>(block));
  }

  // column_bits by selection: an array indexed at run time would lie in local memory
  __device__ static uint32_t pick(const RandomBits& block, int k) {
    const uint32_t low = k < 2 ? block.word[0] : block.word[1], high = k < 6 ? block.word[2] : block.word[3];
    return (k < 4 ? low : high) >> 16 * (k % 2) & 0xffffu;
  }

  // of the kernel's arguments, which cost no registers
  const Rounding& rounding_;
  const IndexVector& index_;
  int64_t i_;
  uint64_t step_ = 0, row_ = 0;
};

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
    return skip_row(group, v_row, cols, 1, a.skipped);
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
      atomicAdd(a.skipped, 1);
    } else {
      set_results(a, i, loss_from(p_new.other * over_new, A(1), log(q.sum)),
                  loss_from(p_new.own * over_new, A(1), log(p_new.sum)), qu - pu);
    }
  }
}

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
    return skip_row(group, row_of<T>(a.v, i), first, chunks, a.skipped);
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
      z.load(z_row, cols, Fill::kLowest);
      u.load(u_row, cols, Fill::kZero);
      l.load(old_row, cols, Fill::kLowest);
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
    l.load(old_row, cols, Fill::kLowest);
    l.each(cols, [&](int s, int w) { total[s][w] = 0; });
    int64_t j = i;
    for (int k = 0; k < occurrences; ++k) {
      if (k > 0) j = find<GroupOf>(a.index, j + 1, a.n, r);
      if (!is_finite(loss[j])) continue;
      const A weight = weight_at<A>(a.weight, j);
      u.load(row_of<U>(a.u, j), cols, Fill::kZero);
      u.each(cols, [&](int s, int w) { total[s][w] += weight * u.at(s, w); });
    }
#pragma unroll
    for (int s = 0; s < Cols::kSlots; ++s) {
      if (cols.none(s)) break;
#pragma unroll
      for (int w = 0; w < Cols::kWidth; ++w) {
        const A p = exp_below(l.at(s, w) - l_max) * over_l;
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
      l.load(old_row, cols, Fill::kLowest);
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
      z.load(z_row, cols, Fill::kLowest);
      l.load(new_row, cols, Fill::kLowest);
      if (a.functional && j != i) l.store(row_of<L>(a.rows_out, j), cols);
      write_row(v_row, cols, [&](int s, int w) {
        const A e = exp_below(l.at(s, w) - p.max);
        distance += e * below(z_max, z.at(s, w));
        return dlogits(exp_below(z.at(s, w) - z_max) * over_q, e * over_p, A(1), weight);
      });
    });
    group.sum(distance);
    group.sync();  // every thread has read loss[j] and entropy[j], which now get their results
    if (group.leader()) {
      loss[j] = bad ? quiet_nan<A>() : loss_from(distance * over_p, A(1), log(z_sum));
      entropy[j] = bad ? quiet_nan<A>() : loss_from(p.own * over_p, A(1), log(p.sum));
      if (bad) {
        alignment[j] = quiet_nan<A>();
        atomicAdd(a.skipped, 1);
      }
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------

void instance_loss(const InstanceLossArgs& a, void* stream) {
  zero_count(a.skipped, stream);
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
      with_geometry<T>(a.C, lead, [&](auto g) {
        using G = decltype(g);
        launch<G>(instance_loss_kernel<T, L, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes, stream,
                  "instance_loss");
      });
    });
  });
}

void instance_label_step(const InstanceLabelStepArgs& a, void* stream) {
  zero_count(a.skipped, stream);
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
        with_geometry<T>(a.C, lead, [&](auto g) {
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
