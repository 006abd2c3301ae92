// Where the operands of a resident row lie: in registers, or in shared memory, so that a multiprocessor holds more
// rows.
#pragma once

#include "vector.cuh"

namespace fastmeta::cuda {

// Long rows leave room for one or two blocks if registers hold them: what is read again waits in shared memory then.
template <class G>
constexpr bool parks() {
  return G::kResident && G::kThreads >= 512;
}
template <bool kPark, class S, class Cols, class G>
using Held = std::conditional_t<kPark, Parked<S, Cols, G::kBlock>, Piece<S, Cols>>;

// A held operand, with its part of the block's shared memory
template <class H>
__device__ H held(unsigned char*& memory) {
  if constexpr (requires { H::kBytes; }) {
    H h(memory);
    memory += H::kBytes;
    return h;
  } else {
    H h;  // H() would be zeros
    return h;
  }
}
template <class H>
constexpr size_t held_bytes() {
  if constexpr (requires { H::kBytes; }) {
    return H::kBytes;
  } else {
    return 0;
  }
}

}  // namespace fastmeta::cuda
