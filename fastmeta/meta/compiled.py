"""The whole meta step as one graph: traced once per shape, cleaned, and optionally compiled by inductor.

The graph is that of the same :func:`~fastmeta.meta.gradient.meta_pass` that runs eagerly, with the rest of a step
around it: finite check, label step, second backward, SGD. Rates are 0-d inputs, so a schedule changes no graph.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from fastmeta import ops
from fastmeta.labels import InstanceLabels, class_gradient, instance_gradient
from fastmeta.meta.approximation import EXACT, Approximation
from fastmeta.meta.gradient import Labels, meta_pass
from fastmeta.meta.graph import TooManyGraphs, Untraceable, random_nodes, trace
from fastmeta.meta.lookahead import LookAhead, PreparedLookAhead, Rate, Rule
from fastmeta.meta.network import Network, Tensors, math_attention
from fastmeta.meta.tangent import TangentPlan

CompileMode = Literal["off", "trace", "full"]


class _BatchLabels:
    """The labels of one batch as tensors of a graph: what :func:`meta_pass` asks of a label family, and their step."""

    def __init__(self, family: str, num_classes: int, param: Tensor, targets: Tensor) -> None:
        self.family, self.num_classes = family, num_classes
        self.param, self.targets = param, targets  # instance: rows (n, C); class: alpha (C,)

    def batch_loss(self, logits: Tensor, index: Tensor, weight: Tensor | None = None) -> ops.LabelLoss:
        if self.family == "instance":
            own = torch.arange(logits.shape[0], device=logits.device)
            return ops.instance_loss(logits, self.param, own, weight)
        return ops.class_loss(logits, self.param, self.targets, weight)

    def step(
        self,
        index: Tensor,
        logits: Tensor,
        u: Tensor,
        scale: Tensor,
        label_lr: Tensor,
        weight: Tensor | None,
        unique: bool,
    ) -> tuple[Tensor, ops.LabelStep]:
        if self.family == "instance":
            new, *rest = ops.instance_label_step(self.param, index, logits, u, scale, label_lr, weight, unique=unique)
        else:
            new, *rest = ops.class_label_step(self.param, self.targets, logits, u, scale, label_lr, weight)
        return new, ops.LabelStep(*rest)

    def gradient(self, u: Tensor, scale: Rate, weight: Tensor | None) -> Tensor:
        if self.family == "instance":
            return instance_gradient(self.param, u, scale, weight)
        return class_gradient(self.targets, self.num_classes, u, scale, weight)


class _BoundNetwork(Network):
    """A network over given tensors in the place of the model's own."""

    def __init__(self, network: Network, params: Tensors, frozen: Tensors, buffers: Tensors) -> None:
        self._network, self.params, self._frozen_values, self._buffer_values = network, params, frozen, buffers

    def buffers(self) -> Tensors:
        return {name: b.clone() for name, b in self._buffer_values.items()}

    def __call__(self, params: Tensors, buffers: Tensors, x: Any) -> Tensor:
        return self._network({**self._frozen_values, **params}, buffers, x)


@dataclass(frozen=True)
class _SGD:
    """One parameter's update in the graph: torch.optim.SGD without dampening, a buffer of zeros standing for none."""

    group: int
    momentum: float
    nesterov: bool
    weight_decay: float

    def __call__(self, theta: Tensor, grad: Tensor, buffer: Tensor | None, lr: Tensor) -> tuple[Tensor, Tensor | None]:
        d = grad + self.weight_decay * theta if self.weight_decay else grad
        if buffer is not None:
            buffer = self.momentum * buffer + d
            d = d + self.momentum * buffer if self.nesterov else buffer
        return torch.addcmul(theta, d, -lr), buffer


@dataclass
class _Inputs:
    """Everything that a step reads, as a tree of tensors; the graph is a function of its leaves in order."""

    params: list[Tensor]
    frozen: list[Tensor]
    buffers: list[Tensor]
    momentum: list[Tensor]  # of the parameters that have one
    label: Tensor  # rows (n, C) or alpha (C,)
    targets: Tensor  # (n,) given classes
    index: Tensor
    x: Any
    x_meta: Any
    y_meta: Tensor
    lrs: list[Tensor]  # 0-d, one per parameter group
    lookahead_lr: Tensor  # 0-d, for a fixed look-ahead
    label_lr: Tensor  # 0-d
    weight: list[Tensor]  # none or one

    def tree(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())


