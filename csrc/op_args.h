// The operations as the dispatcher calls them, for either device: check the arguments, allocate the results, fill the
// structs of kernels.h, launch. `Ops<Device>` asks of Device
//
//     static constexpr bool checks_indices;                 whether indices can be read (and checked) before the launch
//     static void NAME(const Tensor& on, const Args&);        for each launcher NAME of kernels.h: launch on on's
//     device
//
// Equations, shapes and returns stand beside the schemas in ops.cpp.
#pragma once

#include <tuple>

#include "arguments.h"

namespace fastmeta {

// ---------------------------------------------------------------------------------------------------------
// Arguments
// ---------------------------------------------------------------------------------------------------------

// The logits of an op: they set n, C, T, acc(T) and the device that everything else has to match.
class __attribute__((visibility("hidden"))) Batch {
 public:
  explicit Batch(const Tensor& logits, const char* name = "logits", int64_t min_columns = 2)
      : logits_(logits), name_(name) {
    FASTMETA_CHECK(logits.dim() == 2, name, " must have two dimensions (n, C), got shape ", shape_text(logits));
    n = logits.size(0);
    C = logits.size(1);
    FASTMETA_CHECK(C >= min_columns, name, " must have at least ", min_columns, " column",
                   min_columns == 1 ? "" : "s (classes)", ", got shape ", shape_text(logits));
    type = logits.scalar_type();
    FASTMETA_CHECK(is_floating(type), name, " must be float64, float32, bfloat16 or float16, got ", dtype_text(type));
    acc = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    check_columns(logits, name);
  }

  int64_t n, C;
  ScalarType type, acc;

  ConstMatrix logits() const { return view(logits_, name_); }

  // (n, C) in T or acc(T): a direction
  ConstMatrix direction(const Tensor& t, const char* name) const {
    check_matrix(t, name, n, "");
    check_type(t, name, t.scalar_type() == type || t.scalar_type() == acc, false);
    return view(t, name);
  }
  // (n, C) in T
  ConstMatrix same(const Tensor& t, const char* name) const {
    check_matrix(t, name, n, "");
    FASTMETA_CHECK(t.scalar_type() == type, name, " must be ", dtype_text(type), " as ", name_, ", got ",
                   dtype_text(t.scalar_type()));
    return view(t, name);
  }
  // (n, C) in T, acc(T) or bfloat16: a distribution or rows of label logits
  ConstMatrix labels(const Tensor& t, const char* name, const char* way_out) const {
    check_matrix(t, name, n, way_out);
    check_label_type(t, name);
    return view(t, name);
  }
  // (N, C), N >= 1 unless the batch is empty
  ConstMatrix table(const Tensor& t, const char* name) const {
    FASTMETA_CHECK(t.dim() == 2 && t.size(1) == C, name, " must have shape (N, ", C, ") to match ", name_, ", got ",
                   shape_text(t), "; it is the table of all training samples, rows are picked by index");
    check_device(t, name);
    check_columns(t, name);
    check_label_type(t, name);
    return view(t, name);
  }
  Matrix table_in_place(const Tensor& t, const char* name) const {
    table(t, name);
    FASTMETA_CHECK(t.size(0) <= 1 || t.stride(0) >= C, name,
                   " is written in place and needs rows of its own, got strides ", shape_text(t.strides().data(), 2),
                   "; pass a table that is not expanded or overlapping");
    return {t.mutable_data_ptr(), t.stride(0), dtype_of(t)};
  }
  // (length,) in acc(T)
  ConstVector vector(const Tensor& t, const char* name, int64_t length) const {
    FASTMETA_CHECK(t.dim() == 1 && t.size(0) == length, name, " must have shape (", length, ",) to match ", name_,
                   ", got ", shape_text(t));
    check_device(t, name);
    FASTMETA_CHECK(t.scalar_type() == acc, name, " must be ", dtype_text(acc), " with ", dtype_text(type), " ", name_,
                   ", got ", dtype_text(t.scalar_type()), "; use ", name, ".to(torch.", dtype_text(acc), ")");
    return {data_of(t, name), t.stride(0)};
  }
  ConstVector row_values(const Tensor& t, const char* name) const { return vector(t, name, n); }
  ConstVector weight(const std::optional<Tensor>& t) const { return t ? row_values(*t, "weight") : ConstVector{}; }

  // (n,) int64. With check_values they must lie in [0, limit); `of` says what they count.
  IndexVector index(const Tensor& t, const char* name, bool check_values, int64_t limit, const char* of) const {
    FASTMETA_CHECK(t.dim() == 1 && t.size(0) == n, name, " must have shape (", n, ",) to match ", name_, ", got ",
                   shape_text(t));
    check_device(t, name);
    return int64_values(t, name, check_values, limit, of);
  }

