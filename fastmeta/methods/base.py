"""The seam between the trainer and the methods: a batch goes in, one optimizer step is taken, tensors come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastmeta.distributed import Ranks
from fastmeta.meta import Distance, InputTransform
from fastmeta.trajectory import Trajectory


@dataclass(frozen=True)
class NoOptions:
    """The config of a method without options of its own."""


@dataclass(frozen=True)
class Batch:
    """One step's data on the device; the meta pair is None for methods that use none."""

    x: Any  # what the context's transform takes
    index: Tensor  # (n,) int64 rows of the method's training set, none twice
    meta: tuple[Any, Tensor] | None  # x, (m,) int64


class Samples(Protocol):
    """What a method may look at when an epoch ends: network input as it is measured, without augmentation."""

    epoch: int  #: epochs done, from 1 on

    def train(self) -> Iterable[tuple[Any, Tensor]]:
        """(x, rows (n,) int64) of the method's training set, each row once, in order."""
        ...

    @property
    def clean_targets(self) -> Tensor:
        """y (M,) int64 of the whole clean set."""
        ...

    def clean_rows(self, rows: Tensor) -> Any:
        """x of the rows `rows` (m,) int64 of the clean set."""
        ...

    def clean(self, count: int) -> Iterable[tuple[Any, Tensor]]:
        """`count` batches (x, y (m,) int64) of the clean set, drawn by the run's seed and the epoch alone."""
        ...


class Outcome(NamedTuple):
    """Device tensors of one step; None where the method has no such thing."""

    logits: Tensor  # (n, C) of the training batch, before the step
    train_loss: Tensor  # 0-d
    finite: Tensor | None = None  # 0-d bool; False: a step that should not count. None: whether train_loss is finite
    meta_loss: Tensor | None = None  # 0-d
    entropy: Tensor | None = None  # (n,) of the labels
    label_grad_norm: Tensor | None = None  # 0-d
    skipped: Tensor | None = None  # 0-d, rows that the kernels left out
    counted: bool = False  # whether the step has added itself to the context's totals
    distance: Distance | None = None  # of an approximate step from the exact one, where that was looked at


class Labels(Protocol):
    """What the trainer reads of learned labels, which are a torch.nn.Module too."""

    targets: Tensor  # (N,) int64, given
    num_classes: int

    def __len__(self) -> int: ...

    def probs(self, index: Tensor) -> Tensor:
        """Label distributions (n, C) of the rows `index`."""
        ...


class Context(Protocol):
    """What a method may ask of the trainer in :meth:`Method.setup`. All tensors are on the device to train on."""

    targets: Tensor  #: (N,) int64, the given labels of the rows that this method trains on
    num_classes: int
    noise_rate: float | None  #: share of wrong labels, where the run itself has added noise; else None
    device: torch.device
    epochs: int
    steps_per_epoch: int
    steps: int  #: of the whole run, whose last epoch may be cut short
    batch_size: int  #: rows of a batch, of this rank
    input_shape: tuple[int, ...] | None  #: of one sample as a model takes it; None where that is no tensor
    transform: InputTransform  #: makes network input of a batch's x; for :class:`fastmeta.MetaStep`
    totals: Any  #: :class:`fastmeta.meta.Totals`, for a step that counts itself inside of its graph
    config: Any  #: the run's whole resolved :class:`fastmeta.TrainConfig`, to read
    ranks: Ranks  #: the processes that train the model together; of each, `targets` and batches are its own rows alone

    def network_input(self, x: Any) -> Any:
        """What a model takes, of `Batch.x` or of the x of `Batch.meta`."""
        ...

    def fixed_samples(self) -> Iterable[tuple[Any, Tensor]] | None:
        """(network input, rows (n,) int64) of this method's training rows, each once, in order; None where they are
        augmented, and so others in each step."""
        ...

    def model(self, name: str = "model") -> nn.Module:
        """A network as the config names it. "model" is the run's; any other name has initial weights of its own."""
        ...

    def optimizer(self, params: Iterable[Tensor], name: str = "optimizer") -> torch.optim.Optimizer:
        """The optimizer that the config names, over `params`; the trainer sets its learning rate by the schedule."""
        ...

    def teacher(self, path: str | Path, model: nn.Module | None = None) -> nn.Module:
        """The trained model of a finished run, frozen and in evaluation mode; see :func:`fastmeta.load_run`."""
        ...

    def learned_labels(self, path: str | Path) -> Labels:
        """The learned labels of a finished run on the same training rows with the same given labels."""
        ...

    def trajectory(self, path: str | Path) -> Trajectory:
        """How labels moved in a run, or in the folds of one, for this method's training rows in their order."""
        ...


