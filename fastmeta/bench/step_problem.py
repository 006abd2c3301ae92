"""The problem that all variants of a step solve: one model, one train batch with label logits, one meta batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fastmeta import models
from fastmeta._memory import check_room
from fastmeta._text import reason, shown
from fastmeta.bench.flops import Flops
from fastmeta.functional.call import arguments, call_model, pick_logits
from fastmeta.losses import InstanceLabels
from fastmeta.meta import Saved

DTYPES = ("float32", "tf32", "float64", "bfloat16")


@dataclass(frozen=True)
class StepConfig:
    """What is timed; `dtype` bfloat16 means float32 parameters under autocast, tf32 float32 that CUDA multiplies so."""

    model: str = "resnet20"
    batch: int = 32
    meta_batch: int = 64
    classes: int = 100
    samples: int = 50_000  # rows of the label table
    input_shape: tuple[int, ...] | None = None  # of one sample; default by model
    inputs: str | None = None  # package.module:function(batch) -> model input, in place of random normal images
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    variants: tuple[str, ...] = ("default",)  # names or presets
    lr: float = 0.01
    label_lr: float = 100.0  # small rates move labels by less than float32 can tell from rounding
    seconds: float = 30.0
    rounds: int | None = None
    limit: float | None = None  # seconds after which no further variant is prepared: those named first come first
    check: bool = True  # one float64 step of every exact variant against the reference, before any is timed
    memory: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        for name in ("batch", "meta_batch", "samples", "seconds", "threads", "rounds", "limit"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name.replace('_', '-')} must be positive, got {value}")
        if self.classes < 2:
            raise ValueError(f"classes must be at least 2, got {self.classes}")
        if self.samples < self.batch:
            raise ValueError(f"samples must be at least batch ({self.batch}), got {self.samples}: rows are drawn once")


class Problem:
    """Tensors and starting state, equal for every variant; a variant takes copies of what it changes."""

    def __init__(self, config: StepConfig, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self.device = torch.device(config.device)
        self.classes, self.lr, self.label_lr = config.classes, config.lr, config.label_lr
        generator = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        # as the trainer lays out images and weights: what cuDNN takes without turning it first
        self._layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        model = build_model(config).to(self.device, dtype)
        self._model = model.to(memory_format=self._layout)  # type: ignore[call-overload]
        make = _inputs(config)
        self.x, self.x_meta = (self._place(make(size, generator)) for size in (config.batch, config.meta_batch))
        self.targets = torch.randint(config.classes, (config.samples,), generator=generator).to(self.device)
        self.index = torch.randperm(config.samples, generator=generator)[: config.batch].to(self.device)
        self.y_meta = torch.randint(config.classes, (config.meta_batch,), generator=generator).to(self.device)

    def _place(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            layout = self._layout if value.ndim == 4 else torch.preserve_format
            return value.to(self.device, self.dtype if value.is_floating_point() else None, memory_format=layout)
        if isinstance(value, dict):
            return {k: self._place(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return tuple(map(self._place, value))
        raise ValueError(f"inputs must return tensors, in a dict or a tuple if several, got {type(value).__name__}")

    def model(self) -> nn.Module:
        return copy.deepcopy(self._model)

    def labels(self) -> InstanceLabels:
        return InstanceLabels(self.targets, self.classes, target_prob=0.9, dtype=self.dtype)

    def logits(self, run: Callable[..., Any], x: Any) -> Tensor:
        """Of `run`, the model or another form of it."""
        args, kwargs = arguments(self._model, x)
        return pick_logits(run(*args, **kwargs))

    def precision(self) -> AbstractContextManager[Any]:
        """Entered around every step."""
        if self.config.dtype == "bfloat16" and self.dtype == torch.float32:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


def build_model(config: StepConfig) -> nn.Module:
    return models.build(config.model, num_classes=config.classes, input_shape=input_shape_of(config))


def input_shape_of(config: StepConfig) -> tuple[int, ...]:
    return config.input_shape or models.default_input_shape(config.model)


def _inputs(config: StepConfig) -> Callable[[int, torch.Generator], Any]:
    if config.inputs is not None:
        function = models.load_object(config.inputs)

        def make(size: int, generator: torch.Generator) -> Any:
            try:
                made = function(size)
            except Exception as error:  # of the user's
                raise ValueError(f"{shown(config.inputs)} fails on a batch of {size}: {reason(error)}") from error
            if not isinstance(made, Tensor | dict | tuple) or (not isinstance(made, Tensor) and not made):
                raise ValueError(f"inputs must return tensors, in a dict or a tuple if several, got {shown(made)}")
            return made

        return make
    return lambda size, generator: torch.randn(size, *input_shape_of(config), generator=generator)


@dataclass(frozen=True)
class Sizes:
    """Counted on meta tensors, where nothing is computed; None where the model cannot run there."""

    parameters: int
    parameter_bytes: int
    label_table_bytes: int
    floor: float  # FLOPs of the exact step by those of a plain step: (7n + 3m) / 3n
    forward_flops: int | None  # F: one forward of the train batch
    saved_bytes: int | None  # activations that one train forward keeps for its backward


def sizes(config: StepConfig) -> Sizes:
    """ValueError where inputs or labels do not fit into memory."""
    if config.device == "cpu":
        inputs = 0 if config.inputs is not None else math.prod(input_shape_of(config))
        rows = (config.batch + config.meta_batch) * (inputs + config.classes)
        # in float32, and in float64 for the check
        check_room(12 * (rows + config.samples * config.classes), "batches and label table")
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    with torch.device("meta"):
        model = build_model(config).to(dtype)
    parameters = list(model.parameters())
    flops = saved = None
    try:
        x = _inputs(config)(config.batch, torch.Generator())
        x = tree_map(lambda t: t.to("meta"), x)
        flops, saved = _count_forward(model, x, parameters)
    except (RuntimeError, NotImplementedError):
        pass  # data-dependent shapes, operators without a meta kernel
    n, m = config.batch, config.meta_batch
    return Sizes(
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.nbytes for p in parameters),
        label_table_bytes=config.samples * config.classes * dtype.itemsize,
        # forward 1, look-ahead backward 2, u 2, last backward 2 on n samples; forward and backward 3 on m samples
        floor=(7 * n + 3 * m) / (3 * n),
        forward_flops=flops,
        saved_bytes=saved,
    )


def _count_forward(model: nn.Module, x: Any, parameters: list[nn.Parameter]) -> tuple[int, int]:
    with Flops() as counter, Saved(parameters) as saved:
        call_model(model, x)
    return counter.get_total_flops(), saved.bytes
