// A row spread over a group of threads, moved 16 bytes at a time where the addresses allow.
//
// A thread holds kSlots slots of kWidth adjacent columns. Slot j of thread t starts at column
//
//     (j * kThreads + t) * kWidth - lead        lead = columns from the last 16-byte boundary to the row's start
//
// so that a row that starts off the boundary (C = 10, or odd C) still has all but its first and last slot aligned.
// Every operand of a row uses the columns of its logits; an operand whose own row starts elsewhere (a label row of a
// table with another alignment) moves element by element. The alternative, each operand with its own columns, needs
// a shuffle per element to bring them together again.
#pragma once

#include "launch.cuh"

namespace fastmeta::cuda {

// ---------------------------------------------------------------------------------------------------------
// Columns
// ---------------------------------------------------------------------------------------------------------

template <class G, int kSlotWidth>
struct Columns {
  static constexpr int kWidth = kSlotWidth;
  static constexpr int kSlots = G::kColumns / kWidth;
  static_assert(kSlots * kWidth == G::kColumns);

  int C;
  int start;  // of slot 0; negative in the thread that holds the lead

  template <class T>
  __device__ Columns(const T* row, int64_t C, int rank) : C(static_cast<int>(C)) {
    start = rank * kWidth - lead(row);
  }
  __device__ int of(int slot) const { return start + slot * (G::kThreads * kWidth); }
  __device__ bool none(int slot) const { return of(slot) >= C; }  // then none in later slots either
  __device__ bool full(int slot) const { return of(slot) >= 0 && of(slot) + kWidth <= C; }
  __device__ bool has(int slot, int w) const { return static_cast<unsigned>(of(slot) + w) < static_cast<unsigned>(C); }

  // Rows that are not resident are walked in chunks. All threads of the group take the same number of them, because
  // they meet at barriers in between; at a thread's end of the row its slots are empty.
  __device__ void next_chunk() { start += G::kCapacity; }
  template <class T>
  __device__ static int chunks(const T* row, int64_t C) {
    if constexpr (G::kResident) return 1;
    return (static_cast<int>(C) + lead(row) + G::kCapacity - 1) / G::kCapacity;
  }

 private:
  template <class T>
  __device__ static int lead(const T* row) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
  }
};

// Slot width such that the narrowest operand moves 16 bytes at once; wider ones move several times 16.
template <class... S>
__host__ __device__ constexpr int slot_width() {
  int size = 16;
  ((size = sizeof(S) < static_cast<size_t>(size) ? static_cast<int>(sizeof(S)) : size), ...);
  return 16 / size;
}

// ---------------------------------------------------------------------------------------------------------
// Pieces
// ---------------------------------------------------------------------------------------------------------

// S[kWidth] in whole 16-byte words, kept in memory's own type: 16-bit rows take half the registers, and a load is not
// waited for before its value is used.
template <class S, int kWidth>
struct alignas(16) Pack {
  static constexpr int kWords = static_cast<int>(sizeof(S)) * kWidth / 16;
  static_assert(kWords * 16 == static_cast<int>(sizeof(S)) * kWidth);
  S e[kWidth];
};

template <class S>
__device__ __forceinline__ bool aligned16(const S* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// What lies outside the row: nothing for sums weighted by exponentials (kFillLowest: -inf) or for plain sums (zero).
enum class Fill { kZero, kLowest };

template <class S>
__device__ __forceinline__ S fill_value(Fill fill) {
  return fill == Fill::kZero ? from_acc<S>(0) : from_acc<S>(-static_cast<acc_t<S>>(INFINITY));
}

// Rounds to storage. For bfloat16 the hardware's conversion, one instruction for six.
template <class S>
__device__ __forceinline__ S store_as(acc_t<S> x) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<S, BFloat16>) return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
  return from_acc<S>(x);
}

// As assembly because the optimiser takes the plain store of a thread's first slot apart into single columns.
__device__ __forceinline__ void store16(uint4* to, uint4 word) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
#else
  *to = word;
#endif
}

template <class S, class Cols>
struct Piece {
  using A = acc_t<S>;
  using Slot = Pack<S, Cols::kWidth>;
  Slot slot[Cols::kSlots];

  __device__ A at(int j, int w) const { return to_acc(slot[j].e[w]); }

