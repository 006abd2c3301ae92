#include "rows.h"

#include "simd.h"

namespace fastmeta::cpu {

namespace {

// always_inline, or the lambda would be compiled once, for plain x86-64
#define BODY(k) [&](int64_t k) __attribute__((always_inline))

template <class T>
FASTMETA_CLONES void widen(const T* from, int64_t C, float* to) {
  for (int64_t k = 0; k < C; ++k) to[k] = to_acc(from[k]);
}

template <class T>
FASTMETA_CLONES void narrow(const float* from, int64_t C, T* to) {
  for (int64_t k = 0; k < C; ++k) to[k] = from_acc<T>(from[k]);
}

template <class T>
const T* row_of(const ConstMatrix& m, int64_t i) {
  return static_cast<const T*>(m.data) + i * m.row_stride;
}
template <class T>
T* row_of(const Matrix& m, int64_t i) {
  return static_cast<T*>(m.data) + i * m.row_stride;
}

void read(const ConstMatrix& from, int64_t i, int64_t C, double* x) {
  std::memcpy(x, row_of<double>(from, i), C * sizeof(double));
}
void read(const ConstMatrix& from, int64_t i, int64_t C, float* x) {
  switch (from.dtype) {
    case DType::kBFloat16:
      return widen(row_of<BFloat16>(from, i), C, x);
    case DType::kFloat16:
      return widen(row_of<Float16>(from, i), C, x);
    default:
      std::memcpy(x, row_of<float>(from, i), C * sizeof(float));
  }
}

void write(const double* x, int64_t C, const Matrix& to, int64_t i) {
  std::memcpy(row_of<double>(to, i), x, C * sizeof(double));
}
void write(const float* x, int64_t C, const Matrix& to, int64_t i) {
  switch (to.dtype) {
    case DType::kBFloat16:
      return narrow(x, C, row_of<BFloat16>(to, i));
    case DType::kFloat16:
      return narrow(x, C, row_of<Float16>(to, i));
    default:
      std::memcpy(row_of<float>(to, i), x, C * sizeof(float));
  }
}

}  // namespace

template <class A>
void load_row(const ConstMatrix& from, int64_t i, int64_t C, A* x, Padding padding) {
  read(from, i, C, x);
  for (int64_t k = C; k < padded<A>(C); ++k) x[k] = padding == Padding::kFirst ? x[0] : A(0);
}

template <class A>
void store_row(const A* x, int64_t C, const Matrix& to, int64_t i) {
  write(x, C, to, i);
}

template <class A>
FASTMETA_CLONES bool all_finite(const A* x, int64_t C) {
  Sum<A> sum;  // 0 * x is 0, or NaN where x is not finite
  sweep<A>(C, BODY(k) { sum += load(x + k) * A(0); }, sum);
  return sum.value() == 0;
}

template <class A>
FASTMETA_CLONES A exp_row(const A* x, A shift, int64_t C, A* e) {
  sweep<A>(C, BODY(k) { store(e + k, exp<A>(load(x + k) - shift)); });
  clear_padding(e, C);
  Sum<A> sum;
  sweep<A>(C, BODY(k) { sum += load(e + k); }, sum);
  return sum.value();
}

template <class A>
FASTMETA_CLONES A max_row(const A* x, int64_t C) {
  Vec<A> most = load(x);
  sweep<A>(
      C, BODY(k) {
        const Vec<A> v = load(x + k);
        most = where_negative<A>(most - v, v, most);  // a NaN may get lost here; it shows in the sum of exponentials
      });
  A lanes[Simd<A>::kLanes];
  std::memcpy(lanes, &most, sizeof(lanes));
  A m = lanes[0];
  for (const A lane : lanes) m = lane > m ? lane : m;
  return m;
}

template <class A>
MaxSum<A> softmax_row(const A* x, int64_t C, A* e) {
  const A m = max_row(x, C);
  return {m, exp_row(x, m, C, e)};
}

template <class A>
FASTMETA_CLONES A sum_row(const A* x, int64_t C) {
  Sum<A> sum;
  sweep<A>(C, BODY(k) { sum += load(x + k); }, sum);
  return sum.value();
}

template <class A>
FASTMETA_CLONES A dot_row(const A* a, const A* b, int64_t C) {
  Sum<A> sum;
  sweep<A>(C, BODY(k) { sum += load(a + k) * load(b + k); }, sum);
  return sum.value();
}

template <class A>
FASTMETA_CLONES A below_row(const A* a, A m, const A* x, int64_t C) {
  Sum<A> sum;
  sweep<A>(C, BODY(k) { sum += load(a + k) * (m - load(x + k)); }, sum);
  return sum.value();
}

template <class A>
FASTMETA_CLONES A below_row(A m, const A* x, int64_t C) {
  Sum<A> sum;
  sweep<A>(C, BODY(k) { sum += m - load(x + k); }, sum);
  return sum.value() - static_cast<A>(padded<A>(C) - C) * (m - x[0]);
}

template <class A>
FASTMETA_CLONES void difference_row(const A* a, A f, const A* b, A g, int64_t C, A* out) {
  sweep<A>(C, BODY(k) { store(out + k, load(a + k) * f - load(b + k) * g); });
}

template <class A>
FASTMETA_CLONES void centred_product_row(const A* a, A f, const A* b, A c, int64_t C, A* out) {
  sweep<A>(C, BODY(k) { store(out + k, load(a + k) * f * (load(b + k) - c)); });
}

template <class A>
FASTMETA_CLONES void add_centred_product_row(const A* a, A f, const A* b, A c, int64_t C, A* out) {
  sweep<A>(C, BODY(k) { store(out + k, load(out + k) + load(a + k) * f * (load(b + k) - c)); });
}

template <class A>
FASTMETA_CLONES void centred_row(const A* x, A f, A c, int64_t C, A* out) {
  sweep<A>(C, BODY(k) { store(out + k, f * (load(x + k) - c)); });
}

template <class A>
FASTMETA_CLONES void step_row(const A* x, A f, const A* d, int64_t C, A* out) {
  sweep<A>(C, BODY(k) { store(out + k, load(x + k) - f * load(d + k)); });
}

template <class A>
void fill_row(A value, int64_t C, A* out) {
  for (int64_t k = 0; k < padded<A>(C); ++k) out[k] = value;
}

#define INSTANTIATE(A)                                                          \
  template void load_row(const ConstMatrix&, int64_t, int64_t, A*, Padding);    \
  template void store_row(const A*, int64_t, const Matrix&, int64_t);           \
  template bool all_finite(const A*, int64_t);                                  \
  template A exp_row(const A*, A, int64_t, A*);                                 \
  template MaxSum<A> softmax_row(const A*, int64_t, A*);                        \
  template A sum_row(const A*, int64_t);                                        \
  template A dot_row(const A*, const A*, int64_t);                              \
  template A below_row(const A*, A, const A*, int64_t);                         \
  template A below_row(A, const A*, int64_t);                                   \
  template void difference_row(const A*, A, const A*, A, int64_t, A*);          \
  template void centred_product_row(const A*, A, const A*, A, int64_t, A*);     \
  template void add_centred_product_row(const A*, A, const A*, A, int64_t, A*); \
  template void centred_row(const A*, A, A, int64_t, A*);                       \
  template void step_row(const A*, A, const A*, int64_t, A*);                   \
  template void fill_row(A, int64_t, A*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::cpu
