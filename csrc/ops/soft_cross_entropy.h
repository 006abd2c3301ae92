// Arguments and results of soft cross-entropy, its backward and the two maps of a direction: see list.h.
#pragma once

#include <tuple>

#include "batch.h"

namespace fastmeta {

template <class Device>
std::tuple<Tensor, Tensor> soft_cross_entropy(const Tensor& logits, const Tensor& probs) {
  const Batch b(logits);
  const ConstMatrix p = b.labels(probs, "probs", "; pass soft labels");
  Tensor loss = b.new_values(b.n), lse = b.new_values(b.n);
  Device::soft_cross_entropy(logits, {b.n, b.C, b.logits(), p, loss.mutable_data_ptr(), lse.mutable_data_ptr()});
  return {loss, lse};
}

template <class Device>
std::tuple<Tensor, Tensor> soft_cross_entropy_backward(const Tensor& logits, const Tensor& probs, const Tensor& lse,
                                                       const Tensor& grad, bool need_logits, bool need_probs) {
  const Batch b(logits);
  const ConstMatrix p = b.labels(probs, "probs", "; pass soft labels");
  SoftCrossEntropyBackwardArgs a{b.n, b.C, b.logits(), p, b.row_values(lse, "lse"), b.row_values(grad, "grad"), {}, {}};
  Tensor grad_logits = b.new_rows(need_logits ? b.n : 0, b.type);
  Tensor grad_probs = b.new_rows(need_probs ? b.n : 0, probs.scalar_type());
  if (need_logits) a.grad_logits = Batch::output(grad_logits);
  if (need_probs) a.grad_probs = Batch::output(grad_probs);
  Device::soft_cross_entropy_backward(logits, a);
  return {grad_logits, grad_probs};
}

template <class Device>
Tensor soft_cross_entropy_hvp(const Tensor& logits, const Tensor& v, const std::optional<Tensor>& probs) {
  const Batch b(logits);
  const ConstMatrix direction = b.direction(v, "v");
  const ConstMatrix p = probs ? b.labels(*probs, "probs", "; pass soft labels") : ConstMatrix{};
  Tensor out = b.new_rows(b.n, v.scalar_type());
  Device::soft_cross_entropy_hvp(logits, {b.n, b.C, b.logits(), p, direction, Batch::output(out)});
  return out;
}

template <class Device>
Tensor soft_cross_entropy_label_grad(const Tensor& logits, const Tensor& u) {
  const Batch b(logits);
  const ConstMatrix direction = b.direction(u, "u");
  Tensor out = b.new_rows(b.n, u.scalar_type());
  Device::soft_cross_entropy_label_grad(logits, {b.n, b.C, b.logits(), {}, direction, Batch::output(out)});
  return out;
}

}  // namespace fastmeta
