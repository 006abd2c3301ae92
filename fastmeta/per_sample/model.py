"""Per-sample gradient dots and norms of a whole model: one forward, one backward to the activations alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.functional.call import call_model, pick_logits
from fastmeta.per_sample.layers import SUPPORTED, check_batch, couples_samples, joint_terms
from fastmeta.per_sample.record import Recorded, Recorder
from fastmeta.per_sample.rules import Call

_WAY_OUT = "freeze it with requires_grad_(False) to leave it out, or take torch.func.vmap(torch.func.grad(...))"


class PerSample(NamedTuple):
    """`dot` (n,) = <dL_i/dtheta, direction>, None without a direction; `norm` (n,) = |dL_i/dtheta|."""

    dot: Tensor | None
    norm: Tensor


def per_sample(
    model: nn.Module,
    x: Any,
    targets: Tensor,
    direction: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    *,
    logits_of: Callable[[Any], Tensor] = pick_logits,
    uncoupled: bool = False,
) -> PerSample:
    """<dL_i/dtheta, direction> and |dL_i/dtheta| of every sample, L_i its cross-entropy, over all trainable parameters.

    Exact for any model without coupling between samples, at about the cost of two forwards and two backwards to the
    activations. A parameter that is used several times counts once, with its summed gradient.

    Args:
        model: runs as it is (`model(x)`, its mode, its hooks, the current autocast). The batch is dimension 0 of every
            layer's input. Parameters with requires_grad=False do not count. A trainable parameter must itself be the
            weight or bias of linear, conv2d, embedding, layer_norm, rms_norm, group_norm, instance_norm, or batch_norm
            with running statistics, in each of its uses.
        x: whatever the model takes.
        targets: hard (n,) int64 or soft (n, C).
        direction: one tensor per trainable parameter, in their order or by name (absent names are zero), such as a
            meta gradient.
        logits_of: picks the logits (n, C) from the model's output.
        uncoupled: a promise that no sample's logits depend on another sample. Without it a second backward looks
            whether the loss of a half of the samples reaches the others.

    Raises:
        ValueError: BatchNorm in train mode or another coupling, where a sample has no gradient of its own; a trainable
            parameter that is used otherwise, as under weight_norm, pruning or a low-rank term; an input that is changed
            in place after its layer; a direction or targets that do not fit.
    """
    _refuse_coupling(model)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        if p._backward_hooks:  # torch has no public question for them
            raise ValueError(f"parameter {name!r} has a hook that may change its gradient; remove it, or {_WAY_OUT}")
    directions = _directions(model, direction)

    recorder = Recorder(names)
    with torch.enable_grad(), recorder:
        logits = logits_of(call_model(model, x))
    _check_logits(logits, targets)
    n = targets.shape[0]
    zero = torch.zeros(n, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    calls = _calls(model, recorder.recorded, _losses(logits.to(zero.dtype), targets), names, n, uncoupled)
    _check_all_uses_recorded(model, logits, calls, names)

    norm2, dot = zero, None if directions is None else zero
    with torch.no_grad():
        for key, shared in _by_parameter(calls).items():
            _refuse_mixed(shared, names[key])
            name, direction_here = shared[0][0], None if directions is None else directions.get(key)
            norm2_here, dot_here = joint_terms([call for _, call in shared], name, direction_here)
            norm2 = norm2 + norm2_here
            dot = dot if dot is None or dot_here is None else dot + dot_here
        return PerSample(dot, norm2.clamp_min(0).sqrt())  # a ghost norm near zero may round below it


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        soft = targets.to(logits.dtype) if targets.is_floating_point() else targets
        return F.cross_entropy(logits, soft, reduction="none")


def _calls(
    model: nn.Module, recorded: list[Recorded], losses: Tensor, names: dict[int, str], n: int, uncoupled: bool
) -> list[tuple[Recorded, Call]]:
    """The recorded operations that the loss depends on, with the gradients of their outputs."""
    if not recorded or not losses.requires_grad:
        return []
    check = not uncoupled and n > 1
    grads = _grads(losses, torch.ones_like(losses), recorded, keep=check)
    used = [(r, g) for r, g in zip(recorded, grads, strict=True) if g is not None]
    for r, g in used:
        what = _place(model, names[next(iter(r.parameters.values()))])
        check_batch(r.a, g, n, r.rule, what)
        if r.a._version != r.version:
            raise ValueError(f"{what} had its input changed in place afterwards; its gradient is lost, as in training")
    if check and used:
        _refuse_mixing(model, [r for r, _ in used], losses, names)
    return [(r, Call(r.rule, r.a, g)) for r, g in used]


def _grads(losses: Tensor, weights: Tensor, recorded: list[Recorded], *, keep: bool) -> Sequence[Tensor | None]:
    edges = [r.edge for r in recorded]
    return torch.autograd.grad(losses, edges, weights, allow_unused=True, retain_graph=keep)


def _refuse_mixing(model: nn.Module, recorded: list[Recorded], losses: Tensor, names: dict[int, str]) -> None:
    """The loss of one half of the samples must not reach a row of the other half.

    Halves by the parity of an index's bits (Thue and Morse): neighbours, samples 2^k apart and shifts by any distance
    fall on both sides.
    """
    one = torch.tensor([i.bit_count() % 2 for i in range(len(losses))], dtype=torch.bool, device=losses.device)
    grads = _grads(losses, one.to(losses.dtype), recorded, keep=False)
    # NaN is no sign of a way: zero times infinity
    reached = torch.stack([(losses[:0] if g is None else g[~one].nan_to_num(0.0)).any() for g in grads])
    if not bool(reached.any()):
        return
    first = next(iter(recorded[int(reached.nonzero()[0])].parameters.values()))
    raise ValueError(
        f"{_place(model, names[first])} mixes samples or stands before what does: the loss of one reaches the row of "
        "another in dimension 0, so none has a gradient of its own. Put the batch first everywhere "
        "(batch_first=True), and take no statistics over it; label_gradient's `alignment` stays exact"
    )


def _place(model: nn.Module, name: str) -> str:
    """Of the parameter 'blocks.0.linear.weight': layer 'blocks.0.linear' (Linear)"""
    owner = name.rpartition(".")[0]
    return f"layer {owner!r} ({type(model.get_submodule(owner)).__name__})"


def _refuse_coupling(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if couples_samples(module):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) normalises with the statistics of the batch, which couples "
                "the samples: none has a gradient of its own. Use the logit tangent u and the `alignment` of "
                "label_gradient, which stay exact, or model.eval(), or GroupNorm"
            )


def _directions(
    model: nn.Module, direction: Mapping[str, Tensor] | Sequence[Tensor] | None
) -> dict[int, Tensor] | None:
    if direction is None:
        return None
    params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    if not isinstance(direction, Mapping):
        if len(direction) != len(params):
            raise ValueError(
                f"direction must have {len(params)} tensors, one per trainable parameter, got {len(direction)}"
            )
        direction = dict(zip(params, direction, strict=True))
    for name, tensor in direction.items():
        if name not in params:
            raise ValueError(f"direction names {name!r}, which is not a trainable parameter of the model")
        if tensor.shape != params[name].shape:
            raise ValueError(
                f"direction of {name!r} must have shape {tuple(params[name].shape)}, got {tuple(tensor.shape)}"
            )
    return {id(params[name]): tensor for name, tensor in direction.items()}


def _check_logits(logits: Tensor, targets: Tensor) -> None:
    n, C = logits.shape if logits.dim() == 2 else (None, None)
    hard, soft = tuple(targets.shape) == (n,) and not targets.is_floating_point(), tuple(targets.shape) == (n, C)
    if n is None or not (hard or soft):
        raise ValueError(
            f"logits must have shape (n, C) and targets (n,) int64 or (n, C), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)} {targets.dtype}"
        )


def _check_all_uses_recorded(
    model: nn.Module, logits: Tensor, calls: list[tuple[Recorded, Call]], names: dict[int, str]
) -> None:
    """Every use of a trainable parameter in the graph of the logits must be a recorded call, else its share is lost."""
    known = Counter(key for r, _ in calls for key in r.parameters.values())
    for key, uses in _uses(logits).items():
        if key not in names or uses == known[key]:
            continue
        leaf = names[key].rpartition(".")[2]
        raise ValueError(
            f"{_place(model, names[key])}: parameter {leaf!r} is not itself the weight or bias of "
            f"one of {SUPPORTED} in {uses - known[key]} of its {uses} uses, so its gradient per sample cannot be told; "
            f"{_WAY_OUT}"
        )


def _uses(logits: Tensor) -> Counter[int]:
    """How many operations of the autograd graph take each leaf. A cast that autocast made for several of them is none
    itself."""
    into: Counter[Any] = Counter({logits.grad_fn: 1})
    nodes, stack = set(), [logits.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        if type(node).__name__ == "CheckpointFunctionBackward":  # hides the layers and weights inside it
            raise ValueError("reentrant checkpointing hides layers from autograd.grad; pass use_reentrant=False")
        for following, _ in node.next_functions:
            into[following] += 1
            stack.append(following)
    uses: Counter[int] = Counter()
    for node in nodes:
        times = into[node] if type(node).__name__ == "ToCopyBackward0" else 1
        for following, _ in node.next_functions:
            if following is not None and hasattr(following, "variable"):
                uses[id(following.variable)] += times
    return uses


def _by_parameter(calls: list[tuple[Recorded, Call]]) -> dict[int, list[tuple[str, Call]]]:
    shared: dict[int, list[tuple[str, Call]]] = defaultdict(list)
    for r, call in calls:
        for name, key in r.parameters.items():
            shared[key].append((name, call))
    return shared


def _refuse_mixed(shared: list[tuple[str, Call]], parameter: str) -> None:
    kinds = {(name, call.rule.kind()) for name, call in shared}
    if len(kinds) > 1:
        text = ", ".join(sorted(f"{name} of {kind}" for name, kind in kinds))
        raise ValueError(
            f"parameter {parameter!r} is shared by operations of different kinds ({text}), whose gradients have no "
            f"joint norm here; {_WAY_OUT}"
        )
