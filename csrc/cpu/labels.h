// What the loops over instance labels and class labels share: per-row results, skipped rows, scalars.
#pragma once

#include "../softmax_math.h"
#include "parallel.h"
#include "rows.h"

namespace fastmeta::cpu {

// Where row i's results go; `alignment` only for a step.
template <class A>
struct RowResults {
  void *loss, *entropy, *alignment;
  Matrix v;
  int64_t C;

  template <class Args>
  static RowResults of(const Args& a) {
    if constexpr (requires { a.alignment; })
      return {a.loss, a.entropy, a.alignment, a.v, a.C};
    else
      return {a.loss, a.entropy, nullptr, a.v, a.C};
  }
  FASTMETA_INLINE void set_loss(int64_t i, A loss, A entropy) const {
    static_cast<A*>(this->loss)[i] = loss;
    static_cast<A*>(this->entropy)[i] = entropy;
  }
  FASTMETA_INLINE void set_alignment(int64_t i, A x) const { static_cast<A*>(alignment)[i] = x; }

  FASTMETA_INLINE void skip(int64_t i, A* scratch) const {
    set_loss(i, quiet_nan<A>(), quiet_nan<A>());
    if (alignment != nullptr) set_alignment(i, quiet_nan<A>());
    for (int64_t k = 0; k < C; ++k) scratch[k] = quiet_nan<A>();
    store_row(scratch, C, v, i);
  }
};

inline double scalar_value(const Scalar& s) {
  if (s.device == nullptr) return s.host;
  return s.dtype == DType::kFloat64 ? *static_cast<const double*>(s.device) : *static_cast<const float*>(s.device);
}

}  // namespace fastmeta::cpu
