"""One whole iteration of Algorithm 1: labels move by the meta-gradient, then the model moves with the new labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from fastmeta.distributed import Ranks
from fastmeta.functional.call import plain
from fastmeta.functional.network import Network, Tensors, recorded
from fastmeta.functional.optimizers import drop_grads
from fastmeta.functional.turns import TURN
from fastmeta.losses import Labels, LearnableLoss, Move
from fastmeta.losses.head import Head
from fastmeta.meta.current_network import CurrentNetwork
from fastmeta.meta.demands import check_parameters, learned_by
from fastmeta.meta.distance import watch_of
from fastmeta.meta.doubts import Doubts
from fastmeta.meta.engines.building import building
from fastmeta.meta.engines.eager import EagerEngine
from fastmeta.meta.engines.graph import TooManyGraphs, Unsettled, Untraceable
from fastmeta.meta.engines.several_steps import WindowEngine, together
from fastmeta.meta.engines.sharded import ShardedEngine, sharded_plan
from fastmeta.meta.engines.traced import CompileMode, GraphStep, refuse_graph
from fastmeta.meta.explanation import explanation, headline
from fastmeta.meta.gradient import check_meta
from fastmeta.meta.graph_memory import explained
from fastmeta.meta.inputs import InputTransform, network_inputs, tensors_of
from fastmeta.meta.label_rate import LabelRate
from fastmeta.meta.lookahead import LookAhead, LookAheadChoice
from fastmeta.meta.micro import Cut, check_pieces, fits
from fastmeta.meta.result import StepResult, Totals
from fastmeta.meta.rows import take
from fastmeta.meta.step_arguments import settled
from fastmeta.meta.step_given import Given
from fastmeta.meta.tangents import TangentChoice, TangentPlan, plan_tangent, tried_by_all
from fastmeta.meta.window import TrainBatch, by_double_vjp, check_window


class MetaStep:
    """One iteration of learning a loss, Eqs. (3)-(6): the loss moves, then the model under the moved loss.

        theta* = theta - (lambda/n) sum_i grad l_i(theta, phi)      look-ahead with the loss as it is
        phi    <- a step along dL_meta(theta*)/dphi                  of labels: only the rows of the batch
        theta  <- optimizer step along (1/n) sum_i grad l_i(theta, phi_new)        same theta, same batch

    The gradient is exact and forms no Hessian of the network. What the forward moves or draws counts once per step; a
    step that is not finite, or runs out of memory, changes nothing. docs/step-contracts.md has every contract in full.

    Args:
        model: any nn.Module with logits (n, C). A dict given as x goes to it as keyword arguments, a tuple as
            positional ones. Parameters that require a gradient and belong to `optimizer` move.
        loss: InstanceLabels, ClassLabels or any other :class:`fastmeta.LearnableLoss`, on the batch's device.
        optimizer: the model's. Its ``param_groups`` may change between steps (schedules).
        loss_optimizer: of the loss's parameters; label families have an SGD of their own and take none.
        label_lr: the rate of label families. None sets it in each step, by `label_step`.
        label_step: without `label_lr`, how far a visit moves a label at the highest lambda, rms, by default 0.3 logits;
            0.02 of a class's smoothing in an epoch. See :mod:`fastmeta.meta.label_rate`.
        lookahead: ``"sgd"``, Eq. (3) at the optimizer's current rates; ``"optimizer"``, its own step with momentum and
            weight decay; or a fixed rate, which an optimizer other than SGD needs.
        tangent: ``"reverse"`` (double-vjp), ``"forward"`` (dual numbers), ``"difference"`` (inexact), or ``"auto"``.
        logits_of: picks the logits from the model's output; default the output itself, else its ``.logits``.
        unique_index: a promise that no batch holds a row twice, for a faster kernel; a broken one loses updates.
        on_grad: called with {name: gradient} before the optimizer's step, to clip or record; in-place changes count.
        process_group: data parallelism, each rank with its own rows of the batch, equally many; of a model under
            ``fully_shard`` (FSDP2) the group of its mesh.
        own_rows: with it, each rank's loss holds rows of the training set that no other rank has, and index counts in
            these: instance labels move on their rank, and nothing of them is sent. Else every rank has all rows.
        compile: ``"off"``; ``"trace"``, the step as one graph; ``"full"``, that graph through inductor and captured on
            CUDA. What has no faithful graph runs eagerly, with a warning.
        approx: None is exact. ``"delayed"``, ``"every:k"``, ``"last:L"`` and ``"difference"`` are cheaper and change
            what is computed: see :mod:`fastmeta.meta.approximation`.
        watch_every: with `approx`, steps from one look at its distance from the exact step to the next: None for none.
            ``StepResult.distance`` has it then, see :mod:`fastmeta.meta.distance`; the training is the same, bitwise.
        transform: makes network input of `x` and `x_meta` inside the step: see :class:`fastmeta.meta.InputTransform`.
        totals: sums over steps on the device, as part of the step: see :class:`fastmeta.meta.Totals`.
        micro_batch: the most rows whose graphs are held at once, train and meta; None holds all.
        per_row: which tensors of an `x` that is no tensor `micro_batch` cuts; None is enough where one has n rows.
        per_row_meta: the same of `x_meta`; None takes `per_row`.
        lookahead_steps: K above 1 looks K plain SGD steps ahead, on K train batches in one call: the loss moves once by
            the exact gradient through all of them, then the model takes its K steps. docs/lookahead-steps.md.

    Raises:
        TypeError, ValueError: arguments that do not fit each other, named at once.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LearnableLoss,
        optimizer: torch.optim.Optimizer,
        *,
        loss_optimizer: torch.optim.Optimizer | None = None,
        label_lr: float | None = None,
        label_step: float | None = None,
        lookahead: LookAheadChoice = "sgd",
        tangent: TangentChoice = "auto",
        logits_of: Callable[[Any], Tensor] | None = None,
        unique_index: bool = False,
        on_grad: Callable[[dict[str, Tensor]], None] | None = None,
        process_group: dist.ProcessGroup | None = None,
        own_rows: bool = False,
        compile: CompileMode = "off",
        approx: str | None = None,
        watch_every: int | None = None,
        transform: InputTransform | None = None,
        totals: Totals | None = None,
        micro_batch: int | None = None,
        per_row: Any = None,
        per_row_meta: Any = None,
        lookahead_steps: int = 1,
    ) -> None:
        self._ranks, self.own_rows = Ranks(process_group), own_rows
        self.tangent, self.approx, max_rows, self.lookahead_steps = settled(
            model,
            loss,
            optimizer,
            loss_optimizer,
            self._ranks,
            own_rows=own_rows,
            lookahead=lookahead,
            tangent=tangent,
            compile=compile,
            approx=approx,
            watch_every=watch_every,
            micro_batch=micro_batch,
            lookahead_steps=lookahead_steps,
        )
        check_parameters(model, optimizer)
        self.model, self.loss, self.loss_optimizer = model, loss, loss_optimizer
        self.optimizer = optimizer
        self._rate = LabelRate(label_lr, label_step, loss, self._ranks, own_rows)
        self.logits_of, self.unique_index, self.on_grad = logits_of, unique_index, on_grad
        self.transform, self.totals = transform, totals
        self._cut = Cut(max_rows, per_row, per_row if per_row_meta is None else per_row_meta)
        self.plan: TangentPlan | None = None
        self.steps = 0
        self.nonfinite_steps = torch.zeros((), dtype=torch.int64, device=loss.device)
        self._lookahead = LookAhead(lookahead, optimizer)
        self.compile: CompileMode = compile
        self._watch = watch_of(watch_every, self.approx, self.tangent, loss, self._ranks, own_rows)
        self._graphs: GraphStep | None = None
        self._untraced = ""  # why the step runs eagerly although `compile` asks for more
        self._doubts = Doubts()
        self._inexact = ""  # the warning that was given
        #: takes the texts of warnings in the place of Python's, which go to the whole process
        self.on_warning: Callable[[str], None] | None = None
        self._networks = CurrentNetwork()
        self._planned: Any = None  # what `plan` was chosen for; None before the first step

    def __call__(self, train: Any, meta: tuple[Any, Tensor], *, weight: Any = None) -> StepResult:
        """One step on ``(x, index)`` and ``(x_meta, y_meta)``.

        index (n,) rows of the training set; y_meta (m,) classes; both of any integer dtype; weight (n,) optional
        constant weights of the training loss (both gradients carry them). With `lookahead_steps` train may be a list of
        so many pairs, and weight one of vectors. Raises ValueError for batches that do not fit each other.
        """
        batches = check_window(self.loss, train, weight, self.lookahead_steps)
        if len(batches) > 1:
            batches = [TrainBatch(plain(self.model, x), rows, w) for x, rows, w in batches]
        x, index, weight = batches[0]
        train, meta = (plain(self.model, x), index), check_meta(self.loss, meta)
        meta = plain(self.model, meta[0]), meta[1]
        turn = TURN if self._ranks.size == 1 else nullcontext()
        with building(turn) if self.compile != "off" and self.plan is None else turn:
            network = self._networks(self.model, self.optimizer, self.logits_of)
            drop_grads(self.optimizer)  # what is left there would move a parameter that this step does not
            inputs = self._network_inputs
            with explained(network, train, meta, self._cut, inputs, self._both_graphs, len(batches)), recorded():
                plan = self._current_plan(network, train, meta)
                sizes = [len(train[1])] if len(batches) == 1 else [len(b.rows) for b in batches]
                rates = self._rate.of_step(self._lookahead, lambda: self._moving(network), *sizes)
                given = Given(network, plan, rates, train, meta, weight)
                if len(batches) > 1:
                    return self._window_step(given, batches)
                if self._watch.every is None or not self._watch.covers(self.steps):
                    return self._step(given)
                distance = self._watch.look(*self._eagerly(given), self.steps, partial(self._warn, level=4))
                result = self._step(given)
                result.distance = distance
                return result

    def _step(self, given: Given) -> StepResult:
        if self.compile != "off" and not self._untraced and given.plan.tried:
            try:
                return self._graph_step(given)
            except Unsettled:
                pass
            except TooManyGraphs as error:
                self._warn(f"compile={self.compile!r}: this batch runs eagerly: {error}", 3)
            except Untraceable as error:
                self._untraced = str(error)
                self._warn(f"compile={self.compile!r}: the step runs eagerly: {error}", 3)
        engine, head, move = self._eagerly(given)
        result = engine.step(head(), move, moves=self._loss_moves())
        return self._told(result, given.train[1])

    def _told(self, result: StepResult, index: Tensor, steps: int = 1) -> StepResult:
        self._count(result, steps)
        if self.totals is not None:
            self.totals.values.copy_(self.totals.added(self.totals.values, result, self.loss.given(index)))
        return result

    def _window_step(self, given: Given, batches: list[TrainBatch]) -> StepResult:
        network, plan, rates, _, (x_meta, y_meta), _ = given
        *xs, x_meta = self._network_inputs(*(b.x for b in batches), x_meta)
        batches = [b._replace(x=x) for b, x in zip(batches, xs, strict=True)]
        lookahead, learned = self._lookahead.prepare(network.params), learned_by(self.loss, self.loss_optimizer)
        engine = WindowEngine(network, plan, self.loss, self.optimizer, lookahead, learned, self.on_grad)
        result = engine.step(batches, (x_meta, y_meta), Move(self._ranks, *rates, optimizer=self.loss_optimizer))
        return self._told(result, together(batches)[0], len(batches))

    def _eagerly(self, given: Given) -> tuple[EagerEngine, Callable[[], Head], Move]:
        """What takes a step on these batches eagerly, what makes a head of the loss for it, and how the loss moves."""
        network, plan, rates, (x, index), (x_meta, y_meta), weight = given
        x, x_meta = self._network_inputs(x, x_meta)
        engine = (ShardedEngine if network.sharded else EagerEngine)(
            network=network,
            optimizer=self.optimizer,
            lookahead=self._lookahead,
            approx=self.approx,
            plan=plan,
            choice=self.tangent,
            ranks=self._ranks,
            doubts=self._doubts,
            cut=self._cut,
            num_classes=self.loss.num_classes,
            train=(x, index),
            meta=(x_meta, y_meta),
            weight=weight,
            on_grad=self.on_grad,
            choose_plan=self._choose_plan,
            new_plan=self._take_plan,
        )
        head = partial(self.loss.head, index, x, weight, learned_by(self.loss, self.loss_optimizer))
        return engine, head, Move(self._ranks, *rates, self.unique_index, self.loss_optimizer, self.own_rows)

    def _take_plan(self, plan: TangentPlan) -> None:
        self.plan = plan

    def _count(self, result: StepResult, steps: int = 1) -> None:
        if result.finite.is_cuda or not bool(result.finite):
            self.nonfinite_steps += steps * ~result.finite
        self._rate.saw(result)
        self.steps += steps

    @property
    def micro_batch(self) -> int | None:
        return self._cut.max_rows

    @property
    def graphs(self) -> tuple[fx.GraphModule, ...]:
        """The whole step as torch.fx graphs, one per batch shape and kind of step so far; none without `compile`."""
        return () if self._graphs is None else tuple(self._graphs.graphs)

    @property
    def eager_because(self) -> str:
        """Why the step runs eagerly although `compile` asks for a graph; "" where it has one, or may yet have one."""
        return self._untraced

    @property
    def label_lr(self) -> float | None:
        """eta: as it was given, or what the last step took; None before the first step takes the default."""
        return self._rate.now

    @label_lr.setter
    def label_lr(self, rate: float | None) -> None:
        step, self._rate = self._rate.step, LabelRate(rate, None, self.loss, self._ranks, self.own_rows)
        self._rate.step = step

    @property
    def labels(self) -> Any:
        """The loss: of label families another name."""
        return self.loss

    def _graph_step(self, given: Given) -> StepResult:
        network, plan, rates, train, meta, weight = given
        gathers = self._ranks.size > 1 and not self.own_rows and isinstance(self.loss, Labels) and self.loss.by_row
        refuse_graph(plan, self.on_grad, whole=fits(train, meta, self.micro_batch), gathers=gathers)
        if self._graphs is None or self._graphs.network is not network:
            self._graphs = GraphStep(
                network,
                self.loss,
                self.optimizer,
                self._lookahead,
                plan,
                mode=self.compile,
                loss_optimizer=self.loss_optimizer,
                approx=self.approx,
                unique=self.unique_index,
                totals=self.totals,
                transform=self.transform,
                replan=self._choose_plan,
                ranks=self._ranks,
                own_rows=self.own_rows,
            )
        result = self._graphs(train, meta, *rates, weight, loss_moves=self._loss_moves())
        self._count(result)
        return result

    def _both_graphs(self) -> bool:
        """Whether a step that `micro_batch` lets do so holds the graphs of both batches at once."""
        eager = self.compile == "off" or bool(self._untraced)
        return not (eager and self.plan is not None and self.plan.leaves_graph)

    def _network_inputs(self, *batches: Any) -> tuple[Any, ...]:
        return network_inputs(self.transform, tensors_of(self.transform), *batches)

    def _current_plan(self, network: Network, train: tuple[Any, Tensor], meta: tuple[Any, Tensor]) -> TangentPlan:
        """The tangent's plan; made anew for other parameters, modes or precision, whose layers may not bear the old."""
        if network.sharded:
            self.plan = sharded_plan(self.plan)
            return self.plan
        device = train[1].device.type
        now = network, network.modes(), torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        current = self._planned in (None, now)  # None: the plan is of a state that was loaded
        if self.plan is not None and self.plan.tried and current:
            self._planned = now
            return self.plan
        (x,) = self._network_inputs(train[0])
        n, m = len(train[1]), len(meta[1])
        plan = self._choose_plan(x, n)
        if warning := check_pieces(network, x, n, m, self._cut):
            self._warn(warning, 3)
        self.plan, self._planned = plan, now
        if self._graphs is not None:
            self._graphs.plan = plan  # of its graphs to come: each has modes and precision in its key
        return plan

    def _choose_plan(self, x: Any, n: int) -> TangentPlan:
        """By network input of `n` rows and the model as it is."""
        network = self._networks(self.model, self.optimizer, self.logits_of)
        piece = take(x, slice(0, min(n, self.micro_batch or n)), n, self._cut.per_row)
        moved = list(self._moving(network).values())
        with by_double_vjp(self.lookahead_steps):
            plan = plan_tangent(Network(self.model, moved, self.logits_of), piece, self.tangent)
        plan = tried_by_all(plan, self._ranks)
        if plan.warning and plan.warning != self._inexact:
            self._inexact = plan.warning
            self._warn(plan.warning, 4)
        return plan

    def _moving(self, network: Network) -> Tensors:
        """The parameters that theta* moves."""
        return {name: network.params[name] for name in self.approx.moving(network)}

    def _warn(self, text: str, level: int) -> None:
        """Of the caller `level` frames up."""
        if self.on_warning is None:
            warnings.warn(text, stacklevel=level + 1)
        else:
            self.on_warning(text)

    def _loss_moves(self) -> bool:
        return self.approx.kind != "every" or self.steps % self.approx.number == 0

    def explain(self) -> str:
        """In words: how the tangent is made and why, which look-ahead, which label rate."""
        return explanation(
            self,
            lookahead=self._lookahead.choice,
            label_step=self._rate.step if self._rate.adapts else None,
            network=self._networks.last,
            graphs=self._graphs,
            untraced=self._untraced,
            watch=self._watch,
        )

    def __repr__(self) -> str:
        return "\n".join([headline(self), *(f"  {line}" for line in self.explain().splitlines())])

    def state_dict(self) -> dict[str, Any]:
        """The step's own state; model, labels and optimizer keep theirs."""
        return {
            "label_lr": self._rate.given,  # None follows gradients and schedule, also after a resume
            "label_step": self._rate.state_dict(),
            "plan": None if self.plan is None else asdict(self.plan),
            "steps": self.steps,
            "nonfinite_steps": int(self.nonfinite_steps),
        } | self._watch.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the step that gave `state`: same label rate, same kind of tangent."""
        if missing := self.state_dict().keys() - state.keys() - {"watched"}:
            raise ValueError(f"this is not the state of a MetaStep: it lacks {', '.join(sorted(missing))}")
        self.label_lr = state["label_lr"]
        self._rate.load_state_dict(state["label_step"])
        self.plan = None if state["plan"] is None else TangentPlan(**state["plan"])
        self._planned = None
        self._watch.load_state_dict(state)
        self.steps = state["steps"]
        self.nonfinite_steps.fill_(state["nonfinite_steps"])
