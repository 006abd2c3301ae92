"""What a run is: one tree of frozen dataclasses, the same in Python, in TOML and as flags.

A value of None ("auto" in the help) goes by the data set: `presets.py` fills it in, and the resolved tree is what a run
directory records.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from fastmeta._numbers import as_real
from fastmeta._text import printable, shown
from fastmeta._trust import Untrusted
from fastmeta.data.errors import InputError
from fastmeta.data.noise import parse as parse_noise
from fastmeta.training.toml_file import read_toml
from fastmeta.training.values import LARGEST_RATE, at_least, check_types, hints_of, one_of, positive, within

BASELINES = ("noisy", "union", "clean")
MOST_THREADS = 1024


@dataclass(frozen=True)
class OptimConfig:
    """Plain SGD on the model, and its learning rate over the run."""

    lr: float | None = None
    """Learning rate at the start."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    weight_decay: float | None = None
    """L2 penalty, on every parameter."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Cosine to zero, or ×gamma at each milestone, or constant; by step, not by epoch."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where the schedule `step` falls, as fractions of the run."""
    gamma: float = 0.1
    """Factor of the schedule `step`."""

    def __post_init__(self) -> None:
        check_types(self, "optim.")
        positive("optim.lr", self.lr)
        within("optim.momentum", self.momentum, 0, 1, high_open=True)
        within("optim.weight_decay", self.weight_decay, 0, math.inf, high_open=True)
        if self.weight_decay:
            positive("optim.weight_decay", self.weight_decay)
        within("optim.gamma", self.gamma, 0, 1)
        for m in self.milestones:
            within("optim.milestones", m, 0, 1)
        if self.nesterov and not self.momentum:
            raise InputError("optim.nesterov needs a momentum above 0, got optim.momentum=0")


@dataclass(frozen=True)
class LabelConfig:
    """How labels start and move."""

    target_prob: float | None = None
    """Probability of the given class at the start."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of a table of instance labels; bfloat16 takes half the memory, rounded stochastically."""
    label_lr: float | None = None
    """Learning rate of the labels, constant; the default adapts to learning rate, batch size and epochs."""
    lookahead: str = "sgd"
    """Look-ahead step: sgd (at the scheduled rate), optimizer (with momentum and weight decay), or a fixed rate."""
    tangent: Literal["auto", "reverse", "forward", "difference"] = "auto"
    """How the logit tangent is computed; auto goes by the model's layers."""

    def __post_init__(self) -> None:
        if (rate := as_real(self.lookahead)) is not None:
            object.__setattr__(self, "lookahead", repr(rate))
        check_types(self, "labels.")
        within("labels.target_prob", self.target_prob, 0, 1)
        positive("labels.label_lr", self.label_lr)
        if self.lookahead not in ("sgd", "optimizer"):
            try:
                rate = float(self.lookahead)
            except ValueError:
                rate = -1.0
            if not 0 < rate <= LARGEST_RATE:
                raise InputError(
                    f"labels.lookahead must be sgd, optimizer or a learning rate above 0, got {shown(self.lookahead)}"
                )

    @property
    def lookahead_choice(self) -> Any:
        """`lookahead` as :class:`fastmeta.MetaStep` wants it."""
        return self.lookahead if self.lookahead in ("sgd", "optimizer") else float(self.lookahead)


@dataclass(frozen=True)
class DataConfig:
    """Batches, the clean set, augmentation."""

    batch_size: int | None = None
    """Training images per step; a pass drops its partial last batch."""
    meta_batch_size: int | None = None
    """Clean images per step; all of them if there are fewer."""
    meta_fraction: float = 0.2
    """Share of each class held out as clean set where the data set brings none."""
    augment: Literal["none", "crop", "crop_flip"] | None = None
    """Random crops from the padded image, and horizontal flips; by default crop_flip for colour images, else none."""
    padding: int = 4
    """Pixels around the image that is cropped."""
    pad_mode: Literal["zero", "reflect"] = "zero"
    """What stands in the padding."""
    given: str = "y_train"
    """Array of an npz file with the labels to train on."""
    truth: str = "y_true"
    """Array of an npz file with the right labels, for measuring alone."""

    def __post_init__(self) -> None:
        check_types(self, "data.")
        at_least("data.batch_size", self.batch_size, 1)
        at_least("data.meta_batch_size", self.meta_batch_size, 1)
        at_least("data.padding", self.padding, 0)
        if not 0 < self.meta_fraction < 1:
            raise InputError(f"data.meta_fraction must lie strictly between 0 and 1, got {self.meta_fraction}")


