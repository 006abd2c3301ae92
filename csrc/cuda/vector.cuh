// A row spread over a group of threads, moved 8 or 16 bytes at a time where the addresses allow.
//
// A thread holds kSlots slots of kWidth adjacent columns. Slot j of thread t starts at column
//
//     (j * kThreads + t) * kWidth - lead        lead = columns from the last boundary of a slot to the row's start
//
// so that a row that starts off the boundary (odd C) still has all but its first and last slot aligned.
// Every operand of a row uses the columns of its logits; an operand whose own row starts elsewhere (a label row of a
// table with another alignment) moves element by element. The alternative, each operand with its own columns, needs
// a shuffle per element to bring them together again.
#pragma once

#include "launch.cuh"

namespace fastmeta::cuda {

// ---------------------------------------------------------------------------------------------------------
// Columns
// ---------------------------------------------------------------------------------------------------------

// Slot width such that the widest operand moves 16 bytes at once. 16-bit operands beside it move 8: rows of 100 of them
// all start on such a boundary, and threads share a row more evenly. Label rows of 16 bits, the last operand, are
// rounded with draws for eight columns.
template <class... S>
__host__ __device__ constexpr int slot_width() {
  int size = 1, last = 1;
  ((last = static_cast<int>(sizeof(S)), size = last > size ? last : size), ...);
  return last == 2 ? 8 : 16 / size;
}

// Bytes that one access moves of a slot: 8 or 16
template <class S>
__host__ __device__ constexpr int word_bytes(int width) {
  return width * static_cast<int>(sizeof(S)) < 16 ? 8 : 16;
}

// Columns that rows of `m` may start past a boundary of their words, where rows of S... are moved together and m is the
// first of them: 0 where its base and stride are multiples of a word.
template <class T, class... S>
int max_lead(ConstMatrix m) {
  const int64_t size = sizeof(T), word = word_bytes<T>(slot_width<T, S...>());
  const bool aligned = reinterpret_cast<uintptr_t>(m.data) % word == 0 && m.row_stride * size % word == 0;
  return aligned ? 0 : static_cast<int>(word / size - 1);
}

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
    return static_cast<int>(reinterpret_cast<uintptr_t>(row) % word_bytes<T>(kWidth) / sizeof(T));
  }
};

// ---------------------------------------------------------------------------------------------------------
// Pieces
// ---------------------------------------------------------------------------------------------------------

// S[kWidth] in whole words, kept in memory's own type: 16-bit rows take half the registers, and a load is not waited
// for before its value is used.
template <class S, int kWidth>
struct alignas(word_bytes<S>(kWidth)) Pack {
  static constexpr int kWordBytes = word_bytes<S>(kWidth);
  using Word = std::conditional_t<kWordBytes == 16, uint4, uint2>;
  static constexpr int kWords = static_cast<int>(sizeof(S)) * kWidth / kWordBytes;
  static_assert(kWords * kWordBytes == static_cast<int>(sizeof(S)) * kWidth);
  S e[kWidth];

  __device__ Word* words() { return reinterpret_cast<Word*>(this); }
  __device__ const Word* words() const { return reinterpret_cast<const Word*>(this); }
  // whether a slot that starts here can be moved in words
  __device__ static bool aligned(const S* p) { return reinterpret_cast<uintptr_t>(p) % kWordBytes == 0; }
};

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
__device__ __forceinline__ void store_word(uint4* to, uint4 word) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
#else
  *to = word;
