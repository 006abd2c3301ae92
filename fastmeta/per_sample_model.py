"""Per-sample gradient dots and norms of a whole model: one forward, one backward to the activations alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fastmeta.meta.network import pick_logits
from fastmeta.per_sample_layers import SUPPORTED, check_batch, couples_samples, joint_terms, rule_for
from fastmeta.per_sample_rules import Call, Rule

_WAY_OUT = "freeze it with requires_grad_(False) to leave it out, or take torch.func.vmap(torch.func.grad(...))"


class PerSample(NamedTuple):
    """`dot` (n,) = <dL_i/dtheta, direction>, None without a direction; `norm` (n,) = |dL_i/dtheta|."""

    dot: Tensor | None
    norm: Tensor


class _Recorded(NamedTuple):
    rule: Rule
    a: Tensor
    edge: GradientEdge


def per_sample(
    model: nn.Module,
    x: Any,
    targets: Tensor,
    direction: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    *,
    logits_of: Callable[[Any], Tensor] = pick_logits,
) -> PerSample:
    """<dL_i/dtheta, direction> and |dL_i/dtheta| of every sample, L_i its cross-entropy, over all trainable parameters.

    Exact for any model without coupling between samples, at about the cost of two forwards and one backward.
    A layer called several times and a weight shared by several layers count once, with their summed gradient.

    Args:
        model: runs as it is (`model(x)`, its mode, the current autocast). The batch is dimension 0 of every layer's
            input. Parameters with requires_grad=False do not count.
        x: whatever the model takes.
        targets: hard (n,) int64 or soft (n, C).
        direction: one tensor per trainable parameter, in their order or by name (absent names are zero), such as a
            meta gradient.
        logits_of: picks the logits (n, C) from the model's output.

    Raises:
        ValueError: BatchNorm in train mode, where a sample has no gradient of its own; a trainable parameter outside of
            the supported layers; a direction or targets that do not fit.
    """
    _refuse_coupling(model)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    directions = _directions(model, direction)

    with torch.enable_grad(), _recording(model) as recorded:
        logits = logits_of(model(x))
    _check_logits(logits, targets)
    _check_all_uses_recorded(model, logits, recorded, names)
    n = targets.shape[0]
    zero = torch.zeros(n, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    calls: list[Call] = []
    if recorded and logits.requires_grad:
        with torch.enable_grad():
            soft = targets.is_floating_point()
            loss = F.cross_entropy(logits.to(zero.dtype), targets.to(zero.dtype) if soft else targets, reduction="sum")
        grads = torch.autograd.grad(loss, [r.edge for r in recorded], allow_unused=True)
        for r, g in zip(recorded, grads, strict=True):
            if g is not None:
                name = next(k for k, module in model.named_modules() if module is r.rule.layer)
                check_batch(r.a, g, n, r.rule, f"layer {name!r} ({type(r.rule.layer).__name__})")
                calls.append(Call(r.rule, r.a, g))

    norm2, dot = zero, None if directions is None else zero
    with torch.no_grad():
        for key, shared in _by_parameter(calls).items():
            _refuse_mixed(shared, names[key])
            name, direction_here = shared[0][0], None if directions is None else directions.get(key)
            norm2_here, dot_here = joint_terms([call for _, call in shared], name, direction_here)
            norm2 = norm2 + norm2_here
            dot = dot if dot is None or dot_here is None else dot + dot_here
        return PerSample(dot, norm2.clamp_min(0).sqrt())  # a ghost norm near zero may round below it


def _trainable(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(k, p) for k, p in layer.named_parameters(recurse=False) if p.requires_grad]


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


@contextmanager
def _recording(model: nn.Module) -> Iterator[list[_Recorded]]:
    """Collects (rule, input, edge of the output) of every call of a supported layer with trainable parameters."""
    recorded: list[_Recorded] = []

    def hook(rule: Rule) -> Callable[..., None]:
        def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if output.requires_grad:
                a = args[0] if args else kwargs["input"]
                # the edge, not the tensor: an in-place ReLU behind the layer would make the tensor stand for its result
                recorded.append(_Recorded(rule, a.detach(), get_gradient_edge(output)))

        return record

    handles = []
    # one cast per use of a weight, so that the uses found in the graph are the calls seen here
    cache = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        for layer in model.modules():
            if _trainable(layer) and (rule := rule_for(layer)) is not None:
                handles.append(layer.register_forward_hook(hook(rule), prepend=True, with_kwargs=True))
        yield recorded
    finally:
        torch.set_autocast_cache_enabled(cache)
        for handle in handles:
            handle.remove()


def _check_logits(logits: Tensor, targets: Tensor) -> None:
    n, C = logits.shape if logits.dim() == 2 else (None, None)
    hard, soft = tuple(targets.shape) == (n,) and not targets.is_floating_point(), tuple(targets.shape) == (n, C)
    if n is None or not (hard or soft):
        raise ValueError(
            f"logits must have shape (n, C) and targets (n,) int64 or (n, C), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)} {targets.dtype}"
        )


def _check_all_uses_recorded(
    model: nn.Module, logits: Tensor, recorded: list[_Recorded], names: dict[int, str]
) -> None:
    """Every use of a trainable parameter in the graph of the logits must be a recorded call, else its share is lost."""
    calls = Counter(id(p) for r in recorded for _, p in _trainable(r.rule.layer))
    for key, uses in _uses(logits).items():
        if key not in names or uses <= calls[key]:
            continue
        owner, layer = next((k, m) for k, m in model.named_modules() if any(id(p) == key for _, p in _trainable(m)))
        if rule_for(layer) is None:
            raise ValueError(
                f"layer {owner!r} ({type(layer).__name__}) has trainable parameters and is not one of {SUPPORTED} with "
                f"its own forward; {_WAY_OUT}"
            )
        raise ValueError(
            f"parameter {names[key]!r} is used outside of its layer's forward ({uses} uses, {calls[key]} calls), "
            f"so its gradient per sample cannot be told; {_WAY_OUT}"
        )


def _uses(logits: Tensor) -> Counter[int]:
    """How many edges of the autograd graph lead to each leaf."""
    uses: Counter[int] = Counter()
    seen, stack = set(), [logits.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "CheckpointFunctionBackward":  # hides the layers and weights inside it
            raise ValueError("reentrant checkpointing hides layers from autograd.grad; pass use_reentrant=False")
        for following, _ in node.next_functions:
            if following is not None and hasattr(following, "variable"):
                uses[id(following.variable)] += 1
            else:
                stack.append(following)
    return uses


def _by_parameter(calls: list[Call]) -> dict[int, list[tuple[str, Call]]]:
    shared: dict[int, list[tuple[str, Call]]] = defaultdict(list)
    for call in calls:
        for name, p in _trainable(call.rule.layer):
            shared[id(p)].append((name, call))
    return shared


def _refuse_mixed(shared: list[tuple[str, Call]], parameter: str) -> None:
    if len({(name, type(call.rule)) for name, call in shared}) > 1:
        kinds = sorted({type(call.rule.layer).__name__ for _, call in shared})
        raise ValueError(
            f"parameter {parameter!r} is shared by layers of different kinds ({', '.join(kinds)}), whose gradients "
            f"have no joint norm here; {_WAY_OUT}"
        )
