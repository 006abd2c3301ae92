#include "rows.h"

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

}  // namespace

void widen(const BFloat16* from, int64_t C, float* to) { widen_row(from, C, to); }
void widen(const Float16* from, int64_t C, float* to) { widen_row(from, C, to); }
void narrow(const float* from, int64_t C, BFloat16* to) { narrow_row(from, C, to); }
void narrow(const float* from, int64_t C, Float16* to) { narrow_row(from, C, to); }

}  // namespace fastmeta::cpu
