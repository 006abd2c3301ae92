// Arguments and result of load_images: see list.h.
#pragma once

#include <algorithm>

#include "arguments.h"

namespace fastmeta {

template <class Device>
Tensor load_images(const Tensor& images, const Tensor& index, const Tensor& center, const Tensor& scale,
                   int64_t padding, bool reflect, bool flip, int64_t seed, const Tensor& step, ScalarType dtype) {
  FASTMETA_CHECK(images.scalar_type() == ScalarType::Byte && images.dim() == 4,
                 "images must be uint8 (N, height, width, channels), got ", dtype_text(images.scalar_type()),
                 " of shape ", shape_text(images));
  LoadImagesArgs a{};
  a.N = images.size(0);
  a.height = images.size(1);
  a.width = images.size(2);
  a.C = images.size(3);
  FASTMETA_CHECK(a.height > 0 && a.width > 0 && a.C > 0, "images must have a pixel each, got shape ",
                 shape_text(images));
  FASTMETA_CHECK(images.is_contiguous(), "images must be contiguous, got strides ",
                 shape_text(images.strides().data(), 4), "; use images.contiguous()");
  a.images = static_cast<const uint8_t*>(data_of(images, "images"));

  FASTMETA_CHECK(index.dim() == 1, "index must have shape (n,), got ", shape_text(index));
  check_device(index, "index", images, "images");
  a.index = int64_values(index, "index", Device::checks_indices, a.N, "images");
  a.n = index.size(0);

  const bool known = dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                     dtype == ScalarType::Half;
  FASTMETA_CHECK(known, "dtype must be float64, float32, bfloat16 or float16, got ", dtype_text(dtype));
  const ScalarType acc = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto per_channel = [&](const Tensor& t, const char* name) {
    FASTMETA_CHECK(t.dim() == 1 && t.size(0) == a.C && t.scalar_type() == acc, name, " must be ", dtype_text(acc),
                   " of shape (", a.C, ",) for ", dtype_text(dtype), " images of ", a.C, " channels, got ",
                   dtype_text(t.scalar_type()), " of shape ", shape_text(t));
    FASTMETA_CHECK(t.is_contiguous(), name, " must be contiguous, got stride ", t.stride(0));
    check_device(t, name, images, "images");
    return data_of(t, name);
  };
  a.center = per_channel(center, "center");
  a.scale = per_channel(scale, "scale");

  const int64_t side = std::min(a.height, a.width);
  FASTMETA_CHECK(padding >= 0 && padding < side, "padding must lie in [0, ", side - 1, "] for images of ", a.height,
                 " x ", a.width, " pixels, got ", padding);
  a.padding = padding;
  a.reflect = reflect;
  a.flip = flip;
  a.seed = static_cast<uint64_t>(seed);
  a.step = counter_argument(step, "step", images, "images");

  const int64_t sizes[] = {a.n, a.C, a.height, a.width};
  const int64_t strides[] = {a.height * a.width * a.C, 1, a.width * a.C, a.C};
  Tensor out = empty_on(images, 4, sizes, strides, dtype);
  a.out = out.mutable_data_ptr();
  a.dtype = dtype_of(out);
  Device::load_images(images, a);
  return out;
}

}  // namespace fastmeta
