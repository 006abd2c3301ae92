// theta* of many parameters in one launch: read theta, g and b, write theta*, whatever the sizes of the parameters.
//
// Every parameter is cut into chunks, one for each block, and the kernel's argument is the table of all parameters with
// the number of the first chunk of each; a block finds its parameter there by bisection. As an argument the table is
// copied by the launch, so a captured graph holds its own and needs no memory of the host, which a copy to the device
// inside a capture would read again at each replay.
//
// Arguments may be 4 KB long, or 32,764 bytes with a toolkit from 12.1 and a driver from 530 on, which every driver for
// CUDA 13 is. Two kernels, because a launch copies its whole argument: a ResNet-18, 62 parameters, takes the small one.
#include <algorithm>

#include "../lookahead_math.h"
#include "vector.cuh"

namespace fastmeta::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------

template <int kParameters>
struct LookaheadTable {
  static constexpr int kCapacity = kParameters;
  Scalar lr;
  double gain, carry, weight_decay;
  int count;
  int first[kCapacity];  // chunk of each parameter
  LookaheadTensor tensor[kCapacity];
};
using SmallTable = LookaheadTable<90>;
using LargeTable = LookaheadTable<CUDART_VERSION >= 12010 ? 740 : 91>;
static_assert(sizeof(SmallTable) <= 4096);
static_assert(sizeof(LargeTable) <= (CUDART_VERSION >= 12010 ? 32764 : 4096));

// 64 bytes of every operand for each thread: all loads leave before the first is waited for. Half of it in float64,
// which would spill.
template <class T>
using Chunk = Geometry<256, sizeof(T) == 8 ? 4 : 64 / static_cast<int>(sizeof(T)), true>;

// Elements of T between p and the 16-byte boundary before it. Chunks are laid out from there.
template <class T>
__host__ __device__ int lead_of(const void* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
}

template <class T, class Table>
__global__ void __launch_bounds__(Chunk<T>::kBlock, 1024 / Chunk<T>::kBlock)
    lookahead_kernel(const __grid_constant__ Table table) {
  using A = acc_t<T>;
  using Cols = Columns<Chunk<T>, slot_width<T>()>;
  const int block = static_cast<int>(blockIdx.x);
  int low = 0;
  for (int high = table.count - 1; low < high;) {
    const int middle = (low + high + 1) / 2;
    if (table.first[middle] <= block) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const LookaheadTensor& t = table.tensor[low];
  const int64_t from = static_cast<int64_t>(block - table.first[low]) * Chunk<T>::kCapacity - lead_of<T>(t.param);
  const int64_t begin = from < 0 ? 0 : from, end = from + Chunk<T>::kCapacity;
  const T* theta_row = static_cast<const T*>(t.param) + begin;
  const Cols cols(theta_row, (end < t.numel ? end : t.numel) - begin, static_cast<int>(threadIdx.x));

  Piece<T, Cols> theta, g, b = {};
  theta.load(theta_row, cols);
  g.load(static_cast<const T*>(t.grad) + begin, cols);
  if (t.buffer != nullptr) b.load(static_cast<const T*>(t.buffer) + begin, cols);
  const LookaheadRates<A> rates(value_of(table.lr), table.gain, table.carry, table.weight_decay);
  write_row(static_cast<T*>(t.out) + begin, cols,
            [&](int s, int w) { return rates.moved(theta.at(s, w), g.at(s, w), b.at(s, w)); });
}

// ---------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------

// Launches up to a table of the `count` tensors and returns how many it took.
template <class T, class Table>
int64_t launch_table(const LookaheadArgs& a, const LookaheadTensor* tensors, int64_t count, void* stream) {
  Table table;
  table.lr = a.lr;
  table.gain = a.gain;
  table.carry = a.carry;
  table.weight_decay = a.weight_decay;
  table.count = 0;
  int64_t taken = 0, chunks = 0;
  for (; taken < count && table.count < Table::kCapacity; ++taken) {
    const LookaheadTensor& t = tensors[taken];
    if (t.numel == 0) continue;
    const int64_t more = (t.numel + lead_of<T>(t.param) + Chunk<T>::kCapacity - 1) / Chunk<T>::kCapacity;
    if (chunks + more > INT_MAX && table.count > 0) break;
    table.first[table.count] = static_cast<int>(chunks);
    table.tensor[table.count++] = t;
    chunks += more;
  }
  launch<Chunk<T>>(lookahead_kernel<T, Table>, table, chunks, 1, 0, stream, "lookahead_update");
  return taken;
}

}  // namespace

void lookahead_update(const LookaheadArgs& a, void* stream) {
  with_dtype(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    for (int64_t done = 0; done < a.count;) {
      const int64_t left = a.count - done;
      done += left <= SmallTable::kCapacity ? launch_table<T, SmallTable>(a, a.tensors + done, left, stream)
                                            : launch_table<T, LargeTable>(a, a.tensors + done, left, stream);
    }
  });
}

}  // namespace fastmeta::cuda
