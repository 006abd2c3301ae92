// The random crop of one image, the same on both devices. No torch header.
#pragma once

#include <cstdlib>

#include "kernels.h"
#include "rng.h"

namespace fastmeta {

struct Crop {
  int y, x;   // pixel of the image under the crop's first one; negative or too large: outside
  bool flip;  // read each line from its end
};

FASTMETA_HD Crop draw_crop(const LoadImagesArgs& a, int64_t step, int64_t row) {
  if (a.padding == 0 && !a.flip) return {0, 0, false};
  const RandomBits bits = random_bits(a.seed, static_cast<uint64_t>(step), static_cast<uint64_t>(row), 0);
  const uint32_t shifts = static_cast<uint32_t>(2 * a.padding + 1);
  const int padding = static_cast<int>(a.padding);
  return {static_cast<int>(below_range(bits.word[0], shifts)) - padding,
          static_cast<int>(below_range(bits.word[1], shifts)) - padding, a.flip && bits.word[2] >> 31 != 0};
}

// Pixel `at` of a side of `size` pixels, or its mirror image where that is outside. One reflection is enough: the
// padding is smaller than the side.
FASTMETA_HD int mirrored(int at, int size) { return size - 1 - std::abs(size - 1 - std::abs(at)); }

}  // namespace fastmeta
