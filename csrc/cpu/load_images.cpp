// Images of a set by index: random crop, flip, normalisation. A line of pixels is put together as bytes, then widened.

#include <algorithm>

#include "../crop.h"
#include "parallel.h"

namespace fastmeta::cpu {

namespace {

template <int kChannels>
FASTMETA_INLINE void reverse_pixels(const uint8_t* from, int width, uint8_t* to) {
  for (int x = 0; x < width; ++x) std::memcpy(to + x * kChannels, from + (width - 1 - x) * kChannels, kChannels);
}

FASTMETA_INLINE void reverse_line(const uint8_t* from, int width, int C, uint8_t* to) {
  if (C == 1) return reverse_pixels<1>(from, width, to);
  if (C == 3) return reverse_pixels<3>(from, width, to);
  for (int x = 0; x < width; ++x) std::memcpy(to + x * C, from + (width - 1 - x) * C, C);
}

// Line y of the crop, where the image has it: not flipped yet
FASTMETA_INLINE void crop_line(const uint8_t* source, const LoadImagesArgs& a, const Crop& crop, uint8_t* line) {
  const int width = static_cast<int>(a.width), C = static_cast<int>(a.C);
  const int first = std::max(0, -crop.x), last = std::min(width, width - crop.x);  // columns inside the image
  std::memcpy(line + first * C, source + (first + crop.x) * C, (last - first) * C);
  const auto outside = [&](int x) __attribute__((always_inline)) {
    if (a.reflect)
      std::memcpy(line + x * C, source + mirrored(x + crop.x, width) * C, C);
    else
      std::memset(line + x * C, 0, C);
  };
  for (int x = 0; x < first; ++x) outside(x);
  for (int x = last; x < width; ++x) outside(x);
}

template <class T>
FASTMETA_INLINE void normalise(const uint8_t* __restrict from, const acc_t<T>* __restrict center,
                               const acc_t<T>* __restrict scale, int64_t count, T* __restrict to) {
  for (int64_t k = 0; k < count; ++k) to[k] = from_acc<T>((static_cast<acc_t<T>>(from[k]) - center[k]) * scale[k]);
}

template <class T>
FASTMETA_CLONES void load_rows(const LoadImagesArgs& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int height = static_cast<int>(a.height), width = static_cast<int>(a.width), C = static_cast<int>(a.C);
  const int64_t columns = a.width * a.C, size = a.height * columns;
  Scratch<A> rows(4, columns);
  A *center = rows[0], *scale = rows[1];  // those of each column
  uint8_t *cropped = reinterpret_cast<uint8_t*>(rows[2]), *flipped = reinterpret_cast<uint8_t*>(rows[3]);
  for (int64_t k = 0; k < columns; ++k) {
    center[k] = static_cast<const A*>(a.center)[k % C];
    scale[k] = static_cast<const A*>(a.scale)[k % C];
  }
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = a.index.data[i * a.index.stride];
    const Crop crop = draw_crop(a, a.step.host, row);
    const uint8_t* image = a.images + row * size;
    T* out = static_cast<T*>(a.out) + i * size;
    for (int y = 0; y < height; ++y, out += columns) {
      const int from = mirrored(y + crop.y, height);
      const uint8_t* line = cropped;
      if (!a.reflect && from != y + crop.y)
        std::memset(cropped, 0, columns);
      else if (crop.x != 0)
        crop_line(image + from * columns, a, crop, cropped);
      else
        line = image + from * columns;
      if (crop.flip) {
        reverse_line(line, width, C, flipped);
        line = flipped;
      }
      normalise(line, center, scale, columns, out);
    }
  }
}

}  // namespace

void load_images(const LoadImagesArgs& a) {
  over_rows(a.n, a.height * a.width * a.C, [&](int64_t begin, int64_t end) {
    switch (a.dtype) {
      case DType::kFloat64:
        return load_rows<double>(a, begin, end);
      case DType::kFloat32:
        return load_rows<float>(a, begin, end);
      case DType::kBFloat16:
        return load_rows<BFloat16>(a, begin, end);
      case DType::kFloat16:
        return load_rows<Float16>(a, begin, end);
    }
  });
}

}  // namespace fastmeta::cpu
