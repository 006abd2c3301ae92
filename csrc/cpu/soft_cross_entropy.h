// What the CPU has beyond the launchers of both devices (kernels.h).
#pragma once

#include "../kernels.h"

namespace fastmeta::cpu {

struct SoftCrossEntropyWithGradArgs {
  int64_t C;
  SoftCrossEntropyArgs forward;
  Matrix grad_logits;  // (n, C) acc   weight * (s q - p)
  double weight;
};

// The loss and its gradient in one pass, for batches whose gradient is small enough to be kept
void soft_cross_entropy_with_grad(const SoftCrossEntropyWithGradArgs&);

}  // namespace fastmeta::cpu
