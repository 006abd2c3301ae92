// Arguments and results of lookahead_update: check the tensors, bring operands of one parameter to one layout, allocate
// theta*, launch once. See list.h.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "arguments.h"

namespace fastmeta {

// Whether the elements fill the memory between the first and the last of them: then operands of equal strides may be
// walked as flat memory, element for element.
inline bool is_flat(const Tensor& t) {
  int64_t extent = 1;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) == 0) return true;
    extent += (t.size(d) - 1) * t.stride(d);
  }
  return extent == t.numel();
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// One operand of a parameter, in the layout of `like`: itself, or a copy made by torch
inline Tensor in_layout(const Tensor& t, const Tensor& like) {
  if (same_strides(t, like)) return t;
  Tensor copy = empty_on(like, like.dim(), like.sizes().data(), like.strides().data(), like.scalar_type());
  return torch::stable::copy_(copy, t);
}

inline void check_operand(const Tensor& t, const char* list, size_t k, const Tensor& param) {
  const std::string name = std::string(list) + "[" + std::to_string(k) + "]";
  const std::string on = "params[" + std::to_string(k) + "]";
  bool same = t.dim() == param.dim();
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == param.size(d);
  FASTMETA_CHECK(same, name, " must have the shape of ", on, ", ", shape_text(param), ", got ", shape_text(t));
  FASTMETA_CHECK(t.scalar_type() == param.scalar_type(), name, " must be ", dtype_text(param.scalar_type()), " as ", on,
                 ", got ", dtype_text(t.scalar_type()));
  check_device(t, name.c_str(), param, on.c_str());
  check_memory(t, name.c_str());
}

template <class Device>
std::vector<Tensor> lookahead_update(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                                     const std::vector<Tensor>& buffers, const Tensor& lr, double gain, double carry,
                                     double weight_decay) {
  FASTMETA_CHECK(grads.size() == params.size(), "grads must hold one gradient per parameter, ", params.size(), ", got ",
                 grads.size());
  FASTMETA_CHECK(buffers.size() == (carry == 0 ? 0 : params.size()), "buffers must hold ",
                 carry == 0 ? "none with carry = 0" : "one momentum per parameter", ", got ", buffers.size(), " for ",
                 params.size(), " parameters");
  if (params.empty()) return {};

  const Tensor& first = params.front();
  FASTMETA_CHECK(is_floating(first.scalar_type()), "params must be float64, float32, bfloat16 or float16, got ",
                 dtype_text(first.scalar_type()));
  LookaheadArgs a{};
  a.dtype = dtype_of(first);
  a.lr = scalar_argument(lr, "lr", first, "params[0]");
  a.gain = gain;
  a.carry = carry;
  a.weight_decay = weight_decay;

  std::vector<Tensor> results, copies;  // copies live until the launch, which the stream orders before their reuse
  std::vector<LookaheadTensor> tensors;
  results.reserve(params.size());
  tensors.reserve(params.size());
  const auto read = [&copies](const Tensor& t, const Tensor& like) {
    copies.push_back(in_layout(t, like));
    return copies.back().const_data_ptr();
  };
  for (size_t k = 0; k < params.size(); ++k) {
    const Tensor& param = params[k];
    FASTMETA_CHECK(param.scalar_type() == first.scalar_type(), "params must have one dtype, got ",
                   dtype_text(first.scalar_type()), " and ", dtype_text(param.scalar_type()),
                   "; call once for each dtype");
    const std::string name = "params[" + std::to_string(k) + "]";
    check_device(param, name.c_str(), first, "params[0]");
    check_memory(param, name.c_str());
    check_operand(grads[k], "grads", k, param);
    if (carry != 0) check_operand(buffers[k], "buffers", k, param);
    const Tensor layout = is_flat(param) ? param : torch::stable::contiguous(param);
    Tensor out = empty_on(param, param.dim(), param.sizes().data(), layout.strides().data(), param.scalar_type());
    tensors.push_back({read(layout, layout), read(grads[k], layout), carry == 0 ? nullptr : read(buffers[k], layout),
                       out.mutable_data_ptr(), param.numel()});
    results.push_back(std::move(out));
  }
  a.tensors = tensors.data();
  a.count = static_cast<int64_t>(tensors.size());
  Device::lookahead_update(first, a);
  return results;
}

}  // namespace fastmeta
