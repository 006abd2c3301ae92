// What a softmax's Jacobian makes of a direction v.
//
//   soft_cross_entropy_hvp          s q (v - <q, v>): the logit-space Hessian of soft cross-entropy times v
//   soft_cross_entropy_label_grad   v - <q, v>:       the label-gradient term of any label family
//
// One group of threads per row (launch.cuh): z and v are read once where they fit registers, out is written once.
#include "reduce.cuh"
#include "vector.cuh"

namespace fastmeta::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------

template <class P, class Group>
__device__ acc_t<P> thread_sum(const P* row, int64_t C) {
  acc_t<P> sum = 0;
#pragma unroll 4
  for (int k = Group::rank(); k < static_cast<int>(C); k += Group::kThreads) sum += to_acc(row[k]);
  return sum;
}

// This thread's share of s = sum_k p_k. The dtype of probs is told apart here, at run time: it doubles no kernel, and a
// sum of adjacent columns is coalesced without 16-byte words.
template <class A, class Group>
__device__ A thread_mass(ConstMatrix probs, int64_t i, int64_t C) {
  if constexpr (sizeof(A) == 8) return thread_sum<double, Group>(row_of<double>(probs, i), C);
  switch (probs.dtype) {
    case DType::kBFloat16:
      return thread_sum<BFloat16, Group>(row_of<BFloat16>(probs, i), C);
    case DType::kFloat16:
      return thread_sum<Float16, Group>(row_of<Float16>(probs, i), C);
    default:
      return thread_sum<float, Group>(row_of<float>(probs, i), C);
  }
}

template <class T, class V, class G, bool kLabelGrad>
__global__ void __launch_bounds__(G::kBlock) hvp_kernel(HvpArgs a) {
  using A = acc_t<T>;
  using Cols = Columns<G, slot_width<T, V>()>;
  FASTMETA_SHARED(shared);
  using GroupOf = Group<A, G>;
  GroupOf group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  const T* z_row = row_of<T>(a.logits, i);
  const V* v_row = row_of<V>(a.v, i);
  const Cols first(z_row, a.C, group.rank());
  const int chunks = Cols::chunks(z_row, a.C);
  Piece<T, Cols> z;
  Piece<V, Cols> v;
  SoftmaxDot<A> q;
  for_chunks(first, chunks, [&](const Cols& cols) {
    z.load(z_row, cols);
    v.load(v_row, cols);
    q.raise(z.max(cols, q.max));
    z.each(cols, [&](int s, int w) { q.add(z.at(s, w), v.at(s, w)); });
    q.sum += z.poison(cols);
  });
  A mass = 0;
  if (!kLabelGrad && a.probs.data != nullptr) mass = thread_mass<A, GroupOf>(a.probs, i, a.C);
  A m = q.max;
  group.max(m);
  q.raise(m);
  group.sum(q.sum, q.dot, mass);
  if (a.probs.data == nullptr) mass = 1;

  const A over = 1 / q.sum, qv = q.dot * over;
  for_chunks(first, chunks, [&](const Cols& cols) {
    if constexpr (!G::kResident) {
      if constexpr (!kLabelGrad) z.load(z_row, cols);
      v.load(v_row, cols);
    }
    write_row(row_of<V>(a.out, i), cols, [&](int s, int w) {
      if constexpr (kLabelGrad) return centred(v.at(s, w), qv);
      return softmax_jvp(exp_below(z.at(s, w), q.max) * over, v.at(s, w), qv, mass);
    });
  });
}

// ---------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------

template <bool kLabelGrad>
void launch_hvp(const HvpArgs& a, void* stream, const char* name) {
  with_dtype(a.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_tangent_dtype<T>(a.v.dtype, a.logits.dtype, [&](auto v) {
      using V = typename decltype(v)::type;
      with_geometry<T>(a.n, a.C, max_lead<T, V>(a.logits), [&](auto g) {
        using G = decltype(g);
        launch<G>(hvp_kernel<T, V, G, kLabelGrad>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes, stream, name);
      });
    });
  });
}

}  // namespace

void soft_cross_entropy_hvp(const HvpArgs& a, void* stream) { launch_hvp<false>(a, stream, "soft_cross_entropy_hvp"); }

void soft_cross_entropy_label_grad(const HvpArgs& a, void* stream) {
  launch_hvp<true>(a, stream, "soft_cross_entropy_label_grad");
}

}  // namespace fastmeta::cuda