#: names of what a graph returns after the new parameters, momentum, buffers and labels
_STATISTICS = (
    "train_loss",
    "meta_loss",
    "loss",
    "logits",
    "entropy",
    "alignment",
    "label_grad_norm",
    "skipped",
    "finite",
)


def _channels_last(x: Any) -> Any:
    """Images in the layout that inductor gives its convolutions: otherwise their backward runs in mixed layouts.

    ResNet-20, 32/64, one CPU thread: 2.9 instead of 4.6 plain eager steps.
    """
    image = isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()
    return x.contiguous(memory_format=torch.channels_last) if image else x


def _say(message: str) -> None:
    print(f"fastmeta: {message}", file=sys.stderr, flush=True)


class GraphStep:
    """Graphs of one (network, labels, optimizer), one per shape, mode and dtype of the batches.

    Args:
        mode: ``"trace"`` runs the clean graph as it is, ``"full"`` hands it to inductor.
        cap: how many graphs are kept; a further shape raises TooManyGraphs.

    Raises:
        Untraceable: what cannot be in a graph (an optimizer that is not SGD, dampening, a hidden write, ...).
    """

    def __init__(
        self,
        network: Network,
        labels: Labels,
        optimizer: torch.optim.Optimizer,
        lookahead: LookAhead,
        plan: TangentPlan,
        *,
        mode: CompileMode,
        unique: bool,
        approx: Approximation = EXACT,
        cap: int = 8,
    ) -> None:
        self.network, self.labels, self.optimizer, self.lookahead = network, labels, optimizer, lookahead
        self.plan, self.mode, self.unique, self.cap = plan, mode, unique, cap
        self.approx = approx
        self.compilations = 0
        self._graphs: dict[Any, Callable[..., Sequence[Tensor]]] = {}
        #: per shape, the graph before inductor: for counting and reading
        self.graphs: list[fx.GraphModule] = []
        self._rules = self._read_rules()

    def _read_rules(self) -> list[_SGD]:
        if not isinstance(self.optimizer, torch.optim.SGD):
            raise Untraceable(f"the graph holds torch.optim.SGD, not {type(self.optimizer).__name__}")
        by_id: dict[int, _SGD] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            if group["dampening"] or group.get("maximize"):
                raise Untraceable("the graph holds SGD without dampening and maximize")
            rule = _SGD(number, group["momentum"], group["nesterov"], float(group["weight_decay"]))
            by_id.update((id(p), rule) for p in group["params"])
        return [by_id[id(p)] for p in self.network.params.values()]

    # -- the pure function -------------------------------------------------------------------------------

    def _function(self, inputs: _Inputs, labels_move: bool) -> list[Tensor]:
        """New parameters, momentum, buffers, labels; then the statistics.

        On CUDA all new values are masked by `finite`, because nothing may wait for the device; on a CPU the caller
        looks at the flag before it writes (the masks cost a third of the update there).
        """
        network, names = self.network, list(self.network.params)
        params = {k: p.detach().requires_grad_() for k, p in zip(names, inputs.params, strict=True)}
        frozen = dict(zip(network.frozen(), inputs.frozen, strict=True))
        bound = _BoundNetwork(network, params, frozen, dict(zip(network.buffer_names, inputs.buffers, strict=True)))
        momenta = iter(inputs.momentum)
        buffer_of = {k: next(momenta) if r.momentum else None for k, r in zip(names, self._rules, strict=True)}
        labels = _BatchLabels(self.labels.family, self.labels.num_classes, inputs.label, inputs.targets)
        weight = inputs.weight[0] if inputs.weight else None
        if labels_move:
            lookahead = PreparedLookAhead(self._lookahead_rules(inputs, buffer_of))
            out = meta_pass(
                bound,
                labels,  # type: ignore[arg-type]
                lookahead,
                self.plan,
                (inputs.x, inputs.index),
                (inputs.x_meta, inputs.y_meta),
                weight=weight,
                replay=False,
                moving=self.approx.moving(network) if self.approx.kind == "last" else None,
                keep_grads=self.approx.kind == "delayed",
            )
            finite, z, after = out.finite(), out.logits, out.buffers
            scale = torch.as_tensor(out.scale, dtype=torch.float64, device=z.device)
            grad_norm = labels.gradient(out.u, out.scale, weight).float().square().sum().sqrt()
            label, moved = labels.step(
                inputs.index, z.detach(), out.u, torch.where(finite, scale, 0.0), inputs.label_lr, weight, self.unique
            )
            train_loss, meta_loss, v, grads = out.train_loss, out.meta_loss, moved.v, out.grads
        else:
            after = bound.buffers()
            with math_attention(self.plan.math_attention):
                z = bound(params, after, inputs.x)
            before = labels.batch_loss(z.detach(), inputs.index, weight)
            moved = ops.LabelStep(*before[:3], torch.full_like(before.loss, torch.nan), before.skipped)
            label, grads = inputs.label, {}
            train_loss, v = (moved.loss if weight is None else moved.loss * weight).mean(), moved.v
            finite = train_loss.isfinite()
            meta_loss = grad_norm = torch.full_like(train_loss, torch.nan)
        if not grads:
            made = torch.autograd.grad(z, list(params.values()), v / len(v), allow_unused=True)
            grads = {k: t for k, t in zip(params, made, strict=True) if t is not None}

        def keep(value: Tensor, before: Tensor) -> Tensor:
            return torch.where(finite, value, before) if finite.is_cuda else value

        new, buffers = [], []
        for (name, p), rule in zip(params.items(), self._rules, strict=True):
            theta, old, grad = p.detach(), buffer_of[name], grads.get(name)
            moved_to, buffer = (theta, old) if grad is None else rule(theta, grad, old, inputs.lrs[rule.group])
            new.append(keep(moved_to, theta))
            if old is not None and buffer is not None:
                buffers.append(keep(buffer, old))
        statistics = [keep(after[k], b) for k, b in zip(after, inputs.buffers, strict=True)]
        told = (train_loss, meta_loss, moved.loss, z.detach(), moved.entropy, moved.alignment)
        return [*new, *buffers, *statistics, label, *told, grad_norm, moved.skipped, finite]

    def _lookahead_rules(self, inputs: _Inputs, buffer_of: dict[str, Tensor | None]) -> dict[str, Rule]:
        choice, rules = self.lookahead.choice, {}
        for (name, buffer), rule in zip(buffer_of.items(), self._rules, strict=True):
            if choice == "sgd":
                rules[name] = Rule(inputs.lrs[rule.group])
            elif choice == "optimizer":
                lr = inputs.lrs[rule.group]
                rules[name] = Rule(lr, rule.momentum, 0.0, rule.nesterov, rule.weight_decay, buffer)
            else:
                rules[name] = Rule(inputs.lookahead_lr)
        return rules

    # -- graphs by shape ---------------------------------------------------------------------------------

    def _graph(self, leaves: list[Tensor], spec: TreeSpec, labels_move: bool) -> Callable[..., Sequence[Tensor]]:
        device = leaves[0].device.type
        key = (
            labels_move,
            tuple(self._rules),
            spec,
            tuple((t.shape, t.dtype, t.device, t.stride()) for t in leaves),
            self.network.modes(),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )
        if key not in self._graphs:
            if len(self._graphs) >= self.cap:
                raise TooManyGraphs(
                    f"{self.cap} graphs are kept already, one per batch shape, dtype and mode; "
                    "give batches of equal size (drop the partial last one)"
                )
            self._graphs[key] = self._build(leaves, spec, labels_move)
        return self._graphs[key]

    def _trace(self, leaves: list[Tensor], spec: TreeSpec, labels_move: bool = True) -> fx.GraphModule:
        def function(*flat: Tensor) -> list[Tensor]:
            inputs = _Inputs(*tree_unflatten(list(flat), spec))
            if self.mode == "full":
                inputs.x, inputs.x_meta = tree_map(_channels_last, (inputs.x, inputs.x_meta))
            return self._function(inputs, labels_move)

        graph = trace(function, leaves)
        if self.plan.way == "forward" and random_nodes(graph.graph):
            # a second forward would draw other masks than the first; double-vjp looks at the first one's graph
            self.plan = TangentPlan("reverse", self.plan.math_attention, "random layers are traced from double-vjp")
            graph = trace(function, leaves)
        return graph

    def _build(self, leaves: list[Tensor], spec: TreeSpec, labels_move: bool) -> Callable[..., Sequence[Tensor]]:
        start = time.perf_counter()
        graph = self._trace(leaves, spec, labels_move)
        self.graphs.append(graph)
        self.compilations += 1
        if self.mode != "full":
            return graph
        seconds = time.perf_counter() - start
        _say(
            f"traced the step ({len(graph.graph.nodes)} nodes, {seconds:.0f} s); compiling, cached on disk from then on"
        )
        with torch.no_grad():
            compiled = torch._inductor.compile(graph, list(leaves))
        _say(f"compiled after {time.perf_counter() - start:.0f} s")
        return compiled

    # -- one step ----------------------------------------------------------------------------------------

    def __call__(
        self,
        train: tuple[Any, Tensor],
        meta: tuple[Any, Tensor],
        label_lr: float,
        weight: Tensor | None,
        *,
        labels_move: bool = True,
    ) -> dict[str, Tensor]:
        """Run the step and write the new parameters, momentum, buffers and labels; the statistics by name."""
        labels, index = self.labels, train[1]
        self._rules = self._read_rules()  # momentum and weight decay may change between steps; rates are inputs
        inputs = self._read(train, meta, label_lr, weight)
        leaves, spec = tree_flatten(inputs.tree())
        graph = self._graph(leaves, spec, labels_move)
        with torch.no_grad():
            out = list(graph(*leaves))
            told = dict(zip(_STATISTICS, out[-len(_STATISTICS) :], strict=True))
            if told["finite"].is_cuda or bool(told["finite"]):
                old = [*inputs.params, *inputs.momentum, *inputs.buffers]
                torch._foreach_copy_(old, out[: len(old)])
                label = out[len(old)]
                if isinstance(labels, InstanceLabels):
                    labels.write_(index, label)
                else:
                    labels.alpha.copy_(label)
        return told

    def graph_of(self, train: tuple[Any, Tensor], meta: tuple[Any, Tensor]) -> fx.GraphModule:
        """The clean graph for batches of these shapes; nothing is computed or written."""
        leaves, spec = tree_flatten(self._read(train, meta, 1.0, None).tree())
        return self._trace(leaves, spec)

    def _read(
        self, train: tuple[Any, Tensor], meta: tuple[Any, Tensor], label_lr: float, weight: Tensor | None
    ) -> _Inputs:
        (x, index), labels, network = train, self.labels, self.network
        rules = zip(network.params.values(), self._rules, strict=True)
        wide = next(iter(network.params.values())).dtype == torch.float64

        def scalar(value: Any) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float64 if wide else torch.float32, device=index.device)

        choice = self.lookahead.choice
        return _Inputs(
            params=[p.detach() for p in network.params.values()],
            frozen=[p.detach() for p in network.frozen().values()],
            buffers=list(network.own_buffers()),
            momentum=[self._momentum(p) for p, rule in rules if rule.momentum],
            label=labels.rows(index) if isinstance(labels, InstanceLabels) else labels.alpha,
            targets=labels.targets[index],
            index=index,
            x=x,
            x_meta=meta[0],
            y_meta=meta[1],
            lrs=[scalar(group["lr"]) for group in self.optimizer.param_groups],
            lookahead_lr=scalar(choice if not isinstance(choice, str) else 0.0),
            label_lr=scalar(label_lr),
            weight=[] if weight is None else [weight],
        )

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.optimizer.state[p]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]
