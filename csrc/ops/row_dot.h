// Arguments and result of row_dot: see list.h.
#pragma once

#include "batch.h"

namespace fastmeta {

template <class Device>
Tensor row_dot(const Tensor& a, const Tensor& b) {
  const Batch batch(a, "a", 1);
  const ConstMatrix other = batch.same(b, "b");
  Tensor out = batch.new_values(batch.n);
  Device::row_dot(a, {batch.n, batch.C, batch.logits(), other, out.mutable_data_ptr()});
  return out;
}

}  // namespace fastmeta
