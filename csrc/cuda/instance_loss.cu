// Loss of instance labels: every training sample has a row of label logits l, and p = softmax(l).
//
// Gathers the label rows, softmax of both sides, loss, v = w (q - p) and entropy: read z and l once, write v. p is
// never in memory. One group of threads per batch row (launch.cuh), on clusters of blocks for long rows; equations are
// those of softmax_math.h.
#include "held.cuh"
#include "reduce.cuh"

namespace fastmeta::cuda {
namespace {

// How many blocks a multiprocessor shall hold, and their shared memory
template <class T, class L, class G>
struct LossPlan {
  using Cols = Columns<G, slot_width<T, L>()>;
  using Labels = Held<parks<G>(), L, Cols, G>;
  static constexpr int kBlocks = !parks<G>() ? 1 : G::kCluster > 1 ? 4 - (sizeof(L) == 2 ? 1 : 0) : 2;
  static constexpr size_t kGroupBytes = Group<acc_t<T>, G>::kSharedBytes;
  static constexpr size_t kSharedBytes = kGroupBytes + held_bytes<Labels>();
};

template <class T, class L, class G>
__global__ void __launch_bounds__(G::kBlock, LossPlan<T, L, G>::kBlocks) instance_loss_kernel(InstanceLossArgs a) {
  using A = acc_t<T>;
  if constexpr (!Group<A, G>::kCompiled) return;
  using Plan = LossPlan<T, L, G>;
  using Cols = typename Plan::Cols;
  FASTMETA_SHARED(shared);
  Group<A, G> group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  const T* z_row = row_of<T>(a.logits, i);
  T* v_row = row_of<T>(a.v, i);
  A* loss = static_cast<A*>(a.loss) + i;
  A* entropy = static_cast<A*>(a.entropy) + i;
  const Cols first(z_row, a.C, group.rank());
  const int chunks = Cols::chunks(z_row, a.C);
  Piece<T, Cols> z;
  if constexpr (G::kResident) z.load(z_row, first);  // leaves before the index is waited for
  const int64_t r = index_at(a.index, i);
  if (r < 0 || r >= a.N) {
    if (group.leader()) *loss = *entropy = quiet_nan<A>();
    return write_nan(v_row, first, chunks);
  }
  const L* l_row = row_of<L>(a.label_logits, r);
  A weight = weight_at<A>(a.weight, i);

  // Exponentials below the thread's own maxima take the place of their logarithms, where rows are kept and as wide
  constexpr bool kKeepsQ = G::kResident && std::is_same_v<T, A>, kKeepsP = G::kResident && std::is_same_v<L, A>;
  unsigned char* memory = shared + Plan::kGroupBytes;
  auto l = held<typename Plan::Labels>(memory);
  SoftmaxSum<A> q;
  SoftmaxBelow<A> p;
  for_chunks(first, chunks, [&](const Cols& cols) {
    l.load(l_row, cols);
    if constexpr (!G::kResident) z.load(z_row, cols);
    const A m = z.max(cols, q.max);
    l.arrive(l_row, cols);
    p.raise(max_of(l, cols, p.max), half_below(m, q.max));
    q.raise(m);
    for_slots(cols, [&](int j, auto each) {
      auto slot = l.get(j);
      each([&](int w) {
        const A e = p.add(to_acc(slot.e[w]));
        p.other += e * half_below(q.max, z.at(j, w));
        const A e_q = q.add(z.at(j, w));
        if constexpr (kKeepsQ) z.slot[j].e[w] = e_q;
        if constexpr (kKeepsP) slot.e[w] = e;
      });
      if constexpr (kKeepsP) l.set(j, slot);
    });
  });
  const A q_own = q.max, p_own = p.max;
  group.sum_below(
      q.max, p.max,
      [&](A m, A k) {
        p.raise(k, half_below(m, q.max));
        q.raise(m);
      },
      q.sum, p.sum, p.own, p.other);
  group.leave();

  const bool bad = !is_finite(q.sum) || !is_finite(p.own) || !is_finite(p.other) || !is_finite(weight);
  if (bad) weight = quiet_nan<A>();  // and with it all of v
  if (group.leader()) {
    *loss = bad ? quiet_nan<A>() : loss_from(2 * (p.other / p.sum), A(1), q.log());
    *entropy = bad ? quiet_nan<A>() : loss_from(2 * (p.own / p.sum), A(1), p.log());
  }
  const A over_q = (kKeepsQ ? change_of_maximum(q_own, q.max) : A(1)) / q.sum;
  const A over_p = (kKeepsP ? change_of_maximum(p_own, p.max) : A(1)) / p.sum;
  for_chunks(first, chunks, [&](const Cols& cols) {
    if constexpr (!G::kResident) {
      z.load(z_row, cols);
      l.load(l_row, cols);
    }
    write_slots(v_row, cols, [&](int j) {
      return [&, j, slot = l.get(j)](int w) {
        const A e_q = kKeepsQ ? z.at(j, w) : exp_below(z.at(j, w), q.max);
        const A e_p = kKeepsP ? to_acc(slot.e[w]) : exp_below(to_acc(slot.e[w]), p.max);
        return dlogits(e_q * over_q, e_p * over_p, A(1), weight);
      };
    });
  });
}

}  // namespace

void instance_loss(const InstanceLossArgs& a, void* stream) {
  with_dtype(a.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_label_dtype<T>(a.label_logits.dtype, a.logits.dtype, [&](auto l) {
      using L = typename decltype(l)::type;
      const int lead = max_lead<T, L>(a.logits);
      const bool launched = with_cluster_geometry<T>(a.C, lead, [&](auto g) {
        using G = decltype(g);
        return launch_in_clusters<G>(instance_loss_kernel<T, L, G>, a, a.n, a.C, LossPlan<T, L, G>::kSharedBytes,
                                     stream, "instance_loss");
      });
      if (launched) return;
      with_geometry<T>(a.n, a.C, lead, [&](auto g) {
        using G = decltype(g);
        launch<G>(instance_loss_kernel<T, L, G>, a, a.n, a.C, LossPlan<T, L, G>::kSharedBytes, stream, "instance_loss");
      });
    });
  });
}

}  // namespace fastmeta::cuda
