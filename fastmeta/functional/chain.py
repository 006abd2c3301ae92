"""Chains of linear layers and elementwise functions, whose derivatives are products that need no graph.

A layer a_out = a W' + b and a function y = f(a) have, with d the covector of what they give and D = f'(a),

    pull, J'v:  dW = d' a,   db = sum of the rows of d,   of the input: d W,   through f: d D
    push, J g:  t -> t W' + a gW' + gb,                   through f: t D

A linear head is a chain of one layer: u_i = gW x_i + gb. Autograd makes the same products, at several microseconds for
each node that it records and visits, and J g by a second derivative: on small networks that is most of a step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmeta.functional.checks import Checks, hooks_of_all_modules

Tensors = dict[str, Tensor]

#: functions of each number alone, without parameters
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Tanh)
_DTYPES = (torch.float32, torch.float64)
#: where a module keeps its hooks: torch has no public question for them, but a new module has none, nor children
_HOOKS = [k for k, v in vars(nn.Module()).items() if isinstance(v, dict) and "_hooks" in k and "state_dict" not in k]
_relu_backward = torch.ops.aten.threshold_backward.default  # of an output, which the next layer keeps anyway
_hooks_of = attrgetter("_backward_hooks")  # of a tensor; torch has no public question for them either


class _Linear(NamedTuple):
    weight: str
    bias: str | None


class ChainPass:
    """One forward of a chain: its logits, and the derivatives there."""

    def __init__(self, values: Tensors, trail: list[tuple[_Linear | None, Tensor, bool]], logits: Tensor) -> None:
        self._values = values
        #: of a linear layer its input; of a function its derivative or, where True, of a ReLU its output
        self._trail = trail
        self.logits = logits  # (n, C), without a graph

    def pull(self, v: Tensor, names: Collection[str]) -> Tensors:
        """J'v of the parameters `names`, for a covector (n, C)."""
        made: Tensors = {}
        lowest = 0
        while (layer := self._trail[lowest][0]) is None or not (layer.weight in names or layer.bias in names):
            lowest += 1
        for k in range(len(self._trail) - 1, lowest - 1, -1):
            layer, a, is_relu = self._trail[k]
            if layer is None:
                v = _relu_backward(v, a, 0) if is_relu else v * a
                continue
            for name, is_weight in ((layer.weight, True), (layer.bias, False)):
                if name is not None and name in names:
                    value = v.t().mm(a) if is_weight else v.sum(0)
                    made[name] = made[name] + value if name in made else value
            if k > lowest:
                v = v.mm(self._values[layer.weight])
        return {name: made[name] for name in names}

    def push(self, direction: Mapping[str, Tensor]) -> Tensor:
        """J d (n, C) along a direction by parameter name; a parameter that is not there does not move."""
        t: Tensor | None = None
        for layer, a, is_relu in self._trail:
            if layer is None:
                if t is not None:
                    t = _relu_backward(t, a, 0) if is_relu else t * a
                continue
            before, t = t, None
            weight, bias = direction.get(layer.weight), direction.get(layer.bias) if layer.bias else None
            if weight is not None:
                t = a.mm(weight.t()) if bias is None else torch.addmm(bias, a, weight.t())
            elif bias is not None:
                t = bias.repeat(len(a), 1)
            if before is not None:
                on = self._values[layer.weight].t()
                t = before.mm(on) if t is None else t.addmm_(before, on)
        return torch.zeros_like(self.logits) if t is None else t


class Chain(NamedTuple):
    """A model as a chain of linear layers, by the names of their parameters, and of elementwise functions (None).

    Attributes:
        trained: {name: parameter} of those that move; `still` of the others.
        flattens: whether a first layer makes rows of the input.
    """

    layers: list[tuple[nn.Module, _Linear | None]]
    trained: Tensors
    still: Tensors
    flattens: bool

    def takes(self, *xs: Any) -> bool:
        """Whether the chain runs on each x as the model would; else it is the model's to say what that is."""
        p = next(iter(self.trained.values()))
        if any(map(_hooks_of, self.trained.values())) or torch.is_autocast_enabled(p.device.type):
            return False
        return all(
            type(x) is Tensor
            and x.dtype == p.dtype
            and x.dtype in _DTYPES
            and x.layout == torch.strided
            and (x.ndim == 2 or (self.flattens and x.ndim > 2))
            for x in xs
        )

    def forward(self, params: Mapping[str, Tensor], x: Tensor) -> ChainPass:
        """At `params`, by name. Nothing is recorded."""
        values = {name: p.detach() for name, p in (*self.still.items(), *params.items())}
        trail: list[tuple[_Linear | None, Tensor, bool]] = []
        x = x.detach()
        if self.flattens:
            x = x.flatten(1)
        for module, layer in self.layers:
            if layer is not None:
                trail.append((layer, x, False))
                bias = None if layer.bias is None else values[layer.bias]
                x = nn.functional.linear(x, values[layer.weight], bias)
            elif type(module) is nn.ReLU:
                x = x.relu_()
                trail.append((None, x, True))
            else:
                with torch.enable_grad():
                    y = module((a := x.detach().requires_grad_()).clone())  # a clone, for it may work in place
                    (slope,) = torch.autograd.grad(y, a, torch.ones_like(y))
                x = y.detach()
                trail.append((None, slope, False))
        return ChainPass(values, trail, x)


