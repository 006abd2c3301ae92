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
  static constexpr int kStride = G::kThreads * kWidth;  // from a thread's slot to its next one
  static_assert(kSlots * kWidth == G::kColumns);

  int C;
  int start;   // of slot 0; negative in the thread that holds the lead
  bool whole;  // no slot of this thread reaches past an end of the row: all threads but two, and all of most rows

  template <class T>
  __device__ Columns(const T* row, int64_t C, int rank) : C(static_cast<int>(C)) {
    begin(rank * kWidth - lead(row));
  }
  __device__ int of(int slot) const { return start + slot * kStride; }
  __device__ bool none(int slot) const { return C - start <= slot * kStride; }  // then none in later slots either
  __device__ bool full(int slot) const { return of(slot) >= 0 && of(slot) + kWidth <= C; }
  __device__ bool has(int slot, int w) const { return static_cast<unsigned>(of(slot) + w) < static_cast<unsigned>(C); }

  // Rows that are not resident are walked in chunks. All threads of the group take the same number of them, because
  // they meet at barriers in between; at a thread's end of the row its slots are empty.
  __device__ void next_chunk() { begin(start + G::kCapacity); }
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
  __device__ void begin(int column) {
    start = column;
    const int rest = C - start,
              past = rest % kStride;  // columns of the slot at the row's end, where it is this thread's
    whole = start >= 0 && (rest <= 0 || rest > G::kCapacity || past == 0 || past >= kWidth);
  }
};

// f(j, each) for the thread's slots; each(g) calls g(w) for the columns of the row among those of slot j. Threads whose
// slots are whole take a path of their own, without a test for each column.
template <class Cols, class F>
__device__ __forceinline__ void for_slots(const Cols& cols, F f) {
  if (cols.whole) {
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      f(j, [](auto g) {
#pragma unroll
        for (int w = 0; w < Cols::kWidth; ++w) g(w);
      });
    }
  } else {
#pragma unroll
    for (int j = 0; j < Cols::kSlots; ++j) {
      if (cols.none(j)) break;
      f(j, [&](auto g) {
#pragma unroll
        for (int w = 0; w < Cols::kWidth; ++w) {
          if (cols.has(j, w)) g(w);
        }
      });
    }
  }
}

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

// A thread's columns of a row in registers. Columns outside the row hold anything, and are never looked at.
template <class S, class Cols>
struct Piece {
  using A = acc_t<S>;
  using Slot = Pack<S, Cols::kWidth>;
  Slot slot[Cols::kSlots];

  __device__ A at(int j, int w) const { return to_acc(slot[j].e[w]); }

  __device__ const Slot& get(int j) const { return slot[j]; }
  __device__ void set(int j, const Slot& value) { slot[j] = value; }

  __device__ void load(const S* row, const Cols& cols) {
    const S* from = row + cols.start;  // slots are constant distances from it, which cost no arithmetic
    if (in_words(row, cols)) {
#pragma unroll
      for (int j = 0; j < Cols::kSlots; ++j) {
        if (cols.none(j)) break;
        const auto* words = reinterpret_cast<const typename Slot::Word*>(from + j * Cols::kStride);
#pragma unroll
        for (int i = 0; i < Slot::kWords; ++i) slot[j].words()[i] = words[i];
      }
    } else {
      for_slots(cols, [&](int j, auto each) { each([&](int w) { slot[j].e[w] = from[j * Cols::kStride + w]; }); });
    }
  }
  __device__ static void arrive(const S*, const Cols&) {}  // of what was loaded: registers wait by themselves

  // Whether all of the thread's slots of `row` can be moved in words
  __device__ static bool in_words(const S* row, const Cols& cols) {
    return cols.whole && Slot::aligned(row + cols.start);  // every slot is, where the first is: they are words apart
  }

  __device__ void store(S* row, const Cols& cols) const {
    const bool words = in_words(row, cols);
    for_slots(cols, [&](int j, auto each) { put(slot[j], row, cols, j, words, each); });
  }

  template <class Each>
  __device__ static void put(const Slot& from, S* row, const Cols& cols, int j, bool in_words, Each each) {
    S* to = row + cols.start + j * Cols::kStride;
    if (in_words) {
      auto* words = reinterpret_cast<typename Slot::Word*>(to);
#pragma unroll
      for (int i = 0; i < Slot::kWords; ++i) store_word(words + i, from.words()[i]);
    } else {
      each([&](int w) { to[w] = from.e[w]; });
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
    each(cols, [&](int j, int w) { bad += at(j, w) * A(0); });
    return bad;
  }

  // f(j, w) for the columns of the row
  template <class F>
  __device__ static void each(const Cols& cols, F f) {
    for_slots(cols, [&](int j, auto each) { each([&](int w) { f(j, w); }); });
  }
};

// A piece that waits in shared memory instead of registers: more rows fit a multiprocessor, and one of them computes
// while another one's memory is awaited. Each thread has its own slots there, so that no barrier is needed. `memory` is
// kBytes of the block, a multiple of 16.
//
// A row off the boundary of its words moves column by column, each thread its neighbours' columns: a warp then moves
// adjacent ones, where its own lie a word apart. That needs barriers: arrive() has one, and between the last set() and
// store() the caller has another. Nothing of it is kept in a register: the kernels that park have none left.
template <class S, class Cols, int kBlock>
class Parked {
 public:
  using A = acc_t<S>;
  using Slot = Pack<S, Cols::kWidth>;
  using Word = typename Slot::Word;
  static constexpr size_t kBytes = static_cast<size_t>(kBlock) * Cols::kSlots * sizeof(Slot);