@dataclass(frozen=True)
class TrainConfig:
    """One run: a data set, a method that decides the labels, a model, a schedule, and baselines beside it."""

    dataset: str = "digits"
    """digits or npz:PATH, a file with x_train (uint8, NHWC) and y_train;
    optional are x_meta and y_meta, or meta_index; x_test and y_test; y_true; class_names."""
    noise: str | None = None
    """Label noise to add: none or uniform:RATE. By default uniform:0.4 for the digits and none for all else."""
    method: str = "instance_labels"
    """onehot, class_labels or instance_labels."""
    model: str | None = None
    """resnet18, resnet20, resnet32, vgg16_bn, alexnet, wrn28_10, small_conv, vit_tiny, mlp,
    torchvision:NAME, timm:NAME, or your own as package.module:factory."""
    epochs: int | None = None
    """Passes over the training set."""
    seed: int = 0
    """Of the split, the noise, the initial weights and the order of the batches."""
    out: str | None = None
    """Run directory, new or empty; by default the next free runs/DATASET-METHOD-seedN."""
    baselines: str | None = None
    """Runs beside it with fixed labels and the same schedule: all, none, or some of noisy,union,clean.
    By default all for the digits and none for other data."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32 in full; tf32 rounds the factors of float32 products on CUDA and is fp32 on a CPU;
    bf16 runs the network under autocast. Weights, labels and label gradient are fp32 in all."""
    compile: Literal["off", "trace", "full"] = "off"
    """Steps that learn labels: off runs them as written, trace as one graph without doubled work,
    full compiles that graph by inductor (up to minutes, kept on disk)."""
    approx: str = "none"
    """Cheaper, inexact steps: none; delayed (the model moves by the labels of before);
    every:K (labels move on one step in K); last:L (look-ahead through the last L layers alone);
    difference (of logits, in place of a derivative)."""
    micro_batch: int | None = None
    """Most images whose graphs are held at once, train and clean, for batches that do not fit. By default all.
    The same steps for one more forward, but BatchNorm takes the statistics of pieces where a batch is larger."""
    threads: int | None = None
    """CPU threads; by default 1 for the digits, whose network is too small to share out, else torch's own choice."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints, which are taken at the end of an epoch."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        # here and not at the top: the registry of methods imports torch
        from fastmeta.methods import METHODS

        check_types(self, "")
        if self.dataset != "digits" and not re.match("npz:.", self.dataset):
            hint = f"; did you mean npz:{printable(self.dataset, 80)}?" if self.dataset.endswith(".npz") else ""
            raise InputError(f"dataset must be digits or npz:PATH, got {shown(self.dataset)}{hint}")
        if self.noise is not None:
            parse_noise(self.noise)
        one_of("method", self.method, tuple(METHODS))
        at_least("epochs", self.epochs, 1)
        at_least("seed", self.seed, 0)
        # some OpenMP runtimes crash on what they cannot start
        within("threads", self.threads, 1, MOST_THREADS)
        at_least("micro_batch", self.micro_batch, 1)
        within("checkpoint_seconds", self.checkpoint_seconds, 0, math.inf)
        for name, value in (("model", self.model), ("out", self.out)):
            if value == "":
                raise InputError(f"{name} is empty; leave it out for the default")
        if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", self.device):
            raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {shown(self.device)}")
        if self.method == "instance_labels" and self.labels.target_prob in (0, 1):
            raise InputError(
                f"labels.target_prob must lie strictly between 0 and 1 for instance_labels, got "
                f"{self.labels.target_prob}: no gradient leads back from an infinite logit; take 0.9"
            )
        self._check_step()
        self.baseline_names()

    def _check_step(self) -> None:
        """What is said about steps that learn labels, and whether there are any."""
        from fastmeta.meta.approximation import Approximation
        from fastmeta.methods import METHODS

        try:
            Approximation.parse(self.approx_choice)
        except ValueError:
            raise InputError(
                f"approx must be none, delayed, every:K, last:L or difference with K, L >= 1, got {shown(self.approx)}"
            ) from None
        if not METHODS[self.method].needs_meta:
            for name, value, without in (("compile", self.compile, "off"), ("approx", self.approx, "none")):
                if value != without:
                    raise InputError(
                        f"{name}={value} is about steps that learn labels, and method={self.method} takes none; "
                        f"leave it at {without}"
                    )

    @property
    def approx_choice(self) -> str | None:
        """`approx` as :class:`fastmeta.MetaStep` wants it."""
        return None if self.approx == "none" else self.approx

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
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "config") -> TrainConfig:
        """From nested mappings, as TOML gives them. InputError for an unknown key or a value of a wrong type.

        A model that is named ``package.module:factory`` is not imported for such a config, unless it is `trusted`.
        """
        config: TrainConfig = _build(cls, values, source)
        return config if config.model is None else dataclasses.replace(config, model=Untrusted(config.model))

    def trusted(self) -> TrainConfig:
        """The same config, whose model may be code that is imported wherever its name comes from."""
        return self if self.model is None else dataclasses.replace(self, model=str(self.model))

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """From a TOML file, as editors of any system leave it: line ends of any kind, a byte order mark, a last Ctrl-Z.

        Raises:
            InputError: no such file, no TOML in UTF-8, an unknown key, a value of a wrong type.
        """
        return cls.from_mapping(read_toml(Path(path)), source=str(path))

    def to_mapping(self) -> dict[str, Any]:
        """Nested dicts without the values that are None."""
        return _prune(dataclasses.asdict(self))

    def to_toml(self) -> str:
        import tomli_w

        return tomli_w.dumps(self.to_mapping())


def _prune(values: dict[str, Any]) -> dict[str, Any]:
    kept = {k: _prune(v) if isinstance(v, dict) else v for k, v in values.items() if v is not None}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def _build(cls: type, values: Mapping[str, Any], source: str) -> Any:
    try:
        return _nested(cls, values, "")
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _nested(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"a config is a table of values, got {shown(values)}")
    hints = hints_of(cls)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key)[:80], hints, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known are {', '.join(hints)}"
            raise InputError(f"unknown key {shown(f'{prefix}{key}')}; {hint}")
    arguments = {}
    for key, value in values.items():
        name = prefix + key
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise InputError(f"{name} must be a table [{name}], got {shown(value)}")
            value = _nested(cast(type, hints[key]), value, f"{name}.")
        arguments[key] = value
    return cls(**arguments)