  __device__ void load(const S* row, const Cols& cols, Fill fill) {
    const bool aligned = aligned16(row + cols.start);  // and then every slot is: they are 16-byte multiples apart
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      const S* from = row + cols.of(j);
      if (aligned && cols.full(j)) {
        const uint4* words = reinterpret_cast<const uint4*>(from);
        uint4* to = reinterpret_cast<uint4*>(&slot[j]);
#pragma unroll
        for (int i = 0; i < Slot::kWords; ++i) to[i] = words[i];
      } else {
#pragma unroll
        for (int w = 0; w < Cols::kWidth; ++w) slot[j].e[w] = cols.has(j, w) ? from[w] : fill_value<S>(fill);
      }
    }
  }

  __device__ void store(S* row, const Cols& cols) const {
    const bool aligned = aligned16(row + cols.start);
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      put(slot[j], row, cols, j, aligned);
    }
  }

  // Leaves a slot in shared memory for this very thread; `place` is its own, of a block of kStride threads
  template <int kStride>
  __device__ void park(int j, uint4* place) const {
    const uint4* words = reinterpret_cast<const uint4*>(&slot[j]);
#pragma unroll
    for (int i = 0; i < Slot::kWords; ++i) place[(j * Slot::kWords + i) * kStride] = words[i];
  }
  template <int kStride>
  __device__ void take_back(int j, const uint4* place) {
    uint4* words = reinterpret_cast<uint4*>(&slot[j]);
#pragma unroll
    for (int i = 0; i < Slot::kWords; ++i) words[i] = place[(j * Slot::kWords + i) * kStride];
  }

  __device__ static void put(const Slot& from, S* row, const Cols& cols, int j, bool aligned) {
    S* to = row + cols.of(j);
    if (aligned && cols.full(j)) {
      uint4* words = reinterpret_cast<uint4*>(to);
      const uint4* source = reinterpret_cast<const uint4*>(&from);
#pragma unroll
      for (int i = 0; i < Slot::kWords; ++i) store16(words + i, source[i]);
    } else {
#pragma unroll
      for (int w = 0; w < Cols::kWidth; ++w) {
        if (cols.has(j, w)) to[w] = from.e[w];
      }
    }
  }

  // max(m, largest value of the piece); NaN gives way
  __device__ A max(const Cols& cols, A m) const {
    each(cols, [&](int j, int w) { m = fmax(m, at(j, w)); });
    return m;
  }

  // 0, or NaN where the row holds a NaN or an infinity: x * 0. Folded into a sum it costs one instruction a column.
  __device__ A poison(const Cols& cols) const {
    A bad = 0;
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      if (cols.full(j)) {
#pragma unroll
        for (int w = 0; w < Cols::kWidth; ++w) bad += at(j, w) * A(0);
      } else {
#pragma unroll
        for (int w = 0; w < Cols::kWidth; ++w) bad += cols.has(j, w) ? at(j, w) * A(0) : A(0);
      }
    }
    return bad;
  }

  template <class F>
  __device__ static void each(const Cols& cols, F f) {
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
#pragma unroll
      for (int w = 0; w < Cols::kWidth; ++w) f(j, w);
    }
  }
};

// row[k] = value(j, w) for the thread's columns k; rounded to S on the way
template <class S, class Cols, class F>
__device__ __forceinline__ void write_row(S* row, const Cols& cols, F value) {
  const bool aligned = aligned16(row + cols.start);
#pragma unroll
  for (int j = 0; j < Cols::kSlots; ++j) {
    if (cols.none(j)) break;
    Pack<S, Cols::kWidth> out;
#pragma unroll
    for (int w = 0; w < Cols::kWidth; ++w) out.e[w] = store_as<S>(value(j, w));
    Piece<S, Cols>::put(out, row, cols, j, aligned);
  }
}

// f(columns of the chunk), chunk by chunk; a resident row is one chunk
template <class Cols, class F>
__device__ __forceinline__ void for_chunks(Cols cols, int chunks, F f) {
  for (int chunk = 0; chunk < chunks; ++chunk, cols.next_chunk()) f(cols);
}

// NaN in all columns: the row of a result whose index is out of range
template <class S, class Cols>
__device__ void write_nan(S* row, const Cols& first, int chunks) {
  for_chunks(first, chunks,
             [&](const Cols& cols) { write_row(row, cols, [](int, int) { return quiet_nan<acc_t<S>>(); }); });
}

}  // namespace fastmeta::cuda
