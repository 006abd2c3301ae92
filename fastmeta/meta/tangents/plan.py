"""The logit tangent u = J g: how the train logits at theta move along a direction in parameter space.

| kind         | how                                                        | exact |
|--------------|------------------------------------------------------------|-------|
| reverse      | double-vjp: u = d<J'v, g>/dv through the kept train graph  | yes   |
| forward      | dual numbers: one more forward with tangents, which makes  | yes   |
|              | the graph of the last backward too where it can            |       |
| difference   | central difference of the logits, two more forwards        | no    |

Of a chain of linear layers u is a few products, as all of its passes are (:mod:`fastmeta.functional.chain`): there
"reverse" is the way of the graphs only, and of the step as soon as the model is no chain any more.

Which one works and which is cheaper depends on the model's layers, and a layer without a rule can give *silent zeros*
instead of an error (custom operators do). So none is trusted unseen: before its first use it is held against the
gradient of the same logits, of which it must be the adjoint (:mod:`fastmeta.meta.tangents.probe`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastmeta.distributed import Ranks

TangentKind = Literal["reverse", "forward", "difference"]
TangentChoice = Literal["auto", "reverse", "forward", "difference"]


@dataclass(frozen=True)
class TangentPlan:
    """The chosen kind, whether attention runs as plain maths for it, and why, in words for people."""

    kind: TangentKind
    math_attention: bool
    reason: str
    leaves_graph: bool = False  # forward: its graph is good for a backward, see forward_with_graph
    one_backward: bool = False  # a graph bears one alone (selective checkpointing), so that each gets one of its own
    tried: bool = True  # False: the batch was not finite, which shows nothing; to be chosen anew with the next one
    closed: bool = False  # reverse: in the place of its graphs, products, while the model is a chain of linear layers
    inexact: str = ""  # the layers that leave nothing but differences, where an exact one was asked for

    @property
    def key(self) -> tuple[Any, ...]:
        """What a step by this plan does, without the reasons."""
        return self.kind, self.math_attention, self.leaves_graph, self.one_backward, self.closed

    @property
    def warning(self) -> str:
        """What the user must know, or ""."""
        if not self.inexact:
            return ""
        return (
            "the label gradient is inexact: its tangent is a difference of logits, because no exact way leads through "
            f"{self.inexact}. Put another layer in its place; tangent='difference' takes it as it is, without a warning"
        )


def tried_by_all(plan: TangentPlan, ranks: Ranks) -> TangentPlan:
    """`plan`, to be chosen anew with the next batch where that of any rank shows nothing: then all choose anew."""
    return plan if all(ranks.each(plan.tried)) else replace(plan, tried=False)


class Tangent(NamedTuple):
    """u, and the logits of the forward that made it, which must be those of the train forward up to `spread`."""

    u: Tensor
    logits: Tensor
    spread: Tensor | float = 0.0


def arithmetic_of(like: Tensor) -> torch.dtype:
    """The type that makes the logits."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