#endif
}
__device__ __forceinline__ void store_word(uint2* to, uint2 word) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word.x), "r"(word.y) : "memory");
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

  __device__ const Slot& get(int j) const { return slot[j]; }
  __device__ void set(int j, const Slot& value) { slot[j] = value; }

  __device__ void load(const S* row, const Cols& cols, Fill fill) {
    const bool aligned = Slot::aligned(row + cols.start);  // and then every slot is: they are whole words apart
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      if (aligned && cols.full(j)) {
        const auto* words = reinterpret_cast<const typename Slot::Word*>(row + cols.of(j));
#pragma unroll
        for (int i = 0; i < Slot::kWords; ++i) slot[j].words()[i] = words[i];
      } else {
        slot[j] = by_element(row, cols, j, fill);
      }
    }
  }
  __device__ static void arrive() {}  // of what was loaded: registers wait by themselves

  // The slot at the row's start or end, or of a row off the boundary
  __device__ static Slot by_element(const S* row, const Cols& cols, int j, Fill fill) {
    const S* from = row + cols.of(j);
    Slot out;
#pragma unroll
    for (int w = 0; w < Cols::kWidth; ++w) out.e[w] = cols.has(j, w) ? from[w] : fill_value<S>(fill);
    return out;
  }

  __device__ void store(S* row, const Cols& cols) const {
    const bool aligned = Slot::aligned(row + cols.start);
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      put(slot[j], row, cols, j, aligned);
    }
  }

  __device__ static void put(const Slot& from, S* row, const Cols& cols, int j, bool aligned) {
    S* to = row + cols.of(j);
    if (aligned && cols.full(j)) {
      auto* words = reinterpret_cast<typename Slot::Word*>(to);
#pragma unroll
      for (int i = 0; i < Slot::kWords; ++i) store_word(words + i, from.words()[i]);
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
      bad += poison_of(slot[j], cols, j);
    }
    return bad;
  }
  __device__ static A poison_of(const Slot& from, const Cols& cols, int j) {
    A bad = 0;
    const bool full = cols.full(j);
#pragma unroll
    for (int w = 0; w < Cols::kWidth; ++w) bad += full || cols.has(j, w) ? to_acc(from.e[w]) * A(0) : A(0);
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

// A piece that waits in shared memory instead of registers: more rows fit a multiprocessor, and one of them computes
// while another one's memory is awaited. Each thread has its own slots there, so that no barrier is needed. `memory` is
// kBytes of the block, a multiple of 16.
template <class S, class Cols, int kBlock>
class Parked {
 public:
  using A = acc_t<S>;
  using Slot = Pack<S, Cols::kWidth>;
  using Word = typename Slot::Word;
  static constexpr size_t kBytes = static_cast<size_t>(kBlock) * Cols::kSlots * sizeof(Slot);

  __device__ explicit Parked(unsigned char* memory) : place_(reinterpret_cast<Word*>(memory) + threadIdx.x) {}

  __device__ Slot get(int j) const {
    Slot out;
#pragma unroll
    for (int i = 0; i < Slot::kWords; ++i) out.words()[i] = place_[(j * Slot::kWords + i) * kBlock];
    return out;
  }
  __device__ void set(int j, const Slot& value) {
#pragma unroll
    for (int i = 0; i < Slot::kWords; ++i) place_[(j * Slot::kWords + i) * kBlock] = value.words()[i];
  }

  // Begins to load; arrive() waits for what this thread has begun.
  __device__ void load(const S* row, const Cols& cols, Fill fill) {
    const bool aligned = Slot::aligned(row + cols.start);
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      if (aligned && cols.full(j)) {
        const Word* words = reinterpret_cast<const Word*>(row + cols.of(j));
#pragma unroll
        for (int i = 0; i < Slot::kWords; ++i) begin_copy(&place_[(j * Slot::kWords + i) * kBlock], words + i);
      } else {
        set(j, Piece<S, Cols>::by_element(row, cols, j, fill));
      }
    }
  }
  __device__ static void arrive() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
  }
  __device__ void store(S* row, const Cols& cols) const {
    const bool aligned = Slot::aligned(row + cols.start);
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      Piece<S, Cols>::put(get(j), row, cols, j, aligned);
    }
  }

 private:
  // From memory to shared memory, past the registers
  __device__ static void begin_copy(Word* to, const Word* from) {
#ifdef __CUDA_ARCH__
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (sizeof(Word) == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(at), "l"(from) : "memory");
    }
#else
    *to = *from;
#endif
  }

  Word* place_;
};

// f(j) for the thread's slots
template <class Cols, class F>
__device__ __forceinline__ void for_slots(const Cols& cols, F f) {
#pragma unroll
  for (int j = 0; j < Cols::kSlots; ++j) {
    if (cols.none(j)) break;
    f(j);
  }
}

// max(m, largest value of a held operand); NaN gives way
template <class H, class Cols>
__device__ __forceinline__ auto max_of(const H& held, const Cols& cols, typename H::A m) {
  for_slots(cols, [&](int j) {
    const auto slot = held.get(j);
#pragma unroll
    for (int w = 0; w < Cols::kWidth; ++w) m = fmax(m, to_acc(slot.e[w]));
  });
  return m;
}

// fill(j, put) calls put(w, x) for the columns of slot j of the row; x is rounded to S on the way
template <class S, class Cols, class F>
__device__ __forceinline__ void write_slots(S* row, const Cols& cols, F fill) {
  const bool aligned = Pack<S, Cols::kWidth>::aligned(row + cols.start);
  for_slots(cols, [&](int j) {
    Pack<S, Cols::kWidth> out;
    fill(j, [&](int w, acc_t<S> x) { out.e[w] = store_as<S>(x); });
    Piece<S, Cols>::put(out, row, cols, j, aligned);
  });
}

// row[k] = value(j, w) for the thread's columns k; rounded to S on the way
template <class S, class Cols, class F>
__device__ __forceinline__ void write_row(S* row, const Cols& cols, F value) {
  const bool aligned = Pack<S, Cols::kWidth>::aligned(row + cols.start);
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