class Chains:
    """The chain that a model is, if any; looked for again when something changed.

    A model is one where it is made of torch's own nn.Linear, nn.Sequential and elementwise functions, nn.Flatten before
    all others, and what does nothing, and nobody has put hooks or another forward on these.
    """

    def __init__(self) -> None:
        self._checks: Checks | None = None
        self._chain: Chain | None = None

    def __call__(self, modules: Sequence[nn.Module], trained: Tensors) -> Chain | None:
        if self._checks is None or not self._checks.hold(lambda before, now: False):
            self._checks, self._chain = _checks(modules), _chain(modules, trained)
        return self._chain

    def __deepcopy__(self, memo: Any) -> Chains:
        return Chains()


def _checks(modules: Sequence[nn.Module]) -> Checks:
    checks = Checks()
    for owner, names in _METHODS.items():
        checks.named(vars(owner), names)
    for hooks in hooks_of_all_modules():
        checks.size(hooks)
    for m in modules:
        checks.typed(m)
        checks.whole(vars(m))
        for name in _HOOKS:
            checks.size(vars(m)[name])
    return checks


#: what runs a chain, and could be replaced
_METHODS = {nn.Module: ("__call__", "__getattr__"), nn.Linear: ("forward",), nn.Sequential: ("forward",)}


def _chain(modules: Sequence[nn.Module], trained: Tensors) -> Chain | None:
    model, first = modules[0], next(iter(trained.values()))
    for p in model.parameters():
        alike = p.dtype == first.dtype and p.device == first.device and p.layout == torch.strided
        if type(p) is not nn.Parameter or not alike:
            return None
    own = all(vars(c)[name].__module__ == c.__module__ for c, names in _METHODS.items() for name in names)
    if not own or any(hooks_of_all_modules()) or not all(map(_is_untouched, modules)):
        return None
    chain = Chain([], trained, {}, flattens=_flattens(model))
    return chain if _take(model, chain, {id(p): name for name, p in trained.items()}) else None


def _is_untouched(module: nn.Module) -> bool:
    """No hooks, and no attribute in the place of a method."""
    own = vars(module)
    return not any(own[name] for name in _HOOKS) and not any(hasattr(type(module), name) for name in own)


def _flattens(module: nn.Module) -> bool:
    """Whether the first layer makes rows of whatever comes."""
    while type(module) is nn.Sequential and len(module):
        module = module[0]
    return (
        isinstance(module, nn.Flatten) and type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    )


def _take(module: nn.Module, chain: Chain, names: dict[int, str]) -> bool:
    """Add the layers of `module`; False where it is something else."""
    layers, kind = chain.layers, type(module)
    if isinstance(module, nn.Sequential) and kind is nn.Sequential:
        return all(_take(child, chain, names) for child in module)
    if isinstance(module, nn.Linear) and kind is nn.Linear:
        bias = None if module.bias is None else _name(module.bias, chain, names)
        layers.append((module, _Linear(_name(module.weight, chain, names), bias)))
        return True
    if kind is nn.Flatten:
        return chain.flattens and not layers
    if isinstance(module, nn.Dropout) and kind is nn.Dropout:
        return bool(layers) and (not module.training or module.p == 0)
    if kind is nn.Identity:
        return True
    layers.append((module, None))
    return kind in _ELEMENTWISE and layers[0][1] is not None


def _name(p: Tensor, chain: Chain, names: dict[int, str]) -> str:
    if id(p) not in names:
        names[id(p)] = f"still {len(chain.still)}"
        chain.still[names[id(p)]] = p
    return names[id(p)]
