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

// The columns of one line as they come out
template <class A>
struct Line {
  const uint8_t* source;  // the image's line; null: pixels of value 0
  bool absent;            // no such image: NaN
  Crop crop;
  const LoadImagesArgs& a;

  __device__ A at(int x, int c) const {
    if (absent) return quiet_nan<A>();
    const int width = static_cast<int>(a.width);
    const int from = source_of(crop.x + (crop.flip ? width - 1 - x : x), width, a.reflect);
    const bool inside = source != nullptr && from >= 0;
    const uint8_t pixel = inside ? source[from * static_cast<int>(a.C) + c] : uint8_t(0);
    return (static_cast<A>(pixel) - value_at<A>(a.center, c)) * value_at<A>(a.scale, c);
  }
};

template <class T, class G>
__global__ void __launch_bounds__(G::kBlock) load_images_kernel(LoadImagesArgs a) {
  using A = acc_t<T>;
  using Cols = Columns<G, slot_width<T>()>;
  const int height = static_cast<int>(a.height), C = static_cast<int>(a.C);
  const int64_t columns = a.width * a.C;
  const int64_t line_number = Group<A, G>::row();
  if (line_number >= a.n * height) return;
  const int i = static_cast<int>(line_number) / height, y = static_cast<int>(line_number) % height;

  const int64_t row = index_at(a.index, i);
  Line<A> line = {nullptr, row < 0 || row >= a.N, {}, a};
  if (!line.absent) {
    line.crop = draw_crop(a, a.step.device == nullptr ? a.step.host : *a.step.device, row);
    const int from = source_of(y + line.crop.y, height, a.reflect);
    if (from >= 0) line.source = a.images + (row * height + from) * columns;
  }

  T* out = static_cast<T*>(a.out) + line_number * columns;
  for_chunks(Cols(out, columns, Group<A, G>::rank()), Cols::chunks(out, columns), [&](const Cols& cols) {
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      Pack<T, Cols::kWidth> slot;
      const int first = cols.of(j) > 0 ? cols.of(j) : 0;
      int x = first / C, c = first % C;
#pragma unroll
      for (int w = 0; w < Cols::kWidth; ++w) {
        if (!cols.has(j, w)) continue;
        slot.e[w] = store_as<T>(line.at(x, c));
        if (++c == C) c = 0, ++x;
      }
      Piece<T, Cols>::put(slot, out, cols, j, aligned16(out + cols.start));
    }
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
