// How a label row is rounded to storage: to nearest, or to bfloat16 with the draws of rng.h.
#pragma once

#include "../rng.h"
#include "vector.cuh"

namespace fastmeta::cuda {

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

  __device__ uint64_t step() const { return static_cast<uint64_t>(value_of(rounding_.step)); }
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

}  // namespace fastmeta::cuda
