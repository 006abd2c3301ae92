// The step of instance labels by the type of the logits. 16-bit ones are compiled in files of their own: with tangents
// and labels of other types beside them, each is a hundred kernels.
#include "instance_label_step.cuh"

namespace fastmeta::cuda {

extern template void label_step<BFloat16>(const InstanceLabelStepArgs& a, void* stream);
extern template void label_step<Float16>(const InstanceLabelStepArgs& a, void* stream);

void instance_label_step(const InstanceLabelStepArgs& a, void* stream) {
  with_dtype(a.logits.dtype, [&](auto t) { label_step<typename decltype(t)::type>(a, stream); });
}

}  // namespace fastmeta::cuda
