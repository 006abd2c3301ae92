// Row dots <a_i, b_i>: the last step of a per-sample gradient dot or norm, behind the library's matrix product.
#include "reduce.cuh"
#include "vector.cuh"

namespace fastmeta::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------

template <class T, class G>
__global__ void __launch_bounds__(G::kBlock) row_dot_kernel(RowDotArgs a) {
  using A = acc_t<T>;
  using Cols = Columns<G, slot_width<T>()>;
  FASTMETA_SHARED(shared);
  Group<A, G> group(shared);
  const int64_t i = group.row();
  if (i >= a.n) return;

  const T* x_row = row_of<T>(a.a, i);
  const T* y_row = row_of<T>(a.b, i);
  Piece<T, Cols> x, y;
  A sums[Cols::kWidth] =
      {};  // one for each column of a slot: chains of additions are shorter, and so is their rounding
  for_chunks(Cols(x_row, a.C, group.rank()), Cols::chunks(x_row, a.C), [&](const Cols& cols) {
    x.load(x_row, cols);
    y.load(y_row, cols);
    x.each(cols, [&](int s, int w) { sums[w] += x.at(s, w) * y.at(s, w); });
  });
  A sum = 0;
#pragma unroll
  for (int w = 0; w < Cols::kWidth; ++w) sum += sums[w];
  group.sum(sum);
  if (group.leader()) static_cast<A*>(a.out)[i] = sum;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------

void row_dot(const RowDotArgs& a, void* stream) {
  with_dtype(a.a.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_streamed_geometry<T>(a.C, [&](auto g) {
      using G = decltype(g);
      launch<G>(row_dot_kernel<T, G>, a, a.n, a.C, Group<acc_t<T>, G>::kSharedBytes, stream, "row_dot");
    });
  });
}

}  // namespace fastmeta::cuda
