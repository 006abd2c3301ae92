"""The tables of a config: [optim], [labels] and [data]."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from fastmeta._numbers import as_real, as_whole
from fastmeta._text import shown
from fastmeta.data import LARGEST_RATE, InputError, at_least, positive, within
from fastmeta.training.values import check_types

#: of the table [labels], by labels.update
OPTIONS_OF = {
    "exact": (
        "target_prob",
        "label_lr",
        "label_step",
        "lookahead",
        "lookahead_steps",
        "tangent",
        "parametrisation",
        "label_momentum",
        "entropy_weight",
        "reset",
        "warmup_epochs",
    ),
    "epoch": ("target_prob", "steps", "clean_lr", "eta", "warmup_epochs"),
    "posterior": ("steps", "clean_lr", "clean_batch", "warmup_epochs", "every", "mix", "trust", "margin"),
    "none": ("target_prob", "parametrisation", "warmup_epochs"),
}
#: labels.label_lr of a run that tries how labels should move
SEARCH: Literal["search"] = "search"
MOST_THREADS = 1024
MOST_PIXELS = 4096


def own_options(update: str, beside: str) -> tuple[str, ...]:
    """Options that one of two updates has alone, so that they say which is meant."""
    return tuple(k for k in OPTIONS_OF[update] if k not in OPTIONS_OF[beside])


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer of the model, and its learning rate over the run."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD, or AdamW; labels are learned with a look-ahead of a fixed rate then."""
    lr: float | None = None
    """Learning rate at the start; by default 0.1 for sgd and 0.001 for adamw."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov's form of the momentum of sgd."""
    weight_decay: float | None = None
    """L2 penalty of sgd, decay of adamw, on every parameter."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Cosine to zero, or ×gamma at each milestone, or constant; by step, not by epoch."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where the schedule `step` falls, as fractions of the run."""
    gamma: float = 0.1
    """Factor of the schedule `step`."""
    warmup: int | None = None
    """Methods onehot and instance_labels: epochs over which the learning rate grows from zero, step by step; the
    schedule goes on below it. By default none."""

    def __post_init__(self) -> None:
        check_types(self, "optim.")
        positive("optim.lr", self.lr)
        within("optim.momentum", self.momentum, 0, 1, high_open=True)
        within("optim.weight_decay", self.weight_decay, 0, math.inf, high_open=True)
        if self.weight_decay:
            positive("optim.weight_decay", self.weight_decay)
        within("optim.gamma", self.gamma, 0, 1)
        at_least("optim.warmup", self.warmup, 1)
        for m in self.milestones:
            within("optim.milestones", m, 0, 1)
        for key in ("momentum", "nesterov"):
            value = getattr(self, key)
            if self.name == "adamw" and value != getattr(OptimConfig, key):
                raise InputError(f"optim.{key}={value} is about sgd, and optim.name is adamw; leave it out")
        if self.nesterov and not self.momentum:
            raise InputError("optim.nesterov needs a momentum above 0, got optim.momentum=0")


