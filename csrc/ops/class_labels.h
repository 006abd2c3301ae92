// Arguments and results of the loss and the step of class labels: see list.h.
#pragma once

#include <tuple>

#include "labels.h"

namespace fastmeta {

template <class Device>
std::tuple<Tensor, Tensor, Tensor> class_loss(const Tensor& logits, const Tensor& alpha, const Tensor& targets,
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

template <class Device>
LabelResults class_step(const Batch& b, const Tensor& logits, ConstVector alpha_in, void* alpha_out,
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

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> class_label_step_(const Tensor& alpha, const Tensor& targets,
                                                             const Tensor& logits, const Tensor& u, const Tensor& scale,
                                                             const Tensor& label_lr,
                                                             const std::optional<Tensor>& weight) {
  const Batch b(logits);
  const ConstVector in = b.vector(alpha, "alpha", b.C);
  FASTMETA_CHECK(in.stride == 1, "alpha is written in place and must be contiguous, got stride ", in.stride);
  check_read_apart(alpha, "alpha", targets, "targets", logits, u, scale, label_lr, weight);
  const LabelResults r =
      class_step<Device>(b, logits, in, alpha.mutable_data_ptr(), targets, u, scale, label_lr, weight);
  return {r.loss, r.v, r.entropy, r.alignment};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> class_label_step(const Tensor& alpha, const Tensor& targets,
                                                                    const Tensor& logits, const Tensor& u,
                                                                    const Tensor& scale, const Tensor& label_lr,
                                                                    const std::optional<Tensor>& weight) {
  const Batch b(logits);
  const ConstVector in = b.vector(alpha, "alpha", b.C);
  Tensor out = b.new_values(b.C);
  const LabelResults r = class_step<Device>(b, logits, in, out.mutable_data_ptr(), targets, u, scale, label_lr, weight);
  return {out, r.loss, r.v, r.entropy, r.alignment};
}

}  // namespace fastmeta
