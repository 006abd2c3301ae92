"""The truth: the method in plain autograd, and a plain-torch twin of every fused operation.

Nothing here touches the compiled extension, uses a closed form that it is meant to judge, or is fast.
Everything works in float64 and on any device. Tests, ``fastmeta check`` and the benchmarks compare with it;
it is never an option of the fast path.

Equation numbers are those of Vyas, Saxena, Voice, *Learning Soft Labels via Meta Learning*, 2020.
Symbols: n train batch, m meta batch, C classes, N training samples, theta parameters, lambda learning rate,
z = f(x; theta) logits (n, C), q = softmax(z), p label distribution (n, C), u = J g logit tangent (n, C).
"""

from fastmeta.reference.method import (
    LossOf,
    Params,
    ReferenceGradient,
    ReferenceMetaGradient,
    SGDState,
    label_gradient,
    lookahead_meta_loss,
    meta_gradient,
    meta_step,
    plain_step,
    window_gradient,
)
from fastmeta.reference.operations import (
    class_label_step,
    class_label_step_,
    class_loss,
    class_probs,
    instance_label_step,
    instance_label_step_,
    instance_loss,
    instance_probs,
    load_images,
    lookahead_update,
    onto_simplex,
    row_dot,
    soft_cross_entropy,
    soft_cross_entropy_hvp,
    soft_cross_entropy_label_grad,
    target_margin,
)

__all__ = [
    "LossOf",
    "Params",
    "ReferenceGradient",
    "ReferenceMetaGradient",
    "SGDState",
    "class_label_step",
    "class_label_step_",
    "class_loss",
    "class_probs",
    "instance_label_step",
    "instance_label_step_",
    "instance_loss",
    "instance_probs",
    "label_gradient",
    "load_images",
    "lookahead_meta_loss",
    "lookahead_update",
    "meta_gradient",
    "meta_step",
    "onto_simplex",
    "plain_step",
    "row_dot",
    "soft_cross_entropy",
    "soft_cross_entropy_hvp",
    "soft_cross_entropy_label_grad",
    "target_margin",
    "window_gradient",
]
