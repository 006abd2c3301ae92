// Images of a set by index: random crop, flip, normalisation. A group of threads makes one line of pixels, whose
// columns are width x channels; every thread of it draws the crop anew, which is cheaper than to meet for it.
#include "../crop.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace fastmeta::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------

template <class T, class G>
__global__ void __launch_bounds__(G::kBlock) load_images_kernel(LoadImagesArgs a) {
  using A = acc_t<T>;
  using Cols = Columns<G, slot_width<T>()>;
  const int height = static_cast<int>(a.height), width = static_cast<int>(a.width), C = static_cast<int>(a.C);
  const int64_t columns = a.width * a.C, number = Group<A, G>::row();
  if (number >= a.n * height) return;
  const int i = static_cast<int>(number) / height, y = static_cast<int>(number) % height;
  T* out = static_cast<T*>(a.out) + number * columns;
  const Cols start(out, columns, Group<A, G>::rank());

  const int64_t row = index_at(a.index, i);
  if (row < 0 || row >= a.N) {
    return write_nan(out, start, Cols::chunks(out, columns));
  }
  const Crop crop = draw_crop(a, value_of(a.step), row);
  // Without branches: what is outside is read from its mirror image, and replaced by 0 unless it is to be reflected
  const int y_from = mirrored(y + crop.y, height);
  const bool line_inside = a.reflect || y_from == y + crop.y;
  const uint8_t* line = a.images + (row * height + y_from) * columns;
  const int x_start = crop.flip ? crop.x + width - 1 : crop.x, x_step = crop.flip ? -1 : 1;

  for_chunks(start, Cols::chunks(out, columns), [&](const Cols& cols) {
    const bool words = Piece<T, Cols>::in_words(out, cols);
    for_slots(cols, [&](int j, auto each) {
      Pack<T, Cols::kWidth> slot;
      int x = (cols.of(j) + Cols::kWidth * C) / C - Cols::kWidth, c = cols.of(j) - x * C;  // rounded down
#pragma unroll
      for (int w = 0; w < Cols::kWidth; ++w) {
        // a slot may begin before the line and end behind it: such columns are not stored, but read like its ends
        const int at = x_start + x_step * (x < 0 ? 0 : x < width ? x : width - 1);
        const int from = mirrored(at, width);
        const A pixel = static_cast<A>(line[from * C + c]);
        const bool inside = line_inside && (a.reflect || from == at);
        const A value = inside ? pixel : A(0);
        slot.e[w] = store_as<T>((value - static_cast<const A*>(a.center)[c]) * static_cast<const A*>(a.scale)[c]);
        if (++c == C) c = 0, ++x;
      }
      Piece<T, Cols>::put(slot, out, cols, j, words, each);
    });
  });
}

// At most a warp per line, however long: there are lines enough.
template <class T, class F>
void with_line_geometry(int64_t columns, F f) {
  if constexpr (sizeof(T) == 8) {
    f(Streamed64{});
  } else if (columns <= StreamedTiny::kCapacity) {
    f(StreamedTiny{});
  } else {
    f(StreamedShort{});
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------

void load_images(const LoadImagesArgs& a, void* stream) {
  const int64_t lines = a.n * a.height, columns = a.width * a.C;
  if (lines > INT_MAX) throw std::runtime_error("fastmeta: load_images got too many lines of pixels for one launch");
  with_dtype(a.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_line_geometry<T>(columns, [&](auto g) {
      using G = decltype(g);
      launch<G>(load_images_kernel<T, G>, a, lines, columns, 0, stream, "load_images");
    });
  });
}

}  // namespace fastmeta::cuda
