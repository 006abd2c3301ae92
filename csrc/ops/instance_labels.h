// Arguments and results of the loss and the step of instance labels: see list.h.
#pragma once

#include <tuple>

#include "labels.h"

namespace fastmeta {

template <class Device>
std::tuple<Tensor, Tensor, Tensor> instance_loss(const Tensor& logits, const Tensor& label_logits, const Tensor& index,
                                                 const std::optional<Tensor>& weight) {
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

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> instance_label_step_(const Tensor& label_logits, const Tensor& index,
                                                                const Tensor& logits, const Tensor& u,
                                                                const Tensor& scale, const Tensor& label_lr,
                                                                const std::optional<Tensor>& weight, bool unique,
                                                                std::optional<int64_t> seed,
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

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> instance_label_step(const Tensor& label_rows, const Tensor& index,
                                                                       const Tensor& logits, const Tensor& u,
                                                                       const Tensor& scale, const Tensor& label_lr,
                                                                       const std::optional<Tensor>& weight, bool unique,
                                                                       std::optional<int64_t> seed,
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

}  // namespace fastmeta
