// What every operation's argument checks are made of: errors as text, dtypes, devices, scalars, new tensors. Errors are
// std::runtime_error with a plain text (STD_TORCH_CHECK would put the path of the build in front): what, expected, got,
// way out.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../kernels.h"

namespace fastmeta {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---------------------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------------------

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

#define FASTMETA_CHECK(condition, ...)   \
  do {                                   \
    if (!(condition)) fail(__VA_ARGS__); \
  } while (false)

inline std::string shape_text(const int64_t* sizes, size_t dim) {
  std::ostringstream text;
  text << '(';
  for (size_t d = 0; d < dim; ++d) text << (d > 0 ? ", " : "") << sizes[d];
  text << (dim == 1 ? ",)" : ")");
  return text.str();
}
inline std::string shape_text(const Tensor& t) { return shape_text(t.sizes().data(), t.dim()); }

inline const char* dtype_text(ScalarType t) {
  switch (t) {
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(t);
  }
}

// ---------------------------------------------------------------------------------------------------------
// Tensors
// ---------------------------------------------------------------------------------------------------------

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kFloat32;
  }
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline std::string device_text(const Tensor& t) {
  return t.is_cpu() ? "cpu" : t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : "another device";
}
inline void check_device(const Tensor& t, const char* name, const Tensor& on, const char* on_name) {
  FASTMETA_CHECK(t.device() == on.device(), name, " is on ", device_text(t), " but ", on_name, " on ", device_text(on),
                 "; move one of them");
}

// ---------------------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------------------

inline int64_t element_size(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
      return 4;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    default:
      return 1;  // bytes of images; no kernel takes another
  }
}

// What a kernel is going to touch must be there, at addresses that its type can stand at: a storage may have been given
// back under its tensor (resize_(0), as sharded training does), and torch.frombuffer takes any address.
inline void check_memory(const Tensor& t, const char* name) {
  int64_t extent = 1;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) == 0) return;
    extent += (t.size(d) - 1) * t.stride(d);
  }
  const int64_t size = element_size(t.scalar_type()), needed = (t.storage_offset() + extent) * size;
  int64_t held = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &held));
  FASTMETA_CHECK(held >= needed, name, " needs ", needed, " bytes of memory, but its storage holds ", held,
                 "; it was freed or resized, fill it again first");
  const auto address = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  FASTMETA_CHECK(address % static_cast<uintptr_t>(size) == 0, name, " must stand at a multiple of ", size,
                 " bytes in memory, as ", dtype_text(t.scalar_type()), " does; use ", name, ".clone()");
}
inline const void* data_of(const Tensor& t, const char* name) {
  check_memory(t, name);
  return t.const_data_ptr();
}

// A scalar, a vector or a matrix of adjacent columns in memory: `count` blocks of `width` bytes, `stride` bytes apart.
struct Blocks {
  uintptr_t first = 0, count = 1, width = 0, stride = 0;

  explicit Blocks(const Tensor& t) : first(reinterpret_cast<uintptr_t>(t.const_data_ptr())) {
    const auto size = static_cast<uintptr_t>(element_size(t.scalar_type()));
    width = size;
    if (t.dim() == 2) width *= static_cast<uintptr_t>(t.size(1));
    if (t.numel() == 0) count = 0;
    if (t.numel() == 0 || t.dim() == 0) return;
    stride = static_cast<uintptr_t>(t.stride(0)) * size;
    if (stride != 0) count = static_cast<uintptr_t>(t.size(0));  // else all rows are the first one
    if (stride == width) {
      width *= count;
      count = 1;
    }
  }
  uintptr_t end() const { return first + (count - 1) * stride + width; }

