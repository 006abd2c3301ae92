"""What a run is: one tree of frozen dataclasses, the same in Python, in TOML and as flags.

A value of None ("auto" in the help) goes by the data set: `presets.py` fills it in, and the resolved tree is what a run
directory records.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastmeta._text import shown
from fastmeta._trust import Untrusted
from fastmeta.data import InputError, at_least, positive, within
from fastmeta.data.noise import parse as parse_noise
from fastmeta.data.sources import parse as parse_dataset
from fastmeta.training.mapping import nested, options_of
from fastmeta.training.option_names import names_of
from fastmeta.training.sections import MOST_THREADS, OPTIONS_OF, DataConfig, LabelConfig, OptimConfig, own_options
from fastmeta.training.toml_file import read_toml
from fastmeta.training.values import check_types, one_of

if TYPE_CHECKING:
    from fastmeta.methods import Method

#: before the class of a module that was given in Python
CUSTOM = "custom:"
#: what may be ``package.module:name``
NAMES_OF_CODE = ("model", "method", "dataset", "noise")
BASELINES = ("noisy", "union", "clean")
#: steps from one look at the exact step to the next, by default
WATCH_EVERY = 200
#: below it, the list of the files of a large state would be larger than one of them
LEAST_SHARD_MB = 0.1


@dataclass(frozen=True)
class TrainConfig:
    """One run: a data set, a method that decides the labels, a model, a schedule, and baselines beside it."""

    dataset: str = "digits"
    """digits; npz:PATH, a file with x_train (uint8 images, NHWC, or float features of any shape) and y_train, optional
    are x_meta and y_meta, or meta_index; x_test and y_test; y_true; class_names; npy:DIR, a folder of the same arrays,
    one in a file, read as they are needed where they do not fit into memory; csv:PATH or parquet:PATH, a table with a
    column of labels; folder:PATH, image files in a folder per class, below train/, test/ and meta/;
    torchvision:NAME, such as FashionMNIST, from files in data.root; cifar10, cifar100; or package.module:factory."""
    noise: str | None = None
    """Label noise to add: none; uniform:RATE, any class; uniform_exact:RATE, exactly so many, another class;
    uniform_other:RATE, another class; class:RATE, every second class to the one after it; pair:RATE, every class to the
    one after it; permute:RATE, every class to one other at random; superclass:RATE, to the next of its superclass;
    instance:RATE, as the sample looks; file:PATH, the labels of a file, file:PATH:NAME of several in one; or your own
    as package.module:function:RATE. By default uniform:0.8 for the digits and none for all else."""
    method: str = "instance_labels"
    """How a batch trains, see docs/methods.md: instance_labels, class_labels,
    onehot, label_smoothing, confidence_penalty, focal,
    elr, sop, coteaching, data_parameters, mentornet, distill, replay,
    l2rw, mwnet, mlc, emlc,
    or your own as package.module:Class."""
    options: Any = field(default=None, metadata={"flags": "method"})
    """What the method's own Config holds: the table [method] of a file, flags --method.NAME."""
    model: str | None = None
    """resnet18, resnet20, resnet32, vgg16_bn, alexnet, wrn28_10, small_conv, vit_tiny, mlp,
    torchvision:NAME, timm:NAME, or your own as package.module:factory."""
    epochs: int | None = None
    """Passes over the training set."""
    max_steps: int | None = None
    """Training steps in place of passes: the last pass is cut short. With epochs too, the run ends by what comes
    first; schedules reach to that end."""
    seed: int = 0
    """Of the split, the noise, the initial weights and the order of the batches."""
    out: str | None = None
    """Run directory, new or empty; by default the next free runs/DATASET-METHOD-seedN."""
    baselines: str | None = None
    """Runs beside it with fixed labels and the same schedule: all, none, or some of noisy,union,clean.
    By default all for the digits and none for other data."""
    finetune_steps: int = 0
    """Steps on the clean samples alone that a copy of the model takes at the end, in evaluation mode; what the copy
    reaches is told beside the model. So do the baselines noisy and union."""
    finetune_lr: float | None = None
    """Learning rate of these steps, constant, of sgd with momentum 0.9; by default 0.02."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32 in full; tf32 rounds the factors of float32 products on CUDA and is fp32 on a CPU;
    bf16 runs the network under autocast. Weights, labels and label gradient are fp32 in all."""
    compile: Literal["off", "trace", "full"] = "off"
    """Steps that learn labels: off runs them as written, trace as one graph without doubled work,
    full compiles that graph by inductor (a minute or more, kept on disk)."""
    approx: str = "none"
    """Cheaper, inexact steps: none; delayed (the model moves by the labels of before);
    every:K (labels move on one step in K); last:L (look-ahead through the last L layers alone);
    difference (of logits, in place of a derivative)."""
    watch_every: int | None = None
    """With inexact steps: how many from one look at the exact step, which is computed beside it, to the next; 0 for
    none. By default 200, and K times as many for approx=every:K, which costs at most 2%."""
    micro_batch: int | None = None
    """Most samples whose graphs are held at once, train and clean, for batches that do not fit. By default all.
    The same steps for one more forward, but BatchNorm takes the statistics of pieces where a batch is larger."""
    threads: int | None = None
    """CPU threads; by default 1 for the digits, whose network is too small to share out, else torch's own choice."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints, which are taken at the end of an epoch, and within one that takes longer than
    half a minute."""
    max_shard_mb: float | None = None
    """Most MB (10^6 bytes) of a file of weights, labels or state, from 0.1 on: what is larger is divided among several.
    By default each is one file."""
    ema: float | None = None
    """Methods onehot and instance_labels: decay of a moving average of the weights, such as 0.99, which is the run's
    model then; the test accuracy without it is told beside. By default none."""
    mixup: float | None = None
    """Methods onehot and instance_labels (updates posterior and epoch): train on mixtures of pairs of samples and of
    their labels, in shares drawn from Beta(mixup, mixup). By default none."""
    trajectory_every: int | None = None
    """Methods instance_labels and class_labels: keep how labels move, see docs/folds.md: a snapshot of instance labels
    every so many epochs, class labels in each step. By default none."""
    force: bool = False
    """Hand out learned labels even where canaries say that they are worse than the given ones."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        check_types(self, "")
        parse_dataset(self.dataset)
        if self.noise is not None:
            parse_noise(self.noise)
        at_least("epochs", self.epochs, 1)
        at_least("max_steps", self.max_steps, 1)
        at_least("seed", self.seed, 0)
        # some OpenMP runtimes crash on what they cannot start
        within("threads", self.threads, 1, MOST_THREADS)
        at_least("micro_batch", self.micro_batch, 1)
        at_least("watch_every", self.watch_every, 0)
        within("checkpoint_seconds", self.checkpoint_seconds, 0, math.inf)
        within("max_shard_mb", self.max_shard_mb, LEAST_SHARD_MB, math.inf, high_open=True)
        at_least("finetune_steps", self.finetune_steps, 0)
        at_least("trajectory_every", self.trajectory_every, 1)
        positive("finetune_lr", self.finetune_lr)
        positive("mixup", self.mixup)
        within("ema", self.ema, 0, 1, high_open=True)
        for name, value in (("model", self.model), ("out", self.out)):
            if value == "":
                raise InputError(f"{name} is empty; leave it out for the default")
        if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", self.device):
            raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {shown(self.device)}")
        if self.optim.name != "sgd" and self.labels.lookahead in ("sgd", "optimizer"):
            raise InputError(
                f"labels.lookahead={self.labels.lookahead} follows an sgd, and optim.name is {self.optim.name}; leave "
                "it out, or give the rate of the look-ahead"
            )
        self._check_method()
        self._check_label_options()
        self.baseline_names()

    def _check_label_options(self) -> None:
        """Those of the other kind of update are refused, not ignored."""
        if isinstance(self.method, Untrusted) and self.labels.update is None:
            return  # what it takes by default is its own to say
        update = self.label_update
        about: dict[str, list[str]] = {}
        for other, keys in OPTIONS_OF.items():
            for key in keys:
                about.setdefault(key, []).append(other)
        for key, others in about.items():
            value = getattr(self.labels, key)
            if key == "label_lr" and self.labels.searches:
                others = [*others, "epoch"]
            if update not in others and value != getattr(LabelConfig, key):
                raise InputError(
                    f"labels.{key}={value} is about labels.update={' and '.join(others)}, and labels.update is "
                    f"{update}; leave it out{'' if self.labels.update else ', or take one of them'}"
                )

    def _check_method(self) -> None:
        """The method's own options, and the trainer's about its steps. A method of a file that is not trusted waits."""
        # here and not at the top: the registry of methods imports torch
        from fastmeta.meta.approximation import Approximation
        from fastmeta.methods import METHODS

        try:
            Approximation.parse(self.approx_choice)
        except ValueError:
            raise InputError(
                f"approx must be none, delayed, every:K, last:L or difference with K, L >= 1, got {shown(self.approx)}"
            ) from None
        if ":" not in self.method:
            one_of("method", self.method, tuple(METHODS))
        if isinstance(self.method, Untrusted) and self.method not in METHODS:
            return
        method = self.method_class()
        known = names_of(TrainConfig)
        object.__setattr__(self, "options", options_of(method.Config, self.options, self.method, known))
        learning = "steps that learn labels"
        about = {"compile": ("off", learning), "approx": ("none", learning), "micro_batch": (None, "steps in pieces")}
        about |= {"ema": (None, "an average of weights"), "mixup": (None, "mixtures of samples")}
        about |= {"optim.warmup": (None, "a learning rate that grows"), "trajectory_every": (None, "labels that move")}
        for name, (without, steps) in about.items():
            value = attrgetter(name)(self)
            if value != without and name not in method.supports:
                raise InputError(
                    f"{name}={value} is about {steps}, and method={self.method} takes none; "
                    f"leave it {'out' if without is None else f'at {without}'}"
                )
        if self.watch_every and not self.is_inexact:
            raise InputError(
                f"watch_every={self.watch_every} looks how far inexact steps are from exact ones, and approx is none; "
                "leave it out, or take an approx"
            )
        if self.labels.update not in (None, "exact") and "labels.update" not in method.supports:
            raise InputError(
                f"labels.update={self.labels.update} is about methods whose labels move, and method={self.method} has "
                "none; leave it out"
            )
        of_updates = "parametrisation", "label_momentum", "entropy_weight", "reset", "warmup_epochs", "lookahead_steps"
        for name in of_updates:
            value = getattr(self.labels, name)
            if value and value != getattr(LabelConfig, name) and "labels.update" not in method.supports:
                raise InputError(
                    f"labels.{name}={value} is about methods whose labels move, and method={self.method} has none; "
                    "leave it out"
                )
        if self.labels.store not in ("auto", "device") and "labels.store" not in method.supports:
            raise InputError(
                f"labels.store={self.labels.store} is about tables of instance labels, and method={self.method} has "
                "none; leave it out"
            )
        if self.labels.canaries not in ("auto", "off") and not self.can_have_canaries:
            raise InputError(
                f"labels.canaries={self.labels.canaries} is about labels that are learned, and method={self.method} "
                "has none that are kept by them; leave it out"
            )
        if self.labels.searches and not self.can_have_canaries:
            raise InputError(
                f"labels.label_lr=search is judged by canaries, and method={self.method} has no labels that they keep; "
                "leave it out"
            )
        if self.labels.read != "auto" and not method.learns_labels:
            raise InputError(
                f"labels.read={self.labels.read} is about labels that are learned, and method={self.method} has none; "
                "leave it out"
            )
        try:
            method.check(self)
        except ValueError as error:
            raise InputError(error) from error

    @property
    def label_update(self) -> Literal["exact", "epoch", "posterior", "none"]:
        """`labels.update`, or what stands for it where it is left out."""
        if self.labels.update is not None:
            return self.labels.update
        exact = any(getattr(self.labels, k) != getattr(LabelConfig, k) for k in own_options("exact", "posterior"))
        if exact or self.compile != "off" or self.approx != "none":
            return "exact"
        return self.method_class().default_update

    def method_class(self) -> type[Method]:
        """The class that `method` names; InputError where there is none, or a file names code that is not trusted."""
        from fastmeta.methods import method_class

        try:
            return method_class(self.method)
        except ValueError as error:
            raise InputError(error if str(error).startswith("method ") else f"method: {error}") from error

    @property
    def can_have_canaries(self) -> bool:
        """Whether the method learns labels that the trainer can look at and hold."""
        method = self.method_class()
        return method.learns_labels and "labels.canaries" in method.supports

    @property
    def approx_choice(self) -> str | None:
        """`approx` as :class:`fastmeta.MetaStep` wants it."""
        return None if self.approx == "none" else self.approx

    @property
    def is_inexact(self) -> bool:
        """Whether steps that learn labels are not the exact ones because the config says so."""
        chosen = self.approx != "none" or self.labels.tangent == "difference"
        return chosen and "approx" in self.method_class().supports

    @property
    def watch_choice(self) -> int | None:
        """`watch_every` as :class:`fastmeta.MetaStep` wants it."""
        from fastmeta.meta.approximation import Approximation

        if not self.is_inexact or self.watch_every == 0:
            return None
        return self.watch_every or WATCH_EVERY * Approximation.parse(self.approx_choice).period

    def baseline_names(self) -> tuple[str, ...]:
        """The baselines to run, in a fixed order; empty while `baselines` is None."""
        if self.baselines in (None, "none", ""):
            return ()
        names = BASELINES if self.baselines == "all" else tuple(str(self.baselines).split(","))
        for name in names:
            if name not in BASELINES:
                raise InputError(
                    f"baselines must be all, none, or some of {','.join(BASELINES)}, got {shown(self.baselines)}"
                )
        return tuple(name for name in BASELINES if name in names)

    # -- TOML ---------------------------------------------------------------------------------------------

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], *, source: str = "config", trusted: Collection[str] = ()
    ) -> TrainConfig:
        """From nested mappings, as TOML gives them. InputError for an unknown key or a value of a wrong type.

        A name ``package.module:name`` is not imported for such a config, unless its key is among `trusted`, or the
        config is made :meth:`trusted` later.
        """
        config: TrainConfig = _build(cls, values, source, trusted)
        return config

    def trusted(self) -> TrainConfig:
        """The same config, whose names may be of code that is imported wherever they come from."""
        named: dict[str, Any] = {k: str(v) for k in NAMES_OF_CODE if (v := getattr(self, k)) is not None}
        return dataclasses.replace(self, **named)

    def names_code(self) -> tuple[str, ...]:
        """Those of `NAMES_OF_CODE` that stand for code that would have to be imported."""
        return tuple(name for name in NAMES_OF_CODE if is_code(name, getattr(self, name)))

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """From a TOML file, as editors of any system leave it: line ends of any kind, a byte order mark, a last Ctrl-Z.

        Raises:
            InputError: no such file, no TOML in UTF-8, an unknown key, a value of a wrong type.
        """
        return cls.from_mapping(read_toml(Path(path)), source=str(path))

    def to_mapping(self) -> dict[str, Any]:
        """Nested dicts without the values that are None; a method with options is a table with its `name`."""
        values = dataclasses.asdict(self)
        if options := values.pop("options"):
            values["method"] = {"name": self.method, **options}
        # as in the files of runs that knew of none of these
        if not self.finetune_steps:
            del values["finetune_steps"]
        for name in ("skip_corrupt", "mean", "std", "meta_is_train"):
            if not values["data"][name]:
                del values["data"][name]
        if self.labels.read == "auto":
            del values["labels"]["read"]
        if self.labels.store == "device":  # what a run that names none has
            del values["labels"]["store"]
        return _prune(values)

    def to_toml(self) -> str:
        import tomli_w

        return tomli_w.dumps(self.to_mapping())


def is_code(name: str, value: str | None) -> bool:
    """Whether a config's `value` under `name`, one of `NAMES_OF_CODE`, stands for code; False for what is refused."""
    from fastmeta import models
    from fastmeta.methods import METHODS

    if value is None:
        return False
    if name == "model":
        return not value.startswith(CUSTOM) and models.names_code(value)
    if name == "method":
        return value not in METHODS
    try:
        return parse_dataset(value).names_code if name == "dataset" else parse_noise(value).names_code
    except InputError:
        return False


def _prune(values: dict[str, Any]) -> dict[str, Any]:
    kept = {k: _prune(v) if isinstance(v, dict) else v for k, v in values.items() if v is not None}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def _build(cls: type, values: Mapping[str, Any], source: str, trusted: Collection[str]) -> Any:
    try:
        if isinstance(values, Mapping):
            values = dict(values)
            if isinstance(values.get("method"), Mapping):
                options = dict(values["method"])
                values |= {"method": options.pop("name", TrainConfig.method), "options": options}
            elif "options" in values:
                raise InputError("unknown key 'options'; options of a method stand in its table [method]")
            of_file = [k for k in NAMES_OF_CODE if k not in trusted and isinstance(values.get(k), str)]
            values |= {k: Untrusted(values[k]) for k in of_file}
        return nested(cls, values, "", list(names_of(cls)))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
