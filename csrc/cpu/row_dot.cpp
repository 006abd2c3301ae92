// <a_i, b_i> for each row.

#include "parallel.h"
#include "rows.h"

namespace fastmeta::cpu {

namespace {

template <int kBytes>
struct Words {
  typedef uint16_t Half __attribute__((vector_size(kBytes / 2)));
  typedef int16_t Signed __attribute__((vector_size(kBytes / 2)));
  typedef uint32_t Vec __attribute__((vector_size(kBytes)));
};

// bfloat16 as floats, in the order that they stand in
template <class V>
FASTMETA_INLINE Vec<V> load(const BFloat16* p, Whole) {
  using W = Words<V::kBytes>;
  typename W::Half halves;
  std::memcpy(&halves, p, sizeof(halves));
  typename W::Vec bits;
#ifdef FASTMETA_WIDE
  if constexpr (V::kBytes == 64)  // gcc 12 widens in two parts
    bits = (typename W::Vec)__builtin_ia32_pmovzxwd512_mask((typename W::Signed)halves, typename V::IntVec{}, 0xffff);
  else
#endif
    bits = __builtin_convertvector(halves, typename W::Vec);
  bits <<= 16;
  Vec<V> x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
template <class V>
FASTMETA_INLINE Vec<V> load(const BFloat16* p, Part part) {
  BFloat16 x[V::kLanes] = {};
#ifdef FASTMETA_WIDE
  if constexpr (V::kBytes == 64) {
    typedef short Halves __attribute__((vector_size(32)));
    const auto lanes = static_cast<uint16_t>((1u << part.count) - 1);
    const Halves halves = __builtin_ia32_loaddquhi256_mask(reinterpret_cast<const short*>(p), Halves{}, lanes);
    std::memcpy(x, &halves, sizeof(x));
    return load<V>(x, Whole{});
  }
#endif
#pragma GCC unroll 16
  for (int j = 0; j + 1 < V::kLanes; ++j)
    if (j < part.count) x[j] = p[j];
  return load<V>(x, Whole{});
}

// In four chains of sums, for an addition waits for the one before it.
template <class V, class T>
FASTMETA_INLINE scalar_t<V> dot_row(const T* x, const T* y, int64_t C) {
  constexpr int64_t kLanes = V::kLanes, kStep = 4 * kLanes, kBlock = 32 * kStep;
  const auto product = FASTMETA_BODY(k, lanes) { return load<V>(x + k, lanes) * load<V>(y + k, lanes); };
  Sum<V> sum;
  for (int64_t k = 0; k < C;) {
    const int64_t stop = k + kBlock < C ? k + kBlock : C;
    Vec<V> other[3] = {};
    for (; k + kStep <= stop; k += kStep) {
      sum += product(k, Whole{});
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) other[j] += product(k + (j + 1) * kLanes, Whole{});
    }
    for (; k + kLanes <= stop; k += kLanes) sum += product(k, Whole{});
    if (k < stop) {
      sum += product(k, Part{stop - k});
      k = stop;
    }
    sum += (other[0] + other[1]) + other[2];
    if (k < C) sum.close_block();
  }
  return sum.value();
}

template <class V>
FASTMETA_INLINE void dot_rows(const RowDotArgs& a, int64_t begin, int64_t end) {
  using A = scalar_t<V>;
  const int64_t C = a.C;
  A* const out = static_cast<A*>(a.out);
  if constexpr (sizeof(A) == 4) {
    if (a.a.dtype == DType::kBFloat16) {
      for (int64_t i = begin; i < end; ++i) out[i] = dot_row<V>(row_at<BFloat16>(a.a, i), row_at<BFloat16>(a.b, i), C);
      return;
    }
  }
  Scratch<A> rows(2, C);
  for (int64_t i = begin; i < end; ++i) out[i] = dot_row<V>(row_in(a.a, i, C, rows[0]), row_in(a.b, i, C, rows[1]), C);
}

}  // namespace

void row_dot(const RowDotArgs& a) { FASTMETA_OVER_ROWS(dot_rows, a, a.a.dtype, a.n); }

}  // namespace fastmeta::cpu
