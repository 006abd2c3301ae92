// Rows over threads, by a loop that ops/schemas.cpp lends from torch (so torch.set_num_threads holds); serial without
// one.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "../kernels.h"
#include "simd.h"

namespace fastmeta::cpu {

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t n, int64_t grain, RangeBody body, void* context);
inline ParallelFor parallel_for = nullptr;

// Fewer elements than this are not worth a second thread.
#ifndef FASTMETA_GRAIN  // a test that shares out small batches
#define FASTMETA_GRAIN 32768
#endif
constexpr int64_t kGrain = FASTMETA_GRAIN;

// body(begin, end) over [0, n) in contiguous pieces. It must not throw: an exception in a worker loses its text.
template <class Body>
void over_rows(int64_t n, int64_t C, Body body) {
  if (n == 0) return;
  const int64_t grain = kGrain / C > 1 ? kGrain / C : 1;
  if (parallel_for == nullptr || n <= grain) return body(int64_t{0}, n);
  parallel_for(n, grain, [](int64_t i, int64_t j, void* context) { (*static_cast<Body*>(context))(i, j); }, &body);
}

// Padded scratch rows of one thread, kept between calls.
template <class A>
class Scratch {
 public:
  Scratch(int rows, int64_t C) : stride_(padded<A>(C)) {
    const size_t lines = (static_cast<size_t>(rows) * stride_ * sizeof(A) + kLine - 1) / kLine;
    const size_t bytes = lines * kLine;  // aligned_alloc takes multiples of the alignment alone
    if (bytes > held_.bytes) {
      held_.data.reset(static_cast<char*>(std::aligned_alloc(kLine, bytes)));
      held_.bytes = held_.data ? bytes : 0;
      if (!held_.data) throw std::bad_alloc();
    }
    rows_ = reinterpret_cast<A*>(held_.data.get());  // once: to look for what a thread holds takes a call
  }
  A* operator[](int row) const { return rows_ + row * stride_; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  struct Held {
    std::unique_ptr<char, Free> data;
    size_t bytes = 0;
  };
  static constexpr size_t kLine = 64;
  static inline thread_local Held held_;
  int64_t stride_;
  A* rows_;
};

// A kernel's entry points: one for each machine code, of which `Kernel` is inlined into. A Kernel is a lambda template
// over its vector V.
template <class Kernel, class A, class Args>
FASTMETA_NARROW void run_narrow(const Args& args, int64_t begin, int64_t end) {
  Kernel{}.template operator()<Simd<A, 32>>(args, begin, end);
}
#ifdef FASTMETA_WIDE
template <class Kernel, class A, class Args>
FASTMETA_WIDE void run_wide(const Args& args, int64_t begin, int64_t end) {
  Kernel{}.template operator()<Simd<A, 64>>(args, begin, end);
}
inline bool has_wide() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");  // x86-64-v4
  return has;
}
#endif

template <class A, class Kernel, class Args>
void run(Kernel, const Args& args, int64_t begin, int64_t end) {
#ifdef FASTMETA_WIDE
  if (has_wide()) return run_wide<Kernel, A>(args, begin, end);
#endif
  run_narrow<Kernel, A>(args, begin, end);
}

// kernel<V>(args, begin, end) over n rows (or groups of rows), with V of the scalars acc(dtype)
#define FASTMETA_OVER_ROWS(kernel, args, dtype, n)                                                               \
  do {                                                                                                           \
    const auto code = []<class V>(const auto& a, int64_t begin, int64_t end)                                     \
                          __attribute__((always_inline)) { kernel<V>(a, begin, end); };                          \
    over_rows((n), (args).C, [&](int64_t begin, int64_t end) {                                                   \
      (dtype) == DType::kFloat64 ? run<double>(code, (args), begin, end) : run<float>(code, (args), begin, end); \
    });                                                                                                          \
  } while (false)

template <class A>
FASTMETA_INLINE A value(const ConstVector& x, int64_t i) {
  return static_cast<const A*>(x.data)[i * x.stride];
}
template <class A>
FASTMETA_INLINE A weight_of(const ConstVector& weight, int64_t i) {
  return weight.data == nullptr ? A(1) : value<A>(weight, i);
}

}  // namespace fastmeta::cpu
