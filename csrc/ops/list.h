// Every operation, for either device: check the arguments, allocate the results, fill the structs of kernels.h, launch.
// Each is a template `NAME<Device>` in the header of its stem, and asks of Device
//
//     static constexpr bool checks_indices;              whether indices can be read (and checked) before the launch
//     static void NAME(const Tensor& on, const Args&);   for each launcher NAME of kernels.h: launch on on's device
//
// Equations, shapes and returns stand beside the schemas in schemas.cpp.
#pragma once

#include "class_labels.h"
#include "instance_labels.h"
#include "load_images.h"
#include "lookahead.h"
#include "row_dot.h"
#include "soft_cross_entropy.h"

#define FASTMETA_OPS(X)            \
  X(soft_cross_entropy)            \
  X(soft_cross_entropy_backward)   \
  X(soft_cross_entropy_hvp)        \
  X(soft_cross_entropy_label_grad) \
  X(instance_loss)                 \
  X(instance_label_step_)          \
  X(instance_label_step)           \
  X(class_loss)                    \
  X(class_label_step_)             \
  X(class_label_step)              \
  X(row_dot)                       \
  X(load_images)                   \
  X(lookahead_update)