@dataclass(frozen=True)
class LabelConfig:
    """How labels start and move."""

    update: Literal["exact", "epoch", "posterior", "none"] | None = None
    """exact: in each step, by the meta-gradient of that step; epoch: at the end of each epoch, by how a few steps
    on clean samples move the logits, between plain steps; posterior: every few epochs, estimated anew from
    predictions of copies that a few clean steps have moved, and from how given labels err; none: labels stay as they
    start. By default posterior for instance labels, and exact for others, on the digits, and where an option of exact
    steps is given."""
    target_prob: float | None = None
    """Updates exact, epoch and none: probability of the given class at the start."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of a table of instance labels; bfloat16 takes half the memory, rounded stochastically."""
    store: str = "auto"
    """Where a table of instance labels lies: device; host, in memory that the device takes the rows of a step from;
    mmap:PATH, in a file, of which the rows that have moved take up disk. auto: the device where the table takes at
    most half of what is free there, else the host where that has three times the table free."""
    label_lr: float | Literal["search"] | None = None
    """Update exact: learning rate of the labels, constant; by default none, and labels.label_step says how far they
    move. search, with update epoch too: short trials say how far labels should move and how they should start, or that
    they should stay, and canaries choose."""
    search_budget: float | None = None
    """With labels.label_lr=search: what all trials may cost together, in runs as this one is without a search; by
    default 4."""
    label_step: float | None = None
    """Update exact: how far a visit moves a label at the highest learning rate, root mean square: logits of an instance
    label, by default 0.3; of a class label, how far a whole epoch does, by default 0.02."""
    lookahead: str | None = None
    """Look-ahead step: sgd (at the scheduled rate), optimizer (with momentum and weight decay), or a fixed rate.
    By default sgd for sgd and 0.1 for adamw."""
    lookahead_steps: int = 1
    """Update exact: training steps that the labels look ahead, K. With more than one they move once in K steps, those
    of all K batches by the exact gradient through the K steps."""
    tangent: Literal["auto", "reverse", "forward", "difference"] = "auto"
    """How the logit tangent is computed; auto goes by the model's layers."""
    parametrisation: Literal["softmax", "simplex"] = "softmax"
    """Update exact, instance labels: their parameters are logits of a softmax, or the probabilities themselves,
    projected onto the simplex."""
    label_momentum: float = 0.0
    """Update exact, instance labels as logits: momentum of their steps; a row's waits for its next visit."""
    entropy_weight: Literal["none", "1-H/logC", "exp(-H)", "H/logC"] = "none"
    """Update exact: weight of a sample in the training loss by the entropy H of its label, constant, with mean 1 in a
    batch."""
    reset: bool = False
    """Update exact: labels start anew in each epoch, to see what their memory is worth."""
    steps: int | None = None
    """Updates epoch and posterior: clean steps of a copy, by default 10 of data.meta_batch_size samples for epoch,
    and no more than cost what labels without them do; 30 for posterior."""
    clean_lr: float | None = None
    """Updates epoch and posterior: learning rate of the clean steps, by default 0.02; for epoch it follows the
    schedule."""
    clean_batch: int | None = None
    """Update posterior: most samples of a clean step; by default such that clean steps cost 0.8 of plain training."""
    eta: float | None = None
    """Update epoch: how far labels move, as a share of how far the clean steps move the logits.
    By default 0.3 for instance labels and 0.03 for class labels."""
    warmup_epochs: int | None = None
    """Epochs before labels move for the first time, in which the network is trained on the given ones, smoothed by
    0.1; by default a tenth of the run, and 0 where labels.label_lr is given."""
    every: int | None = None
    """Update posterior: epochs from one estimate to the next; by default a tenth of the run."""
    mix: float | None = None
    """Update posterior: share of the labels that is the prediction by the sample alone; by default 0.3."""
    trust: float | None = None
    """Update posterior: weight of the given labels beside the samples; by default by the accuracy on clean samples."""
    margin: float | None = None
    """Update posterior: how many times as probable as the given class another one must be to be read in its place;
    by default 2."""
    canaries: str = "auto"
    """Clean rows that are trained on like all others, some with a wrong label, to see what becomes of labels: auto, off
    or a number. auto takes some of 200 clean rows and more."""
    read: Literal["auto", "table", "network", "product"] = "auto"
    """What the labels that a run hands out are read off: table, the learned labels; network, its prediction for the
    training rows, of the copy behind finetune_steps where there is one; product of the two. auto takes the one that
    canaries find best, and the table without them."""

    def __post_init__(self) -> None:
        if (rate := as_real(self.lookahead)) is not None:
            object.__setattr__(self, "lookahead", repr(rate))
        if (count := as_whole(self.canaries)) is not None:
            object.__setattr__(self, "canaries", str(count))
        check_types(self, "labels.")
        if self.canaries not in ("auto", "off") and not re.fullmatch("[1-9][0-9]{0,8}", self.canaries):
            raise InputError(f"labels.canaries must be auto, off or a number from 1 on, got {shown(self.canaries)}")
        if self.store not in ("auto", "device", "host") and not re.fullmatch("mmap:.+", self.store, re.DOTALL):
            raise InputError(f"labels.store must be auto, device, host or mmap:PATH, got {shown(self.store)}")
        within("labels.target_prob", self.target_prob, 0, 1)
        positive("labels.label_lr", self.rate)
        if self.searches:
            self._check_search()
        positive("labels.label_step", self.label_step)
        positive("labels.search_budget", self.search_budget)
        if self.label_lr is not None and self.label_lr != SEARCH and self.label_step is not None:
            raise InputError(
                f"labels.label_lr={self.label_lr:g} is the rate itself, and labels.label_step={self.label_step:g} how "
                "far it moves a label; leave one out"
            )
        if self.label_step is not None and self.needs_rate:
            other = "parametrisation" if self.parametrisation == "simplex" else "label_momentum"
            raise InputError(
                f"labels.label_step={self.label_step:g} is about logits that move without momentum, and got "
                f"labels.{other}={getattr(self, other)}; take labels.label_lr"
            )
        at_least("labels.steps", self.steps, 1)
        at_least("labels.lookahead_steps", self.lookahead_steps, 1)
        positive("labels.clean_lr", self.clean_lr)
        positive("labels.eta", self.eta)
        within("labels.label_momentum", self.label_momentum, 0, 1, high_open=True)
        at_least("labels.warmup_epochs", self.warmup_epochs, 0)
        at_least("labels.clean_batch", self.clean_batch, 1)
        at_least("labels.every", self.every, 1)
        within("labels.mix", self.mix, 0, 1)
        within("labels.trust", self.trust, 0, math.inf, high_open=True)
        within("labels.margin", self.margin, 1, math.inf, high_open=True)
        if self.lookahead not in (None, "sgd", "optimizer"):
            try:
                rate = float(self.lookahead)
            except ValueError:
                rate = -1.0
            if not 0 < rate <= LARGEST_RATE:
                raise InputError(
                    f"labels.lookahead must be sgd, optimizer or a learning rate above 0, got {shown(self.lookahead)}"
                )

    def _check_search(self) -> None:
        """InputError for what does not go with a search."""
        for name in ("label_step", "eta"):
            if (value := getattr(self, name)) is not None:
                raise InputError(
                    f"labels.label_lr=search tries how far labels move, and labels.{name}={value:g} says it; leave one "
                    "out"
                )
        if self.update in ("posterior", "none"):
            what = "estimates labels anew" if self.update == "posterior" else "holds labels as they start"
            raise InputError(
                "labels.label_lr=search tries how far labels move from where they start, and "
                f"labels.update={self.update} {what}; leave it out, or take labels.update=exact or epoch"
            )
        if self.store.startswith("mmap:"):
            raise InputError(
                f"labels.label_lr=search trains several label tables, and labels.store={self.store} is one; search "
                "on a part of the data, and give the rate that it finds"
            )
        if self.canaries == "off":
            raise InputError("labels.label_lr=search is judged by canaries, and labels.canaries is off; leave that out")

    @property
    def searches(self) -> bool:
        """Whether trials say how labels move."""
        return self.label_lr == SEARCH

    @property
    def rate(self) -> float | None:
        """`label_lr` where it is a number."""
        return self.label_lr if isinstance(self.label_lr, float) else None

    @property
    def needs_rate(self) -> bool:
        """Whether exact steps of these labels go at a rate, labels.label_lr, and not by how far they go."""
        return self.parametrisation == "simplex" or self.label_momentum > 0

    @property
    def rate_name(self) -> str:
        """The option that says how far labels move."""
        if self.update != "exact":
            return "labels.eta"
        return "labels.label_lr" if self.label_step is None else "labels.label_step"

    @property
    def plain_epochs(self) -> int:
        """Epochs of plain steps before those that move labels; resolved."""
        return (self.warmup_epochs or 0) if self.update == "exact" else 0

    def moves_after(self, epoch: int, epochs: int) -> bool:
        """Whether labels that move between epochs do so behind number `epoch`, from 1 on, of `epochs`; resolved."""
        first = max(1, self.warmup_epochs or 0)
        if self.update == "posterior":  # behind the last one too, for the labels that are read
            return epoch == epochs or (epoch >= first and (epoch - first) % (self.every or 1) == 0)
        return first <= epoch < epochs

    @property
    def lookahead_choice(self) -> Any:
        """`lookahead` as :class:`fastmeta.MetaStep` wants it; resolved."""
        rate = self.lookahead_rate
        return self.lookahead if rate is None else rate

    @property
    def lookahead_rate(self) -> float | None:
        """The fixed rate of the look-ahead; None where it follows the optimizer."""
        return None if self.lookahead in (None, "sgd", "optimizer") else float(self.lookahead or 0)


