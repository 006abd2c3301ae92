// Primitives over one row in scratch memory, each vectorised for every instruction set (rows.cpp).
//
// A row in scratch is padded to whole vectors and aligned to 64 bytes, in A = acc(T). The padding repeats the row's
// first element (so it never is a new maximum and is finite when the row is), except in rows of exponentials and where
// load_row is told otherwise: there it is zero and adds nothing to a sum.
#pragma once

#include "../kernels.h"
#include "../softmax_math.h"

namespace fastmeta::cpu {

enum class Padding { kFirst, kZero };

template <class A>
void load_row(const ConstMatrix& from, int64_t i, int64_t C, A* x, Padding padding = Padding::kFirst);

template <class A>
void store_row(const A* x, int64_t C, const Matrix& to, int64_t i);

template <class A>
bool all_finite(const A* x, int64_t C);

// e_k = exp(x_k - shift), padding zero; returns sum_k e_k
template <class A>
A exp_row(const A* x, A shift, int64_t C, A* e);

// m and S of a row; e_k = exp(x_k - m), padding zero
template <class A>
MaxSum<A> softmax_row(const A* x, int64_t C, A* e);

template <class A>
A sum_row(const A* x, int64_t C);  // padding zero

template <class A>
A dot_row(const A* a, const A* b, int64_t C);  // one of the two has padding zero

// sum_k a_k (m - x_k); a has padding zero
template <class A>
A below_row(const A* a, A m, const A* x, int64_t C);

// sum_k (m - x_k), padding aside
template <class A>
A below_row(A m, const A* x, int64_t C);

// out_k = a_k * f - b_k * g
template <class A>
void difference_row(const A* a, A f, const A* b, A g, int64_t C, A* out);

// out_k = a_k * f * (b_k - c)
template <class A>
void centred_product_row(const A* a, A f, const A* b, A c, int64_t C, A* out);

// out_k += a_k * f * (b_k - c)
template <class A>
void add_centred_product_row(const A* a, A f, const A* b, A c, int64_t C, A* out);

// out_k = f * (x_k - c)
template <class A>
void centred_row(const A* x, A f, A c, int64_t C, A* out);

// out_k = x_k - f * d_k
template <class A>
void step_row(const A* x, A f, const A* d, int64_t C, A* out);

template <class A>
void fill_row(A value, int64_t C, A* out);

}  // namespace fastmeta::cpu
