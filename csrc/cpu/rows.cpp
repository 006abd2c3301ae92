#include "rows.h"

#include <bit>
#include <cstring>

#include "../rng.h"

namespace fastmeta::cpu {

namespace {

template <class T>
FASTMETA_CLONES void widen_row(const T* from, int64_t C, float* to) {
  for (int64_t k = 0; k < C; ++k) to[k] = to_acc(from[k]);
}

template <class T>
FASTMETA_CLONES void narrow_row(const float* from, int64_t C, T* to) {
  for (int64_t k = 0; k < C; ++k) to[k] = from_acc<T>(from[k]);
}

// Sixteen blocks at a time, so that the rounds of their generators run side by side in vectors. In memory, halves of
// their words are column_bits in order: picked out of the words one by one they took three times as long.
static_assert(std::endian::native == std::endian::little);
FASTMETA_CLONES void round_columns(float* x, int64_t C, uint64_t seed, uint64_t step, uint64_t row) {
  constexpr int kBlocks = 16;
  for (int64_t start = 0; start < C; start += 8 * kBlocks) {
    RandomBits bits[kBlocks];
    for (int b = 0; b < kBlocks; ++b) bits[b] = random_bits(seed, step, row, static_cast<uint32_t>(start / 8 + b));
    uint16_t draws[8 * kBlocks];
    std::memcpy(draws, bits, sizeof(draws));
    const int64_t stop = C - start < 8 * kBlocks ? C - start : 8 * kBlocks;
    for (int64_t k = 0; k < stop; ++k) x[start + k] = round_stochastically(x[start + k], draws[k]);
  }
}

}  // namespace

void round_row(float* x, int64_t C, uint64_t seed, uint64_t step, uint64_t row) {
  round_columns(x, C, seed, step, row);
}
void widen(const BFloat16* from, int64_t C, float* to) { widen_row(from, C, to); }
void widen(const Float16* from, int64_t C, float* to) { widen_row(from, C, to); }
void narrow(const float* from, int64_t C, BFloat16* to) { narrow_row(from, C, to); }
void narrow(const float* from, int64_t C, Float16* to) { narrow_row(from, C, to); }

}  // namespace fastmeta::cpu
