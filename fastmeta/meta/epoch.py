"""Labels that move once an epoch: by how a few steps on clean rows, taken by a copy of the model, move the logits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastmeta._numbers import as_real, as_whole, shown
from fastmeta.distributed import Ranks
from fastmeta.functional.call import plain
from fastmeta.functional.evaluation import (
    LEAST_ROWS,
    batch_statistics,
    evaluation,
    recurrent_backward,
    training_batch_norms,
)
from fastmeta.functional.finite import all_finite
from fastmeta.functional.network import Network, Tensors, functional_module, recorded
from fastmeta.functional.optimizers import step_along
from fastmeta.functional.state import State
from fastmeta.functional.turns import TURN
from fastmeta.losses import EpochMove, LearnableLoss, Move
from fastmeta.meta.algorithm import meta_gradient
from fastmeta.meta.demands import check_loss_optimizer, check_own_rows, check_parameters, learned_by
from fastmeta.meta.gradient import check_loss, check_meta, check_train
from fastmeta.meta.inputs import InputTransform, network_inputs, tensors_of
from fastmeta.meta.meta_batch import gradient_at
from fastmeta.meta.micro import Cut, check_logits

#: forwards of one row that a forward with its backward costs
_WITH_BACKWARD = 3


@dataclass
class EpochResult:
    """What :meth:`EpochLookahead.update` tells, of all ranks together."""

    finite: bool  #: False: a clean step or the move was not finite, and nothing has moved
    meta_loss: list[float]  #: mean clean loss at each of the K steps, before it
    change: float  #: mean over rows of max_k |dz_ik|, dz centred: the labels move by eta times it
    alignment: float  #: mean of -<v_i, dz_i>: positive where the training loss pulls with the clean set
    rows: int  #: train rows that were looked at
    skipped: int  #: of these, rows with logits that are not finite, which did not move
    clean_rows: int  #: in all K steps
    seconds: float

    @property
    def row_forwards(self) -> int:
        """The cost, in forwards of one row: 2 for each train row, 3 for each clean row with its backward."""
        return 2 * self.rows + _WITH_BACKWARD * self.clean_rows


@dataclass
class Change:
    """A batch of train rows, at theta and at the end of the path; detached."""

    index: Tensor  # (n,) int64
    x: Any  # network input
    logits: Tensor  # (n, C) z at theta
    change: Tensor  # (n, C) dz, how far the path moves them


class EpochLookahead:
    """Labels are held for an epoch, and move at its end along a look-ahead of K steps on clean rows alone.

        theta_0 = theta,   theta_{k+1} = theta_k - SGD step of L_clean(theta_k)       k < K, on a copy
        dz_i    = f(x_i; theta_K) - f(x_i; theta)                                     logits of every train row
        label logits        l_i     <- l_i + eta dz_i                                 (centred)
        class smoothing     alpha_c <- alpha_c + eta mean_{y_i = c} (mean_{k != c} dz_ik - dz_ic)
        any other loss      phi     <- optimizer step along (1/N) d/dphi sum_i <v_i(phi), dz_i>

    To first order dz_i = -sum_k lambda_k J_i g_k: what stands in an exact step as -lambda u, summed along the path. An
    epoch's training is plain, so that this costs two forwards of each train row and K clean steps an epoch; eta depends
    neither on lambda nor on n. docs/epoch-lookahead.md has the derivation, and what was measured::

        lookahead = fastmeta.EpochLookahead(model, labels, steps=10, lr=0.02)
        for epoch in range(epochs):
            for x, index in batches:
                loss = labels(model(x), index).mean()
                optimizer.zero_grad(), loss.backward(), optimizer.step()
            if warm_up <= epoch < epochs - 1:
                lookahead.update(batches, clean_batches)

    The model runs in evaluation mode here: no dropout, and running statistics are used as they are. Parameters,
    buffers, ``.grad``, modes and random generators stand as before; only the loss moves. A call keeps nothing for the
    next one.

    Args:
        model: any nn.Module with logits (n, C), as :class:`fastmeta.MetaStep` takes it.
        loss: InstanceLabels, ClassLabels or any other :class:`fastmeta.LearnableLoss`.
        steps: K >= 1.
        lr: rate of the clean steps; an attribute that may change between epochs, as schedules do.
        momentum: of the clean steps, which start without any.
        eta: the rate of label families; None takes ``loss.default_eta``. Other losses have `loss_optimizer`.
        loss_optimizer: of a loss's parameters; label families take none.
        params: the parameters that the copy moves; None takes all that require a gradient.
        logits_of: picks the logits from the model's output; default the output itself, else its ``.logits``.
        transform: makes network input of x and x_meta: see :class:`fastmeta.meta.InputTransform`.
        micro_batch: the most clean rows whose graph is held at once; None holds a batch's.
        batch_statistics: in clean steps of 8 rows and more, BatchNorm layers that train take the statistics of the
            batch, as they do in training, and the copy's running ones follow. With running ones in the steps a network
            may be stiff: steps of the same rate may ruin it.
        per_row: which tensors of an x_meta that is no tensor `micro_batch` cuts.
        process_group: data parallelism: each rank with rows and clean batches of its own, or with the same clean ones.
            Clean gradients are averaged, and every rank's labels move by every rank's rows.
        own_rows: with it, each rank's loss holds rows of the training set that no other rank has: instance labels then
            move on their rank, and nothing of them is sent.

    Raises:
        TypeError, ValueError: arguments that do not fit each other, named at once.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LearnableLoss,
        *,
        steps: int = 10,
        lr: float = 0.02,
        momentum: float = 0.9,
        eta: float | None = None,
        loss_optimizer: torch.optim.Optimizer | None = None,
        params: Iterable[Tensor] | None = None,
        logits_of: Callable[[Any], Tensor] | None = None,
        transform: InputTransform | None = None,
        micro_batch: int | None = None,
        per_row: Any = None,
        batch_statistics: bool = False,
        process_group: dist.ProcessGroup | None = None,
        own_rows: bool = False,
    ) -> None:
        functional_module(model)  # raises for what is none
        check_loss(loss)
        check_loss_optimizer(loss, loss_optimizer, model)
        if eta is not None and not loss.moves_itself:
            raise TypeError(
                f"eta is the rate of label families; {type(loss).__name__} moves by loss_optimizer, which has its own"
            )
        self.model, self.loss, self.loss_optimizer = model, loss, loss_optimizer
        self.steps = _whole("steps", steps)
        self.lr, self.momentum = _real("lr", lr), _real("momentum", momentum, below=1)
        self.eta = loss.default_eta if eta is None else _real("eta", eta)
        self.params = None if params is None else list(params)
        check_parameters(functional_module(model), torch.optim.SGD(self.params or model.parameters(), lr=0.0))
        self.logits_of, self.transform = logits_of, transform
        self._cut = Cut(None if micro_batch is None else _whole("micro_batch", micro_batch), per_row, per_row)
        self.batch_statistics = batch_statistics
        self._ranks, self.own_rows = Ranks(process_group), own_rows
        check_own_rows(loss, self._ranks, own_rows)

    def update(self, train: Iterable[Any], meta: Iterable[Any]) -> EpochResult:
        """Move the loss once.

        Args:
            train: batches ``(x, index)`` of the training set, best each row once and as it is, without augmentation.
                A single batch may stand for itself.
            meta: batches ``(x_meta, y_meta)`` of clean rows, one for each step; begun anew where it ends. A single
                batch serves all steps.

        Raises ValueError for batches that do not fit. An error, of the iterables' too, leaves the loss as it was; but
        rows of a :class:`fastmeta.LabelTable` of your own move as they come.
        """
        began = time.perf_counter()
        learned = learned_by(self.loss, self.loss_optimizer)
        eta = self.eta if self.loss.moves_itself else None
        how = Move(self._ranks, eta, optimizer=self.loss_optimizer, own_rows=self.own_rows)
        move = self.loss.over_epoch(how, learned)
        device = next(self.model.parameters()).device
        sums, rows = torch.zeros(3, dtype=torch.float64, device=device), 0
        with self.ahead(meta) as path:
            if path.finite:
                for batch in self._changes(path, train):
                    rows += len(batch.index)
                    sums += self._add(move, batch)
            total = self._ranks.sum(torch.tensor([rows, path.rows], device=device))
            rows, clean_rows = total.tolist()
            finite = path.finite
            if finite:
                finite = bool(move.finish(rows))
        change, alignment, skipped = self._ranks.sum(sums).tolist()
        seen = max(rows - int(skipped), 1)
        return EpochResult(
            finite=finite,
            meta_loss=path.losses,
            change=change / seen,
            alignment=alignment / seen,
            rows=rows,
            skipped=int(skipped),
            clean_rows=clean_rows,
            seconds=time.perf_counter() - began,
        )

    def changes(self, train: Iterable[Any], meta: Iterable[Any]) -> Iterator[Change]:
        """What :meth:`update` moves the loss by, batch by batch, for measuring or a move of your own. Nothing moves."""
        with self.ahead(meta) as path:
            yield from self._changes(path, train)

    @contextmanager
    def ahead(self, meta: Iterable[Any]) -> Iterator[CleanPath]:
        """The copy behind its K clean steps, to ask for logits. The model is in evaluation mode meanwhile."""
        model = functional_module(self.model)
        normed = training_batch_norms(model) if self.batch_statistics else {}
        with evaluation(model):
            yield self._descend(meta, normed)

    def _descend(self, meta: Iterable[Any], normed: dict[str, nn.Module]) -> CleanPath:
        network = Network(self.model, self.params, self.logits_of)
        state, ahead = network.state(), {name: p.detach().clone() for name, p in network.params.items()}
        optimizer = torch.optim.SGD(ahead.values(), lr=self.lr, momentum=self.momentum)
        statistics = [name for name in state if name.rpartition(".")[0] in normed]
        losses, rows = [], 0
        for _, pair in zip(range(self.steps), _endless(meta), strict=False):
            x, y = check_meta(self.loss, pair)
            x = self._input(x)
            layers = normed.values() if len(y) >= LEAST_ROWS else ()
            moved = state.clone() if layers else state
            at = partial(gradient_at, network, moved, ahead, list(ahead), moves=bool(layers))
            with (
                _turn(self._ranks),
                recorded(),
                recurrent_backward(network.model, y.device),
                batch_statistics(layers),
            ):
                random = network.random_state(y.device)
                try:
                    loss, g = meta_gradient(at, (x, y), self._cut)
                finally:
                    random.restore()
            state.update({name: moved[name] for name in statistics if layers})  # and no other trace of the pass
            mean = self._ranks.mean([loss, *g.values()])
            step_along(optimizer, {name: ahead[name] for name in g}, dict(zip(g, mean[1:], strict=True)))
            rows += len(y)
            losses.append(mean[0])
        return CleanPath(network, state, ahead, statistics, torch.stack(losses), rows, self._ranks, self._input)

    def _changes(self, path: CleanPath, train: Iterable[Any]) -> Iterator[Change]:
        network = path.network
        for pair in _batches(train, "train"):
            x, index = check_train(self.loss, pair)
            x = self._input(x)
            with _turn(self._ranks), recorded(), torch.no_grad():
                random = network.random_state(index.device)
                try:
                    logits = network(network.params, network.state(), x)
                    random.restore()
                    ahead = network(path.ahead, path.state.clone(), x)
                finally:
                    random.restore()
            check_logits(logits, len(index), self.loss.num_classes)
            yield Change(index, x, logits, ahead - logits)

    def _add(self, move: EpochMove, batch: Change) -> Tensor:
        """The batch goes into the move; sums over its rows of max |dz|, of the alignment, and of those skipped."""
        index, logits, change = batch.index, batch.logits, batch.change
        sound = (logits + change).isfinite().all(1)
        skipped = (~sound).sum()
        logits, change = (torch.where(sound[:, None], t, 0.0) for t in (logits, change))
        alignment = torch.where(sound, move.add(index, batch.x, logits, change, sound), 0.0)
        centred = change - change.mean(1, keepdim=True)
        return torch.stack([t.double() for t in (centred.abs().amax(1).sum(), alignment.sum(), skipped)])

    def _input(self, x: Any) -> Any:
        (made,) = network_inputs(self.transform, tensors_of(self.transform), plain(self.model, x))
        return made

    def explain(self) -> str:
        """In words: what moves, by how much, along which path."""
        how = f"eta {self.eta:g}" if self.loss.moves_itself else f"moved by {type(self.loss_optimizer).__name__}"
        return (
            f"{self.loss.title()}, once an epoch, {how}\n"
            f"look-ahead: {self.steps} clean steps of SGD at rate {self.lr:g}, momentum {self.momentum:g}, on a copy"
        )

    def __repr__(self) -> str:
        lines = [f"EpochLookahead({type(self.model).__name__})", *(f"  {line}" for line in self.explain().splitlines())]
        return "\n".join(lines)


