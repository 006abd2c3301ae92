// What the operations of both label families return and check.
#pragma once

#include "batch.h"

namespace fastmeta {

// loss, v, entropy of every label op; alignment of the steps
struct __attribute__((visibility("hidden"))) LabelResults {
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

// What is written in place shares no memory with what is read.
inline void check_read_apart(const Tensor& written, const char* written_name, const Tensor& index,
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

}  // namespace fastmeta