class Method(ABC):
    """One way to train, found by its name or as ``package.module:Class``.

    The trainer makes it with its `Config`, calls :meth:`setup` once, then :meth:`step` for each batch. Models and
    optimizers that it gets from the context are saved and resumed; whatever else its steps move, it names in
    :meth:`stateful`.
    """

    #: a frozen dataclass: the table [method] of a config file, and the flags --method.NAME
    Config: ClassVar[type] = NoOptions
    #: does :meth:`step` want a batch of clean samples? Of the class, or set in :meth:`setup`
    uses_meta_batch: bool = False
    #: does it learn the labels of the training set? Then `labels` holds them, and they are a result of the run
    learns_labels: ClassVar[bool] = False
    #: which of the trainer's options it follows, of compile, approx, micro_batch, ema, mixup, optim.warmup,
    #: trajectory_every, labels.update and labels.canaries; a run with another is refused. With one of the last three
    #: `labels` are those of fastmeta, and with canaries :meth:`hold_labels` is there. ranks: whether it trains on
    #: several, each with training rows of its own, and reduces by `Context.ranks` what is of all rows
    supports: ClassVar[frozenset[str]] = frozenset()
    #: why not, where it does not train on several; a clause for the error
    not_on_ranks: ClassVar[str] = "what it knows of the training set is of all its rows"
    #: options that are paths of runs, which the context seals: a run that goes on may find them elsewhere
    paths: ClassVar[tuple[str, ...]] = ()
    #: data.meta_fraction where a run leaves it open; 0 for a method that uses no clean rows and trains on all others
    meta_fraction: ClassVar[float] = 0.2
    #: labels.update where a run leaves it open
    default_update: ClassVar[Literal["exact", "epoch", "posterior", "none"]] = "exact"
    #: the learned labels, once :meth:`setup` has made them
    labels: Any = None

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        self.warnings: list[str] = []  # of the steps so far, for the trainer to take away

    @abstractmethod
    def setup(self, context: Context) -> None:
        """Make models, optimizers and everything else that :meth:`step` needs."""

    @abstractmethod
    def step(self, batch: Batch) -> Outcome:
        """One optimizer step. Nothing here should wait for the device."""

    def skip_warm_up(self) -> None:  # noqa: B027 (nothing to skip by default)
        """The next steps are as in most of the run, whose cost is about to be measured."""

    def end_epoch(self, samples: Samples) -> None:  # noqa: B027 (nothing to do by default)
        """Behind the last step of each epoch, before anything is measured or saved."""

    def hold_labels(self) -> None:
        """From here on labels stay as they are: called once at most, behind an epoch or before the first step."""
        raise NotImplementedError(f"{type(self).__name__} has no hold_labels(), which labels.canaries needs")

    @property
    def steps_together(self) -> int:
        """Most steps that the next call takes: of more than one by :meth:`several_steps`, if the epoch has as many."""
        return 1

    def several_steps(self, batches: Sequence[Batch]) -> Outcome:
        """An optimizer step on each batch, at one learning rate; of the rows of all batches in their order."""
        raise NotImplementedError(f"{type(self).__name__} takes its steps one by one")

    @abstractmethod
    def predictor(self) -> nn.Module:
        """The model that is evaluated, and saved as the run's; built as the config's model is."""

    def stateful(self) -> Mapping[str, Any]:
        """What the steps move beside models and optimizers of the context: objects with state_dict, load_state_dict.

        A state_dict holds tensors, arrays, numbers, texts, random generators, and lists and dicts of these.
        """
        return {}

    def figures(self) -> Mapping[str, Any]:
        """Numbers of this method's own, asked for at the end of each epoch; None for what is unknown."""
        return {}

    def explain(self) -> str:
        """One or more lines for people: what this method does to the labels here."""
        return "labels: learned" if self.learns_labels else "labels: fixed as given"

    @classmethod  # noqa: B027 (nothing to check by default)
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        """Raise a ValueError where a run's config does not fit this method; C is None before the data are there."""

    @classmethod
    def uses_clean(cls, options: Any) -> bool:
        """Whether a run with this `Config` looks at the clean set at all, in its steps or between epochs."""
        return cls.uses_meta_batch or cls.learns_labels

    @classmethod
    def default_target_prob(cls, usual: float) -> float | None:
        """labels.target_prob where the config leaves it open, `usual` for its data; None for a method without."""
        return usual if cls.learns_labels else None

    @classmethod
    def default_lookahead(cls, usual: str) -> str:
        """labels.lookahead where the config leaves it open, `usual` for its optimizer: sgd, or a rate as text."""
        return usual

    @classmethod
    def default_label_lr(cls, lookahead_lr: float, batch_size: int, visits: int, num_classes: int) -> float | None:
        """labels.label_lr where the config leaves it and labels.label_step open; None for a method without."""
        return None

    @classmethod
    def default_label_step(cls) -> float | None:
        """labels.label_step where there is no labels.label_lr, by default either; None for a method without."""
        return None

    @classmethod
    def default_eta(cls) -> float | None:
        """labels.eta where the config leaves it open; None for a method without."""
        return None