  __device__ explicit Parked(unsigned char* memory) : words_(reinterpret_cast<Word*>(memory)) {}

  __device__ Slot get(int j) const {
    Slot out;
#pragma unroll
    for (int i = 0; i < Slot::kWords; ++i) out.words()[i] = *place(j, i, threadIdx.x);
    return out;
  }
  __device__ void set(int j, const Slot& value) {
#pragma unroll
    for (int i = 0; i < Slot::kWords; ++i) *place(j, i, threadIdx.x) = value.words()[i];
  }

  // Begins to load; arrive() of the same row waits for it.
  __device__ void load(const S* row, const Cols& cols) {
    const S* from = row + cols.start;
    if (across(row, cols)) {
      move_across(cols, [&](S* here, int column) { begin_copy(here, row + column); });
    } else {
      for_slots(cols, [&](int j, auto each) {
        if (cols.whole || cols.full(j)) {
          const Word* words = reinterpret_cast<const Word*>(from + j * Cols::kStride);
#pragma unroll
          for (int i = 0; i < Slot::kWords; ++i) begin_copy(place(j, i, threadIdx.x), words + i);
        } else {
          Slot out;
          each([&](int w) { out.e[w] = from[j * Cols::kStride + w]; });
          set(j, out);
        }
      });
    }
  }
  __device__ static void arrive(const S* row, const Cols& cols) {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    if (across(row, cols)) __syncthreads();
  }
  __device__ void store(S* row, const Cols& cols) const {
    if (across(row, cols)) {
      move_across(cols, [&](S* here, int column) { row[column] = *here; });
    } else {
      const bool words = Piece<S, Cols>::in_words(row, cols);
      for_slots(cols, [&](int j, auto each) { Piece<S, Cols>::put(get(j), row, cols, j, words, each); });
    }
  }

 private:
  __device__ static bool across(const S* row, const Cols& cols) { return !Slot::aligned(row + cols.start); }

  // Word i of slot j of a thread of the block
  __device__ Word* place(int j, int i, int thread) const { return words_ + (j * Slot::kWords + i) * kBlock + thread; }

  // f(place, column) for a share of the block's columns, the same for all operands
  template <class F>
  __device__ void move_across(const Cols& cols, F f) const {
    constexpr int kInWord = static_cast<int>(sizeof(Word) / sizeof(S));
    const int thread = static_cast<int>(threadIdx.x), first = cols.start - thread * Cols::kWidth;
#pragma unroll 1
    for (int j = 0; j < Cols::kSlots; ++j) {
#pragma unroll
      for (int k = 0; k < Cols::kWidth; ++k) {
        const int e = k * kBlock + thread, word = e / kInWord, column = first + j * Cols::kStride + e;
        if (column < 0 || column >= cols.C) continue;
        f(reinterpret_cast<S*>(place(j, word % Slot::kWords, word / Slot::kWords)) + e % kInWord, column);
      }
    }
  }

  // From memory to shared memory, past the registers, but for 2 bytes
  template <class X>
  __device__ static void begin_copy(X* to, const X* from) {
#ifdef __CUDA_ARCH__
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (sizeof(X) == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
    } else if constexpr (sizeof(X) >= 4) {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(sizeof(X)) : "memory");
    } else {
      *to = *from;
    }
#else
    *to = *from;
#endif
  }

  Word* words_;
};

// max(m, largest value of a held operand); NaN gives way
template <class H, class Cols>
__device__ __forceinline__ auto max_of(const H& held, const Cols& cols, typename H::A m) {
  for_slots(cols, [&](int j, auto each) {
    const auto slot = held.get(j);
    each([&](int w) { m = fmax(m, to_acc(slot.e[w])); });
  });
  return m;
}

// Slot j of the row is what value_of(j)(w) says, rounded to S on the way
template <class S, class Cols, class F>
__device__ __forceinline__ void write_slots(S* row, const Cols& cols, F value_of) {
  const bool words = Piece<S, Cols>::in_words(row, cols);
  for_slots(cols, [&](int j, auto each) {
    const auto value = value_of(j);
    Pack<S, Cols::kWidth> out;
    each([&](int w) { out.e[w] = store_as<S>(value(w)); });
    Piece<S, Cols>::put(out, row, cols, j, words, each);
  });
}

// The thread's columns of a row as they are, from memory to memory: for rare rows, in little code
template <class S, class Cols>
__device__ void copy_row(const S* from, S* to, const Cols& cols) {
#pragma unroll 1
  for (int j = 0; j < Cols::kSlots; ++j) {
#pragma unroll 1
    for (int w = 0; w < Cols::kWidth; ++w) {
      if (cols.has(j, w)) to[cols.of(j) + w] = from[cols.of(j) + w];
    }
  }
}

// row[k] = value(j, w) for the thread's columns k; rounded to S on the way
template <class S, class Cols, class F>
__device__ __forceinline__ void write_row(S* row, const Cols& cols, F value) {
  write_slots(row, cols, [&](int j) { return [&, j](int w) { return value(j, w); }; });
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
