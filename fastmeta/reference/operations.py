"""Label families, and a plain-torch twin of every fused operation.

A twin has the name, the arguments (but for `unique`, a promise) and the results of that in :mod:`fastmeta.ops`, and is
written as one would compose it from torch. For finite rows only: the fused ones also skip rows with NaN or Inf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.rng import below_range, random_bits, round_stochastically

# ---------------------------------------------------------------------------------------------------------
# Label families: label parameters -> label distributions. Differentiable.
# ---------------------------------------------------------------------------------------------------------


def instance_probs(label_logits: Tensor) -> Tensor:
    """p_i = softmax(l_i): rows of label logits (n, C) to label distributions (n, C)."""
    return label_logits.softmax(-1)


def class_probs(alpha: Tensor, targets: Tensor) -> Tensor:
    """p_iy = 1 - alpha_y, every other class alpha_y / (C - 1): alpha (C,), targets (n,) to (n, C)."""
    num_classes = alpha.shape[0]
    a = alpha[targets].unsqueeze(1)
    given = torch.nn.functional.one_hot(targets, num_classes).bool()
    return torch.where(given, 1 - a, a / (num_classes - 1))


def onto_simplex(rows: Tensor) -> Tensor:
    """The nearest distributions to `rows` (n, C): max(x - t, 0), whose t is found by halving an interval."""
    low, high = rows.amin(1, keepdim=True) - 1, rows.amax(1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        over = (rows - middle).clamp(min=0).sum(1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (rows - high).clamp(min=0)


def target_margin(target_prob: float, num_classes: int) -> float:
    """Label-logit margin log(p0 (C-1) / (1-p0)) that gives the target class probability p0."""
    return math.log(target_prob * (num_classes - 1) / (1 - target_prob))


# ---------------------------------------------------------------------------------------------------------
# Twins of the fused operations
# ---------------------------------------------------------------------------------------------------------


def soft_cross_entropy(logits: Tensor, probs: Tensor, *, reduction: str = "mean") -> Tensor:
    """L_i = -sum_k p_ik log q_ik, then mean, sum or none over the n rows. Differentiable to any order."""
    loss = -(probs * logits.log_softmax(-1)).sum(-1)
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]


def soft_cross_entropy_hvp(logits: Tensor, v: Tensor, probs: Tensor | None = None) -> Tensor:
    """H_i v_i = s_i q_i * (v_i - <q_i, v_i>) with s_i = sum_k p_ik (1 without probs)."""
    q = logits.softmax(-1)
    s = 1 if probs is None else probs.sum(-1, keepdim=True)
    return s * q * (v - (q * v).sum(-1, keepdim=True))


def soft_cross_entropy_label_grad(logits: Tensor, u: Tensor) -> Tensor:
    """u_i - <q_i, u_i>: (n / lambda) times the gradient of the meta loss with respect to p_i."""
    q = logits.softmax(-1)
    return u - (q * u).sum(-1, keepdim=True)


def _row_weight(weight: Tensor | None) -> Tensor | float:
    return 1.0 if weight is None else weight.unsqueeze(1)


def _loss_terms(logits: Tensor, probs: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    loss = soft_cross_entropy(logits, probs, reduction="none")
    v = _row_weight(weight) * (logits.softmax(-1) - probs)
    return loss, v, torch.special.entr(probs).sum(-1)


def instance_loss(
    logits: Tensor, label_logits: Tensor, index: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (n,), v = weight * (q - p) (n, C) and label entropy (n,) for rows `index` of a table (N, C)."""
    return _loss_terms(logits, instance_probs(label_logits[index]), weight)


