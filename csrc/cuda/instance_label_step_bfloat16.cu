#include "instance_label_step.cuh"

template void fastmeta::cuda::label_step<fastmeta::BFloat16>(const InstanceLabelStepArgs& a, void* stream);
