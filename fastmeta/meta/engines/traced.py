"""The whole meta step as one graph: traced once per shape, cleaned, compiled by inductor and, on CUDA, captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from fastmeta._text import reason
from fastmeta.distributed import ALONE, Ranks
from fastmeta.functional.network import Network, copy_all_
from fastmeta.functional.precision import without_autocast
from fastmeta.functional.state import State
from fastmeta.functional.watch import Watch
from fastmeta.losses import LearnableLoss, Unsupported
from fastmeta.meta.approximation import EXACT, Approximation
from fastmeta.meta.engines.building import building
from fastmeta.meta.engines.caches import fill_caches
from fastmeta.meta.engines.captured import Captured, Record, record_cuda
from fastmeta.meta.engines.compile_notes import LOG, noted
from fastmeta.meta.engines.flat import Form, flat_of, rebuilt
from fastmeta.meta.engines.graph import (
    TooManyGraphs,
    Unsettled,
    Untraceable,
    below_autograd,
    random_nodes,
    trace,
)
from fastmeta.meta.engines.inductor import through_inductor
from fastmeta.meta.engines.kept_graphs import Graph, KeptGraph, KeptGraphs
from fastmeta.meta.engines.pure import PureStep, StepInputs
from fastmeta.meta.engines.reads import HOST_DRAWS, Reads, settled
from fastmeta.meta.engines.step_tensors import Batch, StepTensors
from fastmeta.meta.inputs import InputTransform, network_inputs
from fastmeta.meta.lookahead import LookAhead, Rate
from fastmeta.meta.result import StepResult, Totals
from fastmeta.meta.tangents import TangentPlan

CompileMode = Literal["off", "trace", "full"]

_RESULTS = len([f for f in fields(StepResult) if f.init])  # but for what is measured outside of the graph


def _channels_last(x: Any) -> Any:
    """Images in the layout that inductor gives its convolutions: otherwise their backward runs in mixed layouts.

    ResNet-20, 32/64, one CPU thread: 2.9 instead of 4.6 plain eager steps.
    """
    image = isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()
    return x.contiguous(memory_format=torch.channels_last) if image else x


def refuse_graph(plan: TangentPlan, on_grad: Any, *, whole: bool, gathers: bool) -> None:
    """Raise Untraceable for a step that no graph holds, whatever the model is.

    `whole` where no batch is cut, `gathers` where label rows come from all ranks.
    """
    if gathers:
        raise Untraceable("labels that every rank has are gathered from all; give each its own, and own_rows=True")
    if not whole:
        raise Untraceable("micro_batch builds train graphs more than once")
    if on_grad is not None:
        raise Untraceable("on_grad is Python between the gradient and the update")
    if plan.one_backward:
        raise Untraceable("a graph bears one backward only, by the model's selective checkpointing")
    if plan.kind == "difference":
        raise Untraceable("tangent by differences")


class GraphStep(StepTensors):
    """Graphs of one (network, labels, optimizer), one per shape and dtype of the batches and state of the model.

    What a graph runs without is the model's Python. So each is bound to all that this read when it was traced (see
    fastmeta.functional.watch), and where that changes, another is made.

    Args:
        mode: ``"trace"`` runs the clean graph as it is, ``"full"`` hands it to inductor and, on CUDA, captures the
            compiled step with its gathers and writes.
        cap: how many graphs are kept; a further shape raises TooManyGraphs.
        totals: sums over steps that the graph takes along.
        transform: makes network input of x and x_meta, in the graph.
        record: what captures; None where nothing is captured.
        replan: makes a plan of network input and its rows, for the model in another state than that of `plan`.
        ranks, own_rows: as of :class:`fastmeta.losses.Move`. All ranks make a graph, or none does.

    Raises:
        Untraceable: what cannot be in a graph (an optimizer that is not SGD, dampening, hooks, a hidden write, draws
            of Python's or NumPy's generators, a state that cannot be watched, ...).
    """

    def __init__(
        self,
        network: Network,
        loss: LearnableLoss,
        optimizer: torch.optim.Optimizer,
        lookahead: LookAhead,
        plan: TangentPlan,
        *,
        mode: CompileMode,
        unique: bool,
        loss_optimizer: torch.optim.Optimizer | None = None,
        approx: Approximation = EXACT,
        totals: Totals | None = None,
        transform: InputTransform | None = None,
        cap: int = 8,
        record: Record | None = None,
        replan: Callable[[Any, int], TangentPlan] | None = None,
        ranks: Ranks = ALONE,
        own_rows: bool = False,
    ) -> None:
        super().__init__(network, loss, loss_optimizer, optimizer, lookahead, totals, transform)
        self.plan, self.mode, self.unique, self.cap, self.approx = plan, mode, unique, cap, approx
        self.record = (
            record_cuda if record is None and mode == "full" and next(iter(network.params.values())).is_cuda else record
        )
        self.compilations = 0
        self.captures = 0
        self._unsettled = 0  # steps in which the model had other buffers after than before
        self.uncaptured = self.loss.outside  # why the compiled graph runs kernel by kernel although this is CUDA
        #: per shape, the graph before inductor: for counting and reading
        self.graphs: list[fx.GraphModule] = []
        self.replan, self.ranks, self.own_rows = replan, ranks, own_rows
        self._graphs = KeptGraphs()

    def __call__(
        self,
        train: tuple[Any, Tensor],
        meta: tuple[Any, Tensor],
        label_lr: Rate | None,
        floor: Rate | None,
        weight: Tensor | None,
        *,
        loss_moves: bool = True,
    ) -> StepResult:
        """Run the step and write the new parameters, momentum, buffers, totals and labels."""
        self._terms = self._read_terms()  # which terms there are; their numbers are inputs
        if not self.loss.stands():
            self._read_loss()
        batch = Batch(*train, *meta, [] if weight is None else [weight])
        self._set_rates(label_lr, floor)
        run = self._captured_run if self.record is not None and not self.uncaptured else self._run
        result = StepResult(*run(batch, loss_moves))
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules of torch ask for it, and warn
        return result

    # -- one step ----------------------------------------------------------------------------------------

    def _run(self, batch: Batch, loss_moves: bool) -> Sequence[Tensor]:
        """The results; state is written in place. Captured, this is the whole content of the CUDA graph."""
        inputs, leaves, kept = self._prepared(batch, loss_moves)
        graph = kept.graph
        with torch.no_grad(), without_autocast():
            with below_autograd():
                out = list(graph(*leaves))
            moved = [*inputs.params, *inputs.momentum, *inputs.state]
            of_loss, results = out[len(moved) + len(inputs.totals) : -_RESULTS], out[-_RESULTS:]
            finite = results[-1]
            if finite.is_cuda or bool(finite):
                pairs = [(t, value) for t, value in zip(moved, out, strict=False) if value is not t]
                copy_all_([t for t, _ in pairs], [value for _, value in pairs])
                if loss_moves:
                    self.loss.write(batch.index, of_loss, finite)
            for total, value in zip(inputs.totals, out[len(moved) :], strict=False):
                total.copy_(value)
        return results

    def _captured_run(self, batch: Batch, loss_moves: bool) -> Sequence[Tensor]:
        assert self.record is not None
        leaves, spec = flat_of(batch.tree())
        key, state = self._key(leaves, spec, loss_moves), self._state()
        # read anew: the rates are set, and momentum is made
        _, _, kept = self._prepared(batch, loss_moves)
        captured = kept.captured.get(key)
        if captured is None or not captured.fits(state):
            undo = self._undo(batch.index)
            try:
                captured = Captured(
                    lambda flat: self._run(Batch(*rebuilt(list(flat), spec)), loss_moves),
                    leaves,
                    state,
                    undo,
                    self.record,
                )
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.uncaptured = reason(error, 200)
                LOG.warning("the compiled step is not captured in a CUDA graph: %s", self.uncaptured)
                return self._run(batch, loss_moves)
            kept.captured[key] = captured
            self.captures += 1
        return captured(leaves)

    # -- graphs by shape ---------------------------------------------------------------------------------

    def _key(self, leaves: list[Tensor], spec: Form, loss_moves: bool) -> Any:
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise Untraceable(f"the batch holds {type(leaf).__name__}, which a graph would have for good")
        device = leaves[0].device.type
        return (
            loss_moves,
            tuple(self._terms),
            self.loss.key,
            spec,
            tuple((t.shape, t.dtype, t.device, t.stride()) for t in leaves),
            torch.get_default_dtype(),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )

    def _prepared(self, batch: Batch, loss_moves: bool) -> tuple[StepInputs, list[Tensor], KeptGraph]:
        """What the step reads, as a tree and flat, and the graph for it."""
        inputs = self._read(batch)
        leaves, spec = flat_of(inputs.tree())
        kept = self._graphs.find(self._key(leaves, spec, loss_moves))
        if kept is None:
            failed: Untraceable | None = None
            try:
                reads = self._fill_caches(leaves, spec)
                inputs = self._read(batch)
                leaves, spec = flat_of(inputs.tree())
                kept = self._graph(leaves, spec, loss_moves, reads)
            except Untraceable as error:
                failed = error
            self._agree(failed)
            assert kept is not None
        return inputs, leaves, kept

    def _agree(self, failed: Untraceable | None) -> None:
        """Raise what one rank has met on all of them: they go on alike, and none waits for another's collective."""
        told = self.ranks.each(None if failed is None else (type(failed).__name__, str(failed)))
        found = next(filter(None, told), None)
        if found is None:
            return
        if self.ranks.size > 1:
            self._graphs.clear()
        raise failed or {kind.__name__: kind for kind in (Untraceable, Unsettled, TooManyGraphs)}[found[0]](found[1])

    def _reads(self, leaves: list[Tensor]) -> Reads:
        return Reads(self.network, leaves[0].device, self.loss.modules())

    def _fill_caches(self, leaves: list[Tensor], spec: Form) -> Reads | None:
        """The model must not keep fakes of what depends on the shape of a batch; nor may what it moves stand still.

        Returns what a forward of both batches has read, where the model keeps nothing of it.
        """
        random, reads, kept = self.network.random_state(leaves[0].device), self._reads(leaves), False
        index = StepInputs(*rebuilt(leaves, spec)).index
        for k, x in enumerate(self._inputs(leaves, spec)):

            def first_forward(state: State, k: int = k, x: Any = x) -> Tensor:
                with reads.noted():
                    return self._tried(state, x, index if k == 0 else None)

            keeps, name = fill_caches(self.network, x, random, first_forward)
            if name:
                self._unsettled += 1
                error = Untraceable if self._unsettled > 2 else Unsettled
                raise error(f"the model gives {name} another form in its forward")
            kept = kept or keeps
        return None if kept else reads

    def _graph(self, leaves: list[Tensor], spec: Form, loss_moves: bool, reads: Reads | None) -> KeptGraph:
        key = self._key(leaves, spec, loss_moves)
        kept = self._graphs.find(key)
        if kept is None:
            if self._graphs.count() >= self.cap:
                raise TooManyGraphs(
                    f"{self.cap} graphs are kept already, one per batch shape, dtype, mode and state of what the model "
                    "reads as Python; give batches of equal size (drop the partial last one), and keep numbers that "
                    "change from step to step in buffers"
                )
            watch = self._settle(leaves, spec, reads)
            kept = self._graphs.find(key)  # the model may have filled its caches as it had before
            if kept is None:
                if self.graphs and self.replan is not None:  # the plan is of the model as it was for another
                    (x, _), n = self._inputs(leaves, spec), len(StepInputs(*rebuilt(leaves, spec)).index)
                    plan = self.replan(x, n)
                    if not plan.tried:
                        raise Unsettled("a batch that is not finite shows nothing of the layers")
                    self.plan = plan
                    if self.plan.kind == "difference":
                        raise Untraceable("tangent by differences")
                    watch = self._settle(leaves, spec)
                kept = KeptGraph(watch, self._build(leaves, spec, loss_moves, watch))
                self._graphs.setdefault(key, []).append(kept)
        return kept

    def _trace(self, leaves: list[Tensor], spec: Form, watch: Watch, loss_moves: bool = True) -> fx.GraphModule:
        def function(*flat: Tensor) -> list[Tensor]:
            inputs = StepInputs(*rebuilt(list(flat), spec))
            inputs.x, inputs.x_meta = network_inputs(self.transform, inputs.data, inputs.x, inputs.x_meta)
            if self.mode == "full":
                inputs.x, inputs.x_meta = tree_map(_channels_last, (inputs.x, inputs.x_meta))
            step = PureStep(
                self.network,
                self.loss,
                self.loss_module.num_classes,
                self.lookahead,
                self._terms,
                self.plan,
                self.approx,
                self.unique,
                self.totals,
                self.ranks,
                self.own_rows,
            )
            return step(inputs, loss_moves)

        if self.network.together:
            raise Untraceable(f"{' and '.join(self.network.together[0])} lie in the same memory")
        known = [t.untyped_storage().data_ptr() for t in leaves]

        def is_known(t: Tensor) -> bool:
            return t.untyped_storage().data_ptr() in known or watch.has(t)

        random = self.network.random_state(leaves[0].device)
        try:
            graph = trace(function, leaves, is_known)
            if self.plan.kind == "forward" and random_nodes(graph.graph):
                # a second forward would draw other masks than the first; double-vjp looks at the first one's graph
                reason = "random layers are traced from double-vjp"
                self.plan = TangentPlan("reverse", self.plan.math_attention, reason)
                graph = trace(function, leaves, is_known)
        finally:
            watch.put_back()
            drawn = random.host_has_drawn()
            random.restore()
        if drawn:
            raise Untraceable(HOST_DRAWS)
        if not watch.holds():
            raise Untraceable("the model changes what it reads when it is traced")
        return graph

    def _build(self, leaves: list[Tensor], spec: Form, loss_moves: bool, watch: Watch) -> Graph:
        with building(), noted() if self.mode == "full" else nullcontext():
            graph = self._trace(leaves, spec, watch, loss_moves)
            self.graphs.append(graph)
            self.compilations += 1
            return through_inductor(graph, leaves) if self.mode == "full" else graph

    def _inputs(self, leaves: list[Tensor], spec: Form) -> tuple[Any, ...]:
        """Network input of the train and the meta batch."""
        inputs = StepInputs(*rebuilt(leaves, spec))
        return network_inputs(self.transform, inputs.data, inputs.x, inputs.x_meta)

    def _settle(self, leaves: list[Tensor], spec: Form, reads: Reads | None = None) -> Watch:
        """By forwards of the real batches: a model that keeps what depends on their shape must not keep fakes of it.

        `reads` are of a forward of both that has just been made.
        """
        network, xs = self.network, self._inputs(leaves, spec)
        index = StepInputs(*rebuilt(leaves, spec)).index

        def run() -> None:
            for k, x in enumerate(xs):
                self._tried(state := network.state(), x, index if k == 0 else None)
                network.count(state)

        with network.trying():
            functions = [("logits_of", network.logits_of)]
            looked = reads is not None
            return settled(network, functions, run, reads or self._reads(leaves), looked=looked)

    def _tried(self, state: State, x: Any, index: Tensor | None) -> Tensor:
        """The logits of the model, which moves `state`; and a forward of the loss on them, given the rows `index`."""
        logits = self.network(self.network.params, state, x).detach()
        if index is not None:
            try:
                self.loss.try_forward(logits, index, x)
            except Unsupported as error:
                raise Untraceable(str(error)) from None
        return logits

    def graph_of(self, train: tuple[Any, Tensor], meta: tuple[Any, Tensor]) -> fx.GraphModule:
        """The clean graph for batches of these shapes; nothing is computed or written."""
        self._set_rates(1.0, None)
        leaves, spec = flat_of(self._read(Batch(*train, *meta, [])).tree())
        return self._trace(leaves, spec, self._settle(leaves, spec))