  // Exact where the blocks of both are equally far apart, or one of them is a single block; else `true` where the
  // memory between the first and the last byte overlaps.
  bool overlap(const Blocks& other) const {
    if (count == 0 || other.count == 0 || end() <= other.first || other.end() <= first) return false;
    const uintptr_t period = std::max(count > 1 ? stride : 0, other.count > 1 ? other.stride : 0);
    const bool comparable = (count == 1 || stride == period) && (other.count == 1 || other.stride == period);
    if (period == 0 || !comparable || width + other.width > period) return true;
    const uintptr_t apart = (other.first % period + period - first % period) % period;
    return apart < width || apart + other.width > period;
  }
};

// What is written in place must not be read through another argument: rows would be read half-way through.
inline void check_apart(const Tensor& written, const char* written_name, const Tensor& t, const char* name) {
  FASTMETA_CHECK(!Blocks(written).overlap(Blocks(t)), name, " shares memory with ", written_name,
                 ", which is written in place; pass ", name, ".clone()");
}

// ---------------------------------------------------------------------------------------------------------
// Scalars and vectors
// ---------------------------------------------------------------------------------------------------------

// 0-dim float64 or float32, on the CPU (read here) or on the device of `on` (read by the kernel)
inline Scalar scalar_argument(const Tensor& t, const char* name, const Tensor& on, const char* on_name) {
  const ScalarType s = t.scalar_type();
  FASTMETA_CHECK(t.dim() == 0 && (s == ScalarType::Double || s == ScalarType::Float), name,
                 " must be a 0-dim float64 or float32 tensor, got shape ", shape_text(t), " of ", dtype_text(s));
  Scalar x;
  x.dtype = s == ScalarType::Double ? DType::kFloat64 : DType::kFloat32;
  const void* data = data_of(t, name);
  if (t.is_cpu()) {
    x.host = s == ScalarType::Double ? *static_cast<const double*>(data) : *static_cast<const float*>(data);
  } else {
    check_device(t, name, on, on_name);
    x.device = data;
  }
  return x;
}

// The number of a step: 0-dim int64, on the CPU or on the device of `on`, as above
inline Counter counter_argument(const Tensor& t, const char* name, const Tensor& on, const char* on_name) {
  FASTMETA_CHECK(t.dim() == 0 && t.scalar_type() == ScalarType::Long, name, " must be a 0-dim int64 tensor, got shape ",
                 shape_text(t), " of ", dtype_text(t.scalar_type()));
  const auto* data = static_cast<const int64_t*>(data_of(t, name));
  if (t.is_cpu()) return {nullptr, *data};
  check_device(t, name, on, on_name);
  return {data, 0};
}

// A vector of int64. With check_values they must lie in [0, limit); `of` says what they count.
inline IndexVector int64_values(const Tensor& t, const char* name, bool check_values, int64_t limit, const char* of) {
  FASTMETA_CHECK(t.scalar_type() == ScalarType::Long, name, " must be int64, got ", dtype_text(t.scalar_type()),
                 "; use ", name, ".long()");
  const IndexVector x{static_cast<const int64_t*>(data_of(t, name)), t.stride(0)};
  if (check_values)
    for (int64_t i = 0; i < t.size(0); ++i) {
      const int64_t value = x.data[i * x.stride];
      FASTMETA_CHECK(value >= 0 && value < limit, name, "[", i, "] = ", value, " is out of range for ", limit, " ", of);
    }
  return x;
}

// Memory that a result of some size is written to for the first time comes page by page, and each costs a trip into the
// system: pages of 2 MiB, where it gives them on request, take two thirds of the time. It may well refuse.
inline void ask_for_large_pages(const Tensor& t, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr int64_t kWorth = int64_t{2} << 20;
  if (bytes < kWorth) return;
  constexpr uintptr_t kPage = 4096;
  const auto first = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  const uintptr_t begin = (first + kPage - 1) & ~(kPage - 1),
                  end = (first + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline Tensor empty_on(const Tensor& on, int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType dtype) {
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(on.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(on.get(), &device_index));
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, code, device_type, device_index, &handle));
  Tensor made(handle);
  if (on.is_cpu()) ask_for_large_pages(made, made.numel() * element_size(dtype));
  return made;
}

}  // namespace fastmeta
