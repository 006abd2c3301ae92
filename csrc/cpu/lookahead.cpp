// theta* of many tensors: theta, g and b are read once and theta* is written, chunk by chunk over all tensors.

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../lookahead_math.h"
#include "labels.h"

namespace fastmeta::cpu {

namespace {

constexpr int64_t kChunk = kGrain;                    // elements
constexpr int64_t kBeyondCaches = int64_t{32} << 20;  // bytes of theta* that no cache would hold until they are read

// In blocks of four lines of memory, which are asked for well ahead: a stream ends with each page, so the hardware
// alone comes late (1.2 times as long). What is asked for beyond a tensor does no harm.
constexpr int kLine = 64, kBlockBytes = 4 * kLine, kAhead = 2048;

template <int kWrite>
FASTMETA_INLINE void ask_for(const void* block) {
  for (int at = 0; at < kBlockBytes; at += kLine)
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(block) + kAhead + at), kWrite);
}

template <class T>
constexpr int64_t kBlock = kBlockBytes / static_cast<int64_t>(sizeof(T));

// n elements, a block at most
template <class T, bool kBuffer>
FASTMETA_INLINE void move_some(const T* theta, const T* g, const T* b, T* out, int64_t n,
                               const LookaheadRates<acc_t<T>>& rates) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, Float16>) {
    // gcc takes these conversions apart into scalars, a tenth of the speed, unless each is a loop of its own
    A x[kBlock<T>], y[kBlock<T>], z[kBlock<T>];
    for (int64_t k = 0; k < n; ++k) x[k] = to_acc(theta[k]);
    for (int64_t k = 0; k < n; ++k) y[k] = to_acc(g[k]);
    if constexpr (kBuffer)
      for (int64_t k = 0; k < n; ++k) z[k] = to_acc(b[k]);
    for (int64_t k = 0; k < n; ++k) x[k] = rates.moved(x[k], y[k], kBuffer ? z[k] : A(0));
    for (int64_t k = 0; k < n; ++k) out[k] = from_acc<T>(x[k]);
  } else {
    for (int64_t k = 0; k < n; ++k)
      out[k] = from_acc<T>(rates.moved(to_acc(theta[k]), to_acc(g[k]), kBuffer ? to_acc(b[k]) : A(0)));
  }
}

// A block past the caches: what is in its place in memory is not read first. `to` at a multiple of 16 bytes.
FASTMETA_INLINE void write_past(const void* block, void* to) {
#ifdef __SSE2__
  for (int at = 0; at < kBlockBytes; at += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(to) + at),
                     _mm_load_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(block) + at)));
#else
  std::memcpy(to, block, kBlockBytes);
#endif
}

template <class T, bool kBuffer>
FASTMETA_CLONES void move_chunk(const T* __restrict theta, const T* __restrict g, const T* __restrict b,
                                T* __restrict out, int64_t n, LookaheadRates<acc_t<T>> rates, bool past_caches) {
  constexpr int64_t kSize = kBlock<T>;
  past_caches = past_caches && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  int64_t k = 0;
  for (; k + kSize <= n; k += kSize) {
    ask_for<0>(theta + k);
    ask_for<0>(g + k);
    if constexpr (kBuffer) ask_for<0>(b + k);
    if (past_caches) {
      alignas(kLine) T block[kSize];
      move_some<T, kBuffer>(theta + k, g + k, kBuffer ? b + k : nullptr, block, kSize, rates);
      write_past(block, out + k);
    } else {
      ask_for<1>(out + k);
      move_some<T, kBuffer>(theta + k, g + k, kBuffer ? b + k : nullptr, out + k, kSize, rates);
    }
  }
#ifdef __SSE2__
  if (past_caches) _mm_sfence();  // other threads see it from here on
#endif
  move_some<T, kBuffer>(theta + k, g + k, kBuffer ? b + k : nullptr, out + k, n - k, rates);
}

template <class T>
void move_chunk(const LookaheadTensor& t, int64_t chunk, const LookaheadRates<acc_t<T>>& rates, bool past_caches) {
  const int64_t begin = chunk * kChunk, n = std::min(kChunk, t.numel - begin);
  const auto at = [begin](const void* p) { return static_cast<const T*>(p) + begin; };
  T* out = static_cast<T*>(t.out) + begin;
  if (t.buffer == nullptr)
    move_chunk<T, false>(at(t.param), at(t.grad), nullptr, out, n, rates, past_caches);
  else
    move_chunk<T, true>(at(t.param), at(t.grad), at(t.buffer), out, n, rates, past_caches);
}

template <class T>
void update(const LookaheadArgs& a) {
  const LookaheadRates<acc_t<T>> rates(scalar_value(a.lr), a.gain, a.carry, a.weight_decay);
  std::vector<int64_t> first(static_cast<size_t>(a.count) + 1, 0);  // chunk of each tensor
  for (int64_t k = 0; k < a.count; ++k) first[k + 1] = first[k] + (a.tensors[k].numel + kChunk - 1) / kChunk;
  int64_t elements = 0;
  for (int64_t k = 0; k < a.count; ++k) elements += a.tensors[k].numel;
  const bool past_caches = elements * static_cast<int64_t>(sizeof(T)) >= kBeyondCaches;
  over_rows(first.back(), kChunk, [&](int64_t begin, int64_t end) {
    size_t k = static_cast<size_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      while (chunk >= first[k + 1]) ++k;
      move_chunk<T>(a.tensors[k], chunk - first[k], rates, past_caches);
    }
  });
}

}  // namespace

void lookahead_update(const LookaheadArgs& a) {
  switch (a.dtype) {
    case DType::kFloat64:
      return update<double>(a);
    case DType::kFloat32:
      return update<float>(a);
    case DType::kBFloat16:
      return update<BFloat16>(a);
    case DType::kFloat16:
      return update<Float16>(a);
  }
}

}  // namespace fastmeta::cpu
