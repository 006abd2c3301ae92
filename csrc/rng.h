// Random bits as a pure function of where they are used: Philox4x32-10 (Salmon et al., Parallel random numbers: as easy
// as 1, 2, 3, SC 2011). No state, so that a resumed run, a replayed graph and any launch geometry draw the same. No
// torch header.
#pragma once

#include <cstdint>

#include "softmax_math.h"  // FASTMETA_HD

namespace fastmeta {

struct RandomBits {
  uint32_t word[4];
};

FASTMETA_HD RandomBits philox4x32(RandomBits counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * counter.word[0], b = uint64_t(0xCD9E8D57u) * counter.word[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// 128 bits for (seed, step, row, block): `row` of the training set, `block` counts draws of four words within a row.
// Steps that differ by 2^32 draw alike.
FASTMETA_HD RandomBits random_bits(uint64_t seed, uint64_t step, uint64_t row, uint32_t block) {
  const RandomBits counter = {
      {block, static_cast<uint32_t>(step), static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32)}};
  return philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The 16 random bits of column k of a row, out of its block k / 8.
FASTMETA_HD uint32_t column_bits(const RandomBits& block, int k) {
  return block.word[k % 8 / 2] >> 16 * (k % 2) & 0xffffu;
}

// x rounded to bfloat16, kept as float: to one of its two neighbours, away from zero where the 16 bits that are dropped
// and the draw pass 2^16. So the mean over draws is x, and an x that bfloat16 has stays. What lies beyond the largest
// number may become infinite; NaN and infinity stay.
FASTMETA_HD float round_stochastically(float x, uint32_t draw) {
  const uint32_t bits = float_to_bits(x);
  return is_finite(x) ? bits_to_float((bits + draw) & 0xffff0000u) : x;
}

// Uniform in {0, ..., range - 1} from one word; the bias is below range / 2^32.
FASTMETA_HD uint32_t below_range(uint32_t word, uint32_t range) {
  return static_cast<uint32_t>((uint64_t(word) * range) >> 32);
}

}  // namespace fastmeta
