"""The fused operations. Each has its twin in plain torch, of the same name, in :mod:`fastmeta.reference`.

Symbols: z logits (n, C), q = softmax(z), p label distributions (n, C), l label logits, u logit tangent (n, C), w row
weights (n,). T is the dtype of the logits: float64, float32, bfloat16 or float16; acc(T) is float64 for float64 and
float32 for the others. All sums are taken in acc(T). Directions (``u``, ``v``) may be T or acc(T); label distributions
and label logits T, acc(T) or, unless acc(T) is float64, bfloat16; row weights and alpha are acc(T).

:func:`soft_cross_entropy` is differentiable. **The others are not: their results carry no graph**, and a forward-AD
tangent on any argument raises, for it would be lost.

Matrices may have any row stride (also 0, an expanded row). Columns must be adjacent: other inputs are copied, a table
that is written in place raises, as does one that shares memory with another argument. ``scale`` and ``label_lr`` are
floats, or 0-dim tensors; ones on the GPU are read there, so that a captured graph follows a schedule.

*Skipped* rows: a batch row that holds a NaN or an infinity (in logits, u or weight), or points at a label row that
does so before or after its step, has NaN for loss, v, entropy and alignment, and leaves its label row as it is; other
rows are unaffected. ``skipped`` counts them where it is asked for: a counter in the kernels would cost a launch. On
CUDA an index or target out of range is skipped too (FASTMETA_DEBUG=1 checks it at once, with a synchronisation); on the
CPU it raises.

Every wrong argument raises RuntimeError, or ValueError or TypeError where it is seen in Python: it names the argument,
what was expected, what came, and the way out.
"""

from __future__ import annotations

from fastmeta.ops.class_labels import class_label_step, class_label_step_, class_loss
from fastmeta.ops.guard import acc_dtype
from fastmeta.ops.instance_labels import instance_label_step, instance_label_step_, instance_loss
from fastmeta.ops.load_images import load_images
from fastmeta.ops.lookahead_update import lookahead_update
from fastmeta.ops.native import build_info
from fastmeta.ops.results import ClassLabelStep, InstanceLabelStep, LabelLoss, LabelStep
from fastmeta.ops.row_dot import row_dot
from fastmeta.ops.soft_cross_entropy import soft_cross_entropy, soft_cross_entropy_hvp, soft_cross_entropy_label_grad

__all__ = [
    "ClassLabelStep",
    "InstanceLabelStep",
    "LabelLoss",
    "LabelStep",
    "acc_dtype",
    "build_info",
    "class_label_step",
    "class_label_step_",
    "class_loss",
    "instance_label_step",
    "instance_label_step_",
    "instance_loss",
    "load_images",
    "lookahead_update",
    "row_dot",
    "soft_cross_entropy",
    "soft_cross_entropy_hvp",
    "soft_cross_entropy_label_grad",
]
