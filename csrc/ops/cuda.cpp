// CUDA registration of the operations: the device of the logits, its current stream, and the launchers of cuda/*.cu.
// Schemas and their documentation stand in schemas.cpp, argument checks beside it, a header for each operation.
//
// The library has no Python module: load it with torch.ops.load_library after fastmeta._C, which defines the schemas.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "list.h"

namespace fastmeta {
namespace {

struct Cuda {
  // Indices are checked by the kernels: to read them here would wait for the device.
  static constexpr bool checks_indices = false;

#define X(name, Args)                                                            \
  static void name(const Tensor& on, const Args& args) {                         \
    const int32_t device = on.get_device_index();                                \
    const torch::stable::accelerator::DeviceGuard guard(device);                 \
    void* stream = nullptr;                                                      \
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream)); \
    cuda::name(args, stream);                                                    \
  }
  FASTMETA_LAUNCHERS(X)
#undef X
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmeta, CUDA, m) {
#define X(name) m.impl(#name, TORCH_BOX(&name<Cuda>));
  FASTMETA_OPS(X)
#undef X
}

}  // namespace fastmeta
