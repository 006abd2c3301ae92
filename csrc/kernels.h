// Launchers of both devices: raw pointers, sizes, strides, stream. No torch header here or below.
//
// Every launcher exists twice with the same arguments, fastmeta::cpu::NAME(args) and
// fastmeta::cuda::NAME(args, stream). Dtypes have been checked in ops/ before a launcher is reached:
//
//   logits, v, grad_logits         T    one of float64, float32, bfloat16, float16
//   u                              T or acc(T)
//   label rows / tables, probs     T or acc(T), or bfloat16 when acc(T) is float32
//   row statistics, alpha, weight  acc(T)
//
// with acc(float64) = float64 and float32 for all others: the type that every sum and exponential is taken in.
// Equations stand beside the schemas in ops/schemas.cpp; `fastmeta.reference` has the same names in plain torch.
#pragma once

#include <cstdint>

namespace fastmeta {

enum class DType : int { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

constexpr int64_t size_of(DType t) { return t == DType::kFloat64 ? 8 : t == DType::kFloat32 ? 4 : 2; }

// Element (i, k) stands at data + (i * row_stride + k) * size_of(dtype): columns are adjacent, rows need not be.
// data == nullptr means "absent" where an argument is optional and "not wanted" where a result is.
struct ConstMatrix {
  const void* data = nullptr;
  int64_t row_stride = 0;  // in elements; 0 repeats one row
  DType dtype = DType::kFloat32;
};
struct Matrix {
  void* data = nullptr;
  int64_t row_stride = 0;
  DType dtype = DType::kFloat32;
};
// One value per row, in acc(T). Inputs may be strided (an expanded gradient has stride 0); results are dense.
struct ConstVector {
  const void* data = nullptr;
  int64_t stride = 1;
};
// Row numbers or class numbers.
struct IndexVector {
  const int64_t* data = nullptr;
  int64_t stride = 1;
};
// A learning rate: read on the device where `device` is set (so that a captured graph follows it), else `host`.
struct Scalar {
  const void* device = nullptr;
  DType dtype = DType::kFloat64;  // of *device: float64 or float32
  double host = 0;
};
// The number of a step: read on the device where `device` is set, else `host`.
struct Counter {
  const int64_t* device = nullptr;
  int64_t host = 0;
};

// How label rows are rounded to a bfloat16 table: to nearest, or stochastically (rng.h) with the bits of
// (seed, step, row of the table, column). Other tables are rounded to nearest, if at all.
struct Rounding {
  Counter step;
  uint64_t seed = 0;
  bool stochastic = false;
};

struct SoftCrossEntropyArgs {
  int64_t n, C;
  ConstMatrix logits;  // (n, C)
  ConstMatrix probs;   // (n, C), rows need not sum to one
  void* loss;          // (n,) acc   sum_k p_k (lse - z_k)
  void* lse;           // (n,) acc
};

struct SoftCrossEntropyBackwardArgs {
  int64_t n, C;
  ConstMatrix logits, probs;  // (n, C)
  ConstVector lse, grad;      // (n,) saved lse, the shift of the exponentials (never exp(z - lse) as q, see
                              // softmax_math.h); gradient of the loss
  Matrix grad_logits;         // (n, C) grad * (s q - p), s = sum_k p_k
  Matrix grad_probs;          // (n, C) grad * (lse - z)
};

struct HvpArgs {  // soft_cross_entropy_hvp and soft_cross_entropy_label_grad
  int64_t n, C;
  ConstMatrix logits;  // (n, C)
  ConstMatrix probs;   // (n, C) or absent (s = 1); only their row sum s counts; hvp alone
  ConstMatrix v;       // (n, C) direction
  Matrix out;          // (n, C) hvp: s q (v - <q, v>)   label_grad: v - <q, v>
};

// Skipped rows: their loss, v, entropy and alignment are NaN, their label row is left as it is. No other row's loss is
// NaN, so that nobody needs to count them here: a counter that blocks add to would have to be zeroed by a launch
// before. A batch row i is skipped when
//   * its logits, u or weight hold a NaN or an infinity (it then adds nothing to its label row's gradient),
//   * its index or target is out of range (read and write nothing by it),
//   * the label row (or alpha) that it points at holds a NaN or an infinity before the step or, as stored, after it;
//     a scale or label_lr that is not finite counts as the latter.
// Other rows are unaffected, also other occurrences of the same label row in the first case.
struct InstanceLossArgs {
  int64_t n, C;
  int64_t N;                 // rows of the table
  ConstMatrix logits;        // (n, C)
  ConstMatrix label_logits;  // (N, C) table
  IndexVector index;         // (n,) rows of the table
  ConstVector weight;        // (n,) or absent
  void* loss;                // (n,) acc   -sum_k p_k log q_k, unweighted
  Matrix v;                  // (n, C) T   weight * (q - p)
  void* entropy;             // (n,) acc   -sum_k p_k log p_k
};

struct InstanceLabelStepArgs {
  int64_t n, C;
  int64_t N;            // rows of the table (in place), else n
  bool functional;      // false: read and write row index[i] of `table`; true: read row i of `rows_in`, write row i of
                        // `rows_out`
  Matrix table;         // (N, C) in place
  ConstMatrix rows_in;  // (n, C) functional twin
  Matrix rows_out;      // (n, C) functional twin
  IndexVector index;    // (n,) rows of the table; the functional twin compares them (equal means the same sample) and
                        // draws by them
  bool unique;          // the caller promises that index holds no row twice
  // else the first occurrence owns the row: it sums the gradients of all in batch order and writes once; every
  // occurrence gets its loss, v, ... from that one new row, and (functional) a copy of it in rows_out
  ConstMatrix logits;  // (n, C)
  ConstMatrix u;       // (n, C) logit tangent
  ConstVector weight;  // (n,) or absent: the training loss is sum_i weight_i L_i / n
  Scalar scale;        // lambda / n
  Scalar label_lr;
  Rounding rounding;
  // gradient of label row r = scale * sum_{i: index_i = r} weight_i p (u_i - <p, u_i>);  row -= label_lr * gradient
  void* loss;       // (n,) acc   with the new row, unweighted
  Matrix v;         // (n, C) T   weight * (q - p_new)
  void* entropy;    // (n,) acc   of p_new
  void* alignment;  // (n,) acc   <q - p_old, u>
};

struct ClassLossArgs {
  int64_t n, C;
  ConstMatrix logits;   // (n, C)
  ConstVector alpha;    // (C,) acc   smoothing: p_y = 1 - alpha_y, every other class alpha_y / (C - 1)
  IndexVector targets;  // (n,) given classes
  ConstVector weight;   // (n,) or absent
  void* loss;
  Matrix v;
  void* entropy;
};

struct ClassLabelStepArgs {
  int64_t n, C;
  ConstVector alpha_in;  // (C,) acc
  void* alpha_out;       // (C,) acc, dense; the same memory as alpha_in for the in-place op
  IndexVector targets;
  ConstMatrix logits, u;
  ConstVector weight;
  Scalar scale, label_lr;
  // gradient of alpha_c = scale * sum_{i: y_i = c} weight_i (mean_{k != c} u_ik - u_ic), summed in batch order;
  // alpha_c = clamp(alpha_c - label_lr * gradient, 0, 1) for the classes of the batch, others untouched (copied from
  // alpha_in where alpha_out is other memory)
  void* loss;
  Matrix v;
  void* entropy;
  void* alignment;
  void* workspace;  // (2, n) acc scratch: row terms and old alphas, so that no row reads an alpha half-way through
};

struct RowDotArgs {
  int64_t n, C;
  ConstMatrix a, b;  // (n, C), one dtype T
  void* out;         // (n,) acc   <a_i, b_i>
};

// Draws of one image: random_bits(seed, step, row, 0) of rng.h, with row = index[i].
struct LoadImagesArgs {
  int64_t n, C;                // images of the batch; channels
  int64_t N, height, width;    // of the set
  const uint8_t* images;       // (N, height, width, C) dense
  IndexVector index;           // (n,) rows of the set; out of range: the image is NaN, and nothing is read
  const void *center, *scale;  // (C,) acc of the result, dense: (pixel - center) * scale, which no compiler contracts
  int64_t padding;             // the crop is shifted by -padding .. padding in each direction; below height and width
  bool reflect;                // what stands outside: mirrored pixels without the edge itself, or pixels of value 0
  bool flip;                   // mirror the crop left to right with probability one half
  uint64_t seed;
  Counter step;
  void* out;  // (n, height, width, C) dense
  DType dtype;
};

// One parameter of a look-ahead: numel elements in memory order, which is the same for all of its operands.
struct LookaheadTensor {
  const void *param, *grad;
  const void* buffer;  // momentum, or nullptr
  void* out;
  int64_t numel;
};
struct LookaheadArgs {
  const LookaheadTensor* tensors;  // on the host, read before the launcher returns
  int64_t count;
  DType dtype;  // T, of all of them
  Scalar lr;
  double gain, carry, weight_decay;  // out = param - lr (gain (grad + weight_decay param) + carry buffer)
};

#define FASTMETA_LAUNCHERS(X)                                  \
  X(soft_cross_entropy, SoftCrossEntropyArgs)                  \
  X(soft_cross_entropy_backward, SoftCrossEntropyBackwardArgs) \
  X(soft_cross_entropy_hvp, HvpArgs)                           \
  X(soft_cross_entropy_label_grad, HvpArgs)                    \
  X(instance_loss, InstanceLossArgs)                           \
  X(instance_label_step, InstanceLabelStepArgs)                \
  X(class_loss, ClassLossArgs)                                 \
  X(class_label_step, ClassLabelStepArgs)                      \
  X(row_dot, RowDotArgs)                                       \
  X(load_images, LoadImagesArgs)                               \
  X(lookahead_update, LookaheadArgs)

namespace cpu {
#define FASTMETA_DECLARE(name, args) void name(const args&);
FASTMETA_LAUNCHERS(FASTMETA_DECLARE)
#undef FASTMETA_DECLARE
}  // namespace cpu

namespace cuda {  // `stream` is a cudaStream_t; a failed launch throws std::runtime_error
#define FASTMETA_DECLARE(name, args) void name(const args&, void* stream);
FASTMETA_LAUNCHERS(FASTMETA_DECLARE)
#undef FASTMETA_DECLARE
}  // namespace cuda

}  // namespace fastmeta