  Scalar scalar(const Tensor& t, const char* name) const { return scalar_argument(t, name, logits_, name_); }

  // seed and step come together
  Rounding rounding(std::optional<int64_t> seed, const std::optional<Tensor>& step) const {
    Rounding x;
    if (!seed && !step) return x;
    FASTMETA_CHECK(seed && step, "stochastic rounding needs seed and step, got ", seed ? "seed" : "step",
                   " alone; pass both, or neither to round to nearest");
    x.stochastic = true;
    x.seed = static_cast<uint64_t>(*seed);
    x.step = counter_argument(*step, "step", logits_, name_);
    return x;
  }

  // -------------------------------------------------------------------------------------------------------
  // Results, on the batch's device
  // -------------------------------------------------------------------------------------------------------

  Tensor new_rows(int64_t rows, ScalarType dtype) const {
    const int64_t sizes[] = {rows, C}, strides[] = {C, 1};
    return empty(2, sizes, strides, dtype);
  }
  Tensor new_values(int64_t length) const {
    const int64_t size = length, stride = 1;
    return empty(1, &size, &stride, acc);
  }
  Tensor new_workspace(int64_t rows) const { return new_values(rows * n); }

  static Matrix output(const Tensor& t) { return {t.mutable_data_ptr(), t.stride(0), dtype_of(t)}; }

 private:
  static ConstMatrix view(const Tensor& t, const char* name) { return {data_of(t, name), t.stride(0), dtype_of(t)}; }

  void check_matrix(const Tensor& t, const char* name, int64_t rows, const char* way_out) const {
    FASTMETA_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == C, name, " must have shape (", rows, ", ", C,
                   ") to match ", name_, ", got ", shape_text(t), way_out);
    check_device(t, name);
    check_columns(t, name);
  }
  static void check_columns(const Tensor& t, const char* name) {
    FASTMETA_CHECK(t.stride(1) == 1 || t.size(1) == 1 || t.numel() == 0, name,
                   " must have adjacent columns (stride 1), got strides ", shape_text(t.strides().data(), 2), "; use ",
                   name, ".contiguous()");
  }
  void check_label_type(const Tensor& t, const char* name) const {
    const ScalarType s = t.scalar_type();
    check_type(t, name, s == type || s == acc || (s == ScalarType::BFloat16 && acc == ScalarType::Float), true);
  }
  void check_type(const Tensor& t, const char* name, bool ok, bool label) const {
    if (ok) return;
    std::string allowed = dtype_text(acc);
    if (type != acc) allowed += std::string(" or ") + dtype_text(type);
    if (label && acc == ScalarType::Float && type != ScalarType::BFloat16) allowed += " or bfloat16";
    fail(name, " must be ", allowed, " with ", dtype_text(type), " ", name_, ", got ", dtype_text(t.scalar_type()));
  }
  void check_device(const Tensor& t, const char* name) const { fastmeta::check_device(t, name, logits_, name_); }
  Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType dtype) const {
    return empty_on(logits_, dim, sizes, strides, dtype);
  }

  const Tensor& logits_;
  const char* name_;
};

// ---------------------------------------------------------------------------------------------------------
// Operations
// ---------------------------------------------------------------------------------------------------------

template <class Device>
struct Ops {
  static std::tuple<Tensor, Tensor> soft_cross_entropy(const Tensor& logits, const Tensor& probs) {
    const Batch b(logits);
    const ConstMatrix p = b.labels(probs, "probs", "; pass soft labels");
    Tensor loss = b.new_values(b.n), lse = b.new_values(b.n);
    Device::soft_cross_entropy(logits, {b.n, b.C, b.logits(), p, loss.mutable_data_ptr(), lse.mutable_data_ptr()});
    return {loss, lse};
  }

  static std::tuple<Tensor, Tensor> soft_cross_entropy_backward(const Tensor& logits, const Tensor& probs,
                                                                const Tensor& lse, const Tensor& grad, bool need_logits,
                                                                bool need_probs) {
    const Batch b(logits);
    const ConstMatrix p = b.labels(probs, "probs", "; pass soft labels");
    SoftCrossEntropyBackwardArgs a{b.n, b.C, b.logits(), p, b.row_values(lse, "lse"), b.row_values(grad, "grad"),
                                   {},  {}};
    Tensor grad_logits = b.new_rows(need_logits ? b.n : 0, b.type);
    Tensor grad_probs = b.new_rows(need_probs ? b.n : 0, probs.scalar_type());
    if (need_logits) a.grad_logits = Batch::output(grad_logits);
    if (need_probs) a.grad_probs = Batch::output(grad_probs);
    Device::soft_cross_entropy_backward(logits, a);
    return {grad_logits, grad_probs};
  }