class CleanPath:
    """Where the clean steps have led: the model as a function of the copy's weights."""

    def __init__(
        self,
        network: Network,
        state: State,
        ahead: Tensors,
        statistics: list[str],
        losses: Tensor,
        rows: int,
        ranks: Ranks,
        prepare: Callable[[Any], Any],
    ) -> None:
        self.network, self.state, self.ahead, self.rows = network, state, ahead, rows
        self.statistics = statistics  # names in `state` of what the steps have moved
        self.finite = bool(ranks.all(all_finite([losses, *ahead.values()])))
        self.losses: list[float] = losses.tolist()
        self._ranks, self._prepare = ranks, prepare

    def take_first(self, ranks: Ranks) -> None:
        """Go on with the copy of the first rank, of which this one's may be off by rounding."""
        if ranks.size == 1:
            return
        values = ranks.of_first([*self.ahead.values(), *(self.state[name] for name in self.statistics)])
        count = len(self.ahead)
        self.ahead = dict(zip(self.ahead, values[:count], strict=True))
        self.state.update(dict(zip(self.statistics, values[count:], strict=True)))

    def logits(self, x: Any, device: torch.device) -> Tensor:
        """The copy's (n, C), without a graph; the random generators of `device` stand as before."""
        x = self._prepare(x)
        with _turn(self._ranks), recorded(), torch.no_grad():
            random = self.network.random_state(device)
            try:
                return self.network(self.ahead, self.state.clone(), x)
            finally:
                random.restore()


