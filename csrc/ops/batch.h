// The logits of an operation, and what everything else of a call is checked against.
#pragma once

#include <optional>

#include "arguments.h"

namespace fastmeta {

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
    fail(name, " must be ", allowed, " with ", dtype_text(type), " ", name_, ", got ", dtype_text(t.scalar_type()),
         "; use ", name, ".to(torch.", dtype_text(acc), ")");
  }
  void check_device(const Tensor& t, const char* name) const { fastmeta::check_device(t, name, logits_, name_); }
  Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType dtype) const {
    return empty_on(logits_, dim, sizes, strides, dtype);
  }

  const Tensor& logits_;
  const char* name_;
};

}  // namespace fastmeta