def instance_label_step_(
    label_logits: Tensor,
    index: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: float,
    label_lr: float,
    weight: Tensor | None = None,
    *,
    seed: int | None = None,
    step: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move rows `index` of the table (N, C) in place; loss, v, entropy with the new rows, and the alignment.

    The gradient of a row is scale * sum over its occurrences of weight_i p (u_i - <p, u_i>). With `seed` and `step` the
    new rows of a bfloat16 table are rounded stochastically: see :mod:`fastmeta.rng`.
    """
    if seed is not None and step is not None:
        wide = label_logits.float()
        _, _, _, alignment = instance_label_step_(wide, index, logits, u, scale, label_lr, weight)
        label_logits[index] = round_stochastically(wide[index], seed, step, index)
        return *instance_loss(logits, label_logits.float(), index, weight), alignment
    p = instance_probs(label_logits[index])
    alignment = ((logits.softmax(-1) - p) * u).sum(-1)
    grad = scale * _row_weight(weight) * p * (u - (p * u).sum(-1, keepdim=True))
    label_logits.index_add_(0, index, grad, alpha=-label_lr)
    return *instance_loss(logits, label_logits, index, weight), alignment


def instance_label_step(
    label_rows: Tensor,
    index: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: float,
    label_lr: float,
    weight: Tensor | None = None,
    *,
    seed: int | None = None,
    step: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same on gathered rows (n, C): new rows first, nothing is written. Rows of equal index are one sample."""
    table = label_rows.new_zeros(int(index.max()) + 1 if len(index) else 0, label_rows.shape[1])
    table[index] = label_rows
    results = instance_label_step_(table, index, logits, u, scale, label_lr, weight, seed=seed, step=step)
    return table[index], *results


def class_loss(
    logits: Tensor, alpha: Tensor, targets: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (n,), v = weight * (q - p) (n, C) and label entropy (n,) for class smoothing alpha (C,)."""
    return _loss_terms(logits, class_probs(alpha, targets), weight)


def class_label_step_(
    alpha: Tensor,
    targets: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: float,
    label_lr: float,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move alpha (C,) in place by SGD, clamp it to [0, 1]; results as in :func:`instance_label_step_`.

    d/d alpha_c = scale * sum over the rows of class c of weight_i (mean_{k != c} u_ik - u_ic).
    """
    num_classes = alpha.shape[0]
    p = class_probs(alpha, targets)
    alignment = ((logits.softmax(-1) - p) * u).sum(-1)
    given = u.gather(1, targets.unsqueeze(1)).squeeze(1)
    others = (u.sum(-1) - given) / (num_classes - 1)
    term = (others - given) * (1.0 if weight is None else weight)
    grad = scale * torch.zeros_like(alpha).index_add_(0, targets, term)
    touched = torch.zeros_like(alpha, dtype=torch.bool).index_fill_(0, targets, True)
    alpha.copy_(torch.where(touched, (alpha - label_lr * grad).clamp(0, 1), alpha))
    return *class_loss(logits, alpha, targets, weight), alignment


def class_label_step(
    alpha: Tensor,
    targets: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: float,
    label_lr: float,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same with the new alpha first; nothing is written."""
    new_alpha = alpha.clone()
    return new_alpha, *class_label_step_(new_alpha, targets, logits, u, scale, label_lr, weight)


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i>: (n, C), (n, C) to (n,)."""
    return (a * b).sum(-1)


def load_images(
    images: Tensor,
    index: Tensor,
    center: Tensor,
    scale: Tensor,
    *,
    padding: int = 0,
    reflect: bool = False,
    flip: bool = False,
    seed: int = 0,
    step: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    height, width = images.shape[1:3]
    x = images[index].permute(0, 3, 1, 2).to(acc)
    padded = torch.nn.functional.pad(x, (padding,) * 4, mode="reflect" if reflect else "constant")
    bits = random_bits(seed, step, index)
    tops, lefts = (below_range(bits[:, k], 2 * padding + 1) for k in (0, 1))
    flipped = below_range(bits[:, 2], 2) == 1 if flip else torch.zeros_like(index, dtype=torch.bool)
    for i, (top, left, mirror) in enumerate(zip(tops.tolist(), lefts.tolist(), flipped.tolist(), strict=True)):
        crop = padded[i, :, top : top + height, left : left + width]
        x[i] = crop.flip(-1) if mirror else crop
    x = (x - center[:, None, None]) * scale[:, None, None]
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def lookahead_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor] = (),
    *,
    lr: float | Tensor,
    gain: float = 1.0,
    carry: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """theta* = theta - lr (gain (G + weight_decay theta) + carry b) of each parameter; theta itself where lr is 0."""
    if lr == 0:
        return [p.clone() for p in params]
    steps = [gain * (g + weight_decay * p) for p, g in zip(params, grads, strict=True)]
    if carry:
        steps = [step + carry * b for step, b in zip(steps, buffers, strict=True)]
    return [p - lr * step for p, step in zip(params, steps, strict=True)]
