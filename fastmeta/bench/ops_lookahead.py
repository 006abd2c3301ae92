"""theta* of all parameters of a ResNet-18 at once, beside plain torch: outputs first, then time.

Bytes that it cannot avoid: parameters and gradients read, theta* written, and the momentum read where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmeta import models, ops, reference
from fastmeta.bench.ops_catalog import DTYPES
from fastmeta.bench.ops_row import LOOKAHEAD, OpsConfig, OpsRow, Prepared, WrongResult, deviations, slots_needed, timed
from fastmeta.measure import Body

#: torch's own way for plain SGD, in one pass too
FOREACH = "foreach"


def measure(dtype: str, config: OpsConfig, copy: float) -> OpsRow:
    """A row of the table: n counts parameters, C their elements in all."""
    device, kind = torch.device(config.device), DTYPES[dtype]
    shapes = [p.shape for p in models.build("resnet18", num_classes=100).parameters()]
    generator = torch.Generator(device).manual_seed(0)

    def operands() -> tuple[list[Tensor], list[Tensor]]:
        made = [torch.randn(s, device=device, generator=generator).to(kind) for s in (*shapes, *shapes)]
        return made[: len(shapes)], made[len(shapes) :]

    variants: dict[str, Callable[..., Any]] = {
        "fused": partial(ops.lookahead_update, lr=0.1),
        "eager": partial(reference.lookahead_update, lr=0.1),
        FOREACH: partial(torch._foreach_add, alpha=-0.1),
    }
    if config.compile:
        torch._dynamo.reset()
        variants["compiled"] = torch.compile(variants["eager"], dynamic=False, fullgraph=True)
    params, grads = operands()
    truth = reference.lookahead_update([p.double() for p in params], [g.double() for g in grads], lr=0.1)
    errors = {k: max(deviations(list(f(params, grads)), truth)) for k, f in variants.items()}
    if not errors["fused"] <= errors["eager"] + 4 * torch.finfo(kind).eps:
        raise WrongResult(f"lookahead_update in {dtype} is off by {errors['fused']:.2e}; not timed")

    elements = sum(p.numel() for p in params)
    moved = 3 * elements * params[0].element_size()
    slots = [(params, grads), *(operands() for _ in range(slots_needed(moved, device) - 1))]
    bodies: dict[str, list[Body]] = {k: [partial(f, *slot) for slot in slots] for k, f in variants.items()}
    for calls in bodies.values():
        calls[0]()
    case = Prepared(bodies, errors, moved)
    return timed(case, LOOKAHEAD, len(params), elements, dtype, config=config, copy=copy)