  static Tensor soft_cross_entropy_hvp(const Tensor& logits, const Tensor& v, const std::optional<Tensor>& probs) {
    const Batch b(logits);
    const ConstMatrix direction = b.direction(v, "v");
    const ConstMatrix p = probs ? b.labels(*probs, "probs", "; pass soft labels") : ConstMatrix{};
    Tensor out = b.new_rows(b.n, v.scalar_type());
    Device::soft_cross_entropy_hvp(logits, {b.n, b.C, b.logits(), p, direction, Batch::output(out)});
    return out;
  }

  static Tensor soft_cross_entropy_label_grad(const Tensor& logits, const Tensor& u) {
    const Batch b(logits);
    const ConstMatrix direction = b.direction(u, "u");
    Tensor out = b.new_rows(b.n, u.scalar_type());
    Device::soft_cross_entropy_label_grad(logits, {b.n, b.C, b.logits(), {}, direction, Batch::output(out)});
    return out;
  }

  static std::tuple<Tensor, Tensor, Tensor> instance_loss(const Tensor& logits, const Tensor& label_logits,
                                                          const Tensor& index, const std::optional<Tensor>& weight) {
    const Batch b(logits);
    InstanceLossArgs a{};
    a.n = b.n;
    a.C = b.C;
    a.logits = b.logits();
    a.label_logits = b.table(label_logits, "label_logits");
    a.N = label_logits.size(0);
    a.index = b.index(index, "index", Device::checks_indices, a.N, "rows of label_logits");
    a.weight = b.weight(weight);
    LabelResults r(b, a);
    Device::instance_loss(logits, a);
    return {r.loss, r.v, r.entropy};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> instance_label_step_(
      const Tensor& label_logits, const Tensor& index, const Tensor& logits, const Tensor& u, const Tensor& scale,
      const Tensor& label_lr, const std::optional<Tensor>& weight, bool unique, std::optional<int64_t> seed,
      const std::optional<Tensor>& step) {
    const Batch b(logits);
    InstanceLabelStepArgs a{};
    a.rounding = b.rounding(seed, step);
    a.table = b.table_in_place(label_logits, "label_logits");
    a.N = label_logits.size(0);
    a.index = b.index(index, "index", Device::checks_indices, a.N, "rows of label_logits");
    LabelResults r(b, a, u, scale, label_lr, weight, unique);
    check_read_apart(label_logits, "label_logits", index, "index", logits, u, scale, label_lr, weight);
    if (step) check_apart(label_logits, "label_logits", *step, "step");
    Device::instance_label_step(logits, a);
    return {r.loss, r.v, r.entropy, r.alignment};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> instance_label_step(
      const Tensor& label_rows, const Tensor& index, const Tensor& logits, const Tensor& u, const Tensor& scale,
      const Tensor& label_lr, const std::optional<Tensor>& weight, bool unique, std::optional<int64_t> seed,
      const std::optional<Tensor>& step) {
    const Batch b(logits);
    InstanceLabelStepArgs a{};
    a.rounding = b.rounding(seed, step);
    a.functional = true;
    a.rows_in = b.labels(label_rows, "label_rows", "; one row per batch row, label_logits[index]");
    a.N = b.n;
    a.index = b.index(index, "index", false, 0, "");
    Tensor rows = b.new_rows(b.n, label_rows.scalar_type());
    a.rows_out = Batch::output(rows);
    LabelResults r(b, a, u, scale, label_lr, weight, unique);
    Device::instance_label_step(logits, a);
    return {rows, r.loss, r.v, r.entropy, r.alignment};
  }

  static std::tuple<Tensor, Tensor, Tensor> class_loss(const Tensor& logits, const Tensor& alpha, const Tensor& targets,
                                                       const std::optional<Tensor>& weight) {
    const Batch b(logits);
    ClassLossArgs a{};
    a.n = b.n;
    a.C = b.C;
    a.logits = b.logits();
    a.alpha = b.vector(alpha, "alpha", b.C);
    a.targets = b.index(targets, "targets", Device::checks_indices, b.C, "classes");
    a.weight = b.weight(weight);
    LabelResults r(b, a);
    Device::class_loss(logits, a);
    return {r.loss, r.v, r.entropy};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> class_label_step_(const Tensor& alpha, const Tensor& targets,
                                                                      const Tensor& logits, const Tensor& u,
                                                                      const Tensor& scale, const Tensor& label_lr,
                                                                      const std::optional<Tensor>& weight) {
    const Batch b(logits);
    const ConstVector in = b.vector(alpha, "alpha", b.C);
    FASTMETA_CHECK(in.stride == 1, "alpha is written in place and must be contiguous, got stride ", in.stride);
    check_read_apart(alpha, "alpha", targets, "targets", logits, u, scale, label_lr, weight);
    const LabelResults r = class_step(b, logits, in, alpha.mutable_data_ptr(), targets, u, scale, label_lr, weight);
    return {r.loss, r.v, r.entropy, r.alignment};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> class_label_step(const Tensor& alpha, const Tensor& targets,
                                                                             const Tensor& logits, const Tensor& u,
                                                                             const Tensor& scale,
                                                                             const Tensor& label_lr,
                                                                             const std::optional<Tensor>& weight) {
    const Batch b(logits);
    const ConstVector in = b.vector(alpha, "alpha", b.C);
    Tensor out = b.new_values(b.C);
    const LabelResults r = class_step(b, logits, in, out.mutable_data_ptr(), targets, u, scale, label_lr, weight);
    return {out, r.loss, r.v, r.entropy, r.alignment};
  }

  static Tensor row_dot(const Tensor& a, const Tensor& b) {
    const Batch batch(a, "a", 1);
    const ConstMatrix other = batch.same(b, "b");
    Tensor out = batch.new_values(batch.n);
    Device::row_dot(a, {batch.n, batch.C, batch.logits(), other, out.mutable_data_ptr()});
    return out;
  }

 private:
  static void check_read_apart(const Tensor& written, const char* written_name, const Tensor& index,
                               const char* index_name, const Tensor& logits, const Tensor& u, const Tensor& scale,
                               const Tensor& label_lr, const std::optional<Tensor>& weight) {
    const auto apart = [&](const Tensor& t, const char* name) { check_apart(written, written_name, t, name); };
    apart(index, index_name);
    apart(logits, "logits");
    apart(u, "u");
    apart(scale, "scale");
    apart(label_lr, "label_lr");
    if (weight) apart(*weight, "weight");
  }

  // loss, v, entropy of every label op; alignment of the steps
  struct LabelResults {
    template <class Args>
    LabelResults(const Batch& b, Args& a)
        : loss(b.new_values(b.n)), v(b.new_rows(b.n, b.type)), entropy(b.new_values(b.n)) {
      a.loss = loss.mutable_data_ptr();
      a.v = Batch::output(v);
      a.entropy = entropy.mutable_data_ptr();
    }

    template <class Args>
    LabelResults(const Batch& b, Args& a, const Tensor& u, const Tensor& scale, const Tensor& label_lr,
                 const std::optional<Tensor>& weight)
        : LabelResults(b, a) {
      a.n = b.n;
      a.C = b.C;
      a.logits = b.logits();
      a.u = b.direction(u, "u");
      a.scale = b.scalar(scale, "scale");
      a.label_lr = b.scalar(label_lr, "label_lr");
      a.weight = b.weight(weight);
      alignment = b.new_values(b.n);
      a.alignment = alignment.mutable_data_ptr();
    }

    LabelResults(const Batch& b, InstanceLabelStepArgs& a, const Tensor& u, const Tensor& scale, const Tensor& label_lr,
                 const std::optional<Tensor>& weight, bool unique)
        : LabelResults(b, a, u, scale, label_lr, weight) {
      a.unique = unique;
    }

    Tensor loss, v, entropy, alignment{nullptr};
  };

  static LabelResults class_step(const Batch& b, const Tensor& logits, ConstVector alpha_in, void* alpha_out,
                                 const Tensor& targets, const Tensor& u, const Tensor& scale, const Tensor& label_lr,
                                 const std::optional<Tensor>& weight) {
    ClassLabelStepArgs a{};
    a.alpha_in = alpha_in;
    a.alpha_out = alpha_out;
    a.targets = b.index(targets, "targets", Device::checks_indices, b.C, "classes");
    const LabelResults r(b, a, u, scale, label_lr, weight);
    const Tensor workspace = b.new_workspace(2);
    a.workspace = workspace.mutable_data_ptr();
    Device::class_label_step(logits, a);
    return r;
  }
};

#define FASTMETA_OPS(X)            \
  X(soft_cross_entropy)            \
  X(soft_cross_entropy_backward)   \
  X(soft_cross_entropy_hvp)        \
  X(soft_cross_entropy_label_grad) \
  X(instance_loss)                 \
  X(instance_label_step_)          \
  X(instance_label_step)           \
  X(class_loss)                    \
  X(class_label_step_)             \
  X(class_label_step)              \
  X(row_dot)

}  // namespace fastmeta
