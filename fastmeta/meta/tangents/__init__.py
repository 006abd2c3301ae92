"""The logit tangent u = J g: how the train logits at theta move along a direction in parameter space."""

from fastmeta.meta.tangents.choose import plan_tangent
from fastmeta.meta.tangents.culprit import first_failing_layer
from fastmeta.meta.tangents.difference import difference_tangent
from fastmeta.meta.tangents.double_vjp import reverse_tangent
from fastmeta.meta.tangents.dual import forward_tangent, forward_with_graph
from fastmeta.meta.tangents.plan import Tangent, TangentChoice, TangentKind, TangentPlan, arithmetic_of, tried_by_all
from fastmeta.meta.tangents.probe import bends

__all__ = [
    "Tangent",
    "TangentChoice",
    "TangentKind",
    "TangentPlan",
    "arithmetic_of",
    "bends",
    "difference_tangent",
    "first_failing_layer",
    "forward_tangent",
    "forward_with_graph",
    "plan_tangent",
    "reverse_tangent",
    "tried_by_all",
]