def _turn(ranks: Ranks) -> AbstractContextManager[Any]:
    """One thread at a time; ranks that are threads must not wait for each other."""
    return TURN if ranks.size == 1 else nullcontext()


def _is_batch(value: Any) -> bool:
    """(x, numbers): one batch, and no list of batches, whose second would be a pair."""
    return isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[1], Tensor) and value[1].ndim <= 1


def _batches(batches: Any, name: str) -> Iterable[Any]:
    if _is_batch(batches):
        return [batches]
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(f"{name} must be an iterable of batches, such as a DataLoader, got {type(batches).__name__}")
    return batches


def _endless(meta: Any) -> Iterator[Any]:
    """Batch after batch, from the front again where they end."""
    batches, count = _batches(meta, "meta"), 0
    while True:
        before = count
        for batch in batches:
            count += 1
            yield batch
        if count == before:
            raise ValueError(
                f"meta gave {count or 'no'} batch{'es' * (count > 1)} and no more, fewer than there are clean steps; "
                "give a list or a DataLoader, which can be begun anew, and no iterator"
            )


def _whole(name: str, value: Any) -> int:
    number = as_whole(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, got {shown(value)}")
    return number


def _real(name: str, value: Any, below: float = float("inf")) -> float:
    number = as_real(value)
    if number is None or not 0 <= number < below:
        want = "finite and >= 0" if below == float("inf") else f"in [0, {below:g})"
        raise ValueError(f"{name} must be {want}, got {shown(value)}")
    return number