@dataclass(frozen=True)
class DataConfig:
    """Batches, the clean set, augmentation."""

    batch_size: int | None = None
    """Training samples per step; a pass drops its partial last batch."""
    meta_batch_size: int | None = None
    """Clean samples per step; all of them if there are fewer."""
    meta_fraction: float | None = None
    """Share of each class held out as clean set where the data set brings none; by default 0.2, and 0 for replay. 0
    holds none out, and is for methods that use no clean rows."""
    meta_count: int | None = None
    """Number of rows held out as clean set, in place of a share; 0 holds none out, even where the digits bring some."""
    meta_balanced: bool | None = None
    """Whether as many rows of each class are held out, or as many as its share; by default with meta_count alone."""
    folds: int | None = None
    """Parts, of as many rows of each class, of which one is held out as clean set in place of a share."""
    fold: int | None = None
    """Which of them, from 0 on; by default 0."""
    meta_is_train: bool = False
    """An experiment: the training rows, with their labels as given, are the clean set too; what is held out as one, or
    brought, is left aside. Labels learn little from rows that they are of."""
    val_fraction: float | None = None
    """Share of each class held out, beside the clean set, to validate on; by default none. Noise leaves it be."""
    split_seed: int | None = None
    """Of what is held out, of the digits' parts and of the choice of canaries; by default 0 whatever the run's seed."""
    augment: Literal["none", "crop", "crop_flip"] | None = None
    """Random crops from the padded image, and horizontal flips; by default crop_flip for colour images, else none."""
    padding: int = 4
    """Pixels around the image that is cropped."""
    pad_mode: Literal["zero", "reflect"] = "zero"
    """What stands in the padding."""
    mean: tuple[float, ...] = ()
    """Of each channel, taken off the pixels, as a share of 255; by default that of the training images."""
    std: tuple[float, ...] = ()
    """Of each channel, by which the rest is divided, as a share of 255; by default that of the training images."""
    given: str = "y_train"
    """Array of npz:PATH or npy:DIR with the labels to train on."""
    truth: str = "y_true"
    """Array of npz:PATH or npy:DIR with the right labels, for measuring alone."""
    label_column: str | None = None
    """Column of a table with the labels to train on; by default label, target, class or y."""
    truth_column: str | None = None
    """Column of a table with the right labels, for measuring alone, and for the clean and the test rows."""
    split_column: str | None = None
    """Column of a table that says train, meta or test of each row; by default all are train."""
    image_size: int | None = None
    """Image files: pixels to which the shorter side is scaled, and the middle cut out; without it all have one size."""
    skip_corrupt: bool = False
    """Image files: leave those out that cannot be read, and name them; without it they stop the run."""
    superclasses: str | None = None
    """JSON file with a superclass for each class, for superclass noise; those of CIFAR-100 are known."""
    root: str | None = None
    """Folder of the files of a torchvision set; by default ./data."""
    download: bool = False
    """Fetch the files of a torchvision set that are not there."""
    standardise: bool = True
    """Features alone: each number less its mean, over its deviation, of the training rows."""
    resident: Literal["auto", "yes", "no"] = "auto"
    """Whether samples lie in memory, and on the device. auto: image files, and arrays of npy:DIR, that would take more
    than a quarter of the free memory are read as they are needed, and what would take more than half of the device's
    stays on the host."""
    workers: int = 0
    """Processes that read samples ahead, of a data set that is not held in memory."""

    def __post_init__(self) -> None:
        check_types(self, "data.")
        at_least("data.batch_size", self.batch_size, 1)
        at_least("data.meta_batch_size", self.meta_batch_size, 1)
        at_least("data.padding", self.padding, 0)
        if len(self.mean) != len(self.std):
            raise InputError(
                "data.mean and data.std go together, a number for each channel, got "
                f"{len(self.mean)} and {len(self.std)}"
            )
        for mean, std in zip(self.mean, self.std, strict=True):
            within("data.mean", mean, 0, 1)
            positive("data.std", std)
            within("data.std", std, 0, 1)
        within("data.image_size", self.image_size, 1, MOST_PIXELS)
        within("data.workers", self.workers, 0, MOST_THREADS)
        within("data.meta_fraction", self.meta_fraction, 0, 1, high_open=True)
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise InputError(f"data.val_fraction must lie strictly between 0 and 1, got {self.val_fraction}")
        if self.meta_count == 1 or (self.meta_count or 0) < 0:
            raise InputError(f"data.meta_count must be 0 or at least 2, got {self.meta_count}")
        at_least("data.split_seed", self.split_seed, 0)
        at_least("data.folds", self.folds, 2)
        at_least("data.fold", self.fold, 0)
