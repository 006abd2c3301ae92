"""What a config leaves open, by data set: settings that were tuned for the digits, sensible ones for all else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from fastmeta.data import InputError, Splits
from fastmeta.methods import METHODS
from fastmeta.methods.learned import LearnedLabels
from fastmeta.training.config import TrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Preset:
    noise: str
    model: str
    epochs: int
    batch_size: int
    meta_batch_size: int
    lr: float
    weight_decay: float
    target_prob: float
    baselines: str
    threads: int | None  # None is torch's own choice
    #: label_lr * lr / batch_size of instance labels; None leaves it to the label family
    instance_rate: float | None = None


DIGITS = Preset(
    noise="uniform:0.4",
    model="fastmeta.models.digits:digits_conv",
    epochs=30,
    batch_size=64,
    meta_batch_size=30,
    lr=0.1,
    weight_decay=2e-3,
    # Softer starts (0.4) reach more accuracy without moving a label; at harder ones (0.8) fewer labels come right.
    target_prob=0.6,
    baselines="all",
    threads=1,
    # short runs and few visits per label want larger steps than the family's default
    instance_rate=5.0,
)
ARRAYS = Preset(
    noise="none",
    model="resnet20",
    epochs=100,
    batch_size=128,
    meta_batch_size=256,
    lr=0.1,
    weight_decay=5e-4,
    target_prob=0.9,
    baselines="none",
    threads=None,
)


def preset_noise(config: TrainConfig) -> str:
    """The label noise of a run: only the bundled digits are corrupted without being asked to."""
    return config.noise if config.noise is not None else _preset(config).noise


def preset_threads(config: TrainConfig) -> int | None:
    """CPU threads of a run, None for torch's own choice."""
    return config.threads if config.threads is not None else _preset(config).threads


def _preset(config: TrainConfig) -> Preset:
    return DIGITS if config.dataset == "digits" else ARRAYS


def resolve(config: TrainConfig, splits: Splits) -> TrainConfig:
    """`config` with every None replaced, but for `out`, `threads` where torch chooses, and label_lr of fixed labels.

    Raises:
        InputError: settings that do not fit the images.
    """
    preset = _preset(config)
    height, width, channels = splits.train.x.shape[1:]
    augment = config.data.augment or ("crop_flip" if channels >= 3 and min(height, width) >= 16 else "none")
    if augment != "none" and config.data.padding >= min(height, width):
        raise InputError(
            f"data.padding must be smaller than the image, got {config.data.padding} for {height}×{width} pixels"
        )
    batch_size = min(_or(config.data.batch_size, preset.batch_size), len(splits.train))
    data = replace(
        config.data,
        batch_size=batch_size,
        meta_batch_size=min(_or(config.data.meta_batch_size, preset.meta_batch_size), len(splits.meta)),
        augment=augment,
    )
    optim = replace(
        config.optim,
        lr=_or(config.optim.lr, preset.lr),
        weight_decay=_or(config.optim.weight_decay, preset.weight_decay),
    )
    target_prob = _or(config.labels.target_prob, preset.target_prob)
    if config.method == "instance_labels" and target_prob <= 1 / splits.num_classes:
        raise InputError(
            f"labels.target_prob must be above 1/C = {1 / splits.num_classes:g}, got {target_prob}: the given class "
            "would not lead at the start"
        )
    labels = replace(config.labels, target_prob=target_prob)
    assert optim.lr is not None
    method = METHODS[config.method]
    if labels.label_lr is None and issubclass(method, LearnedLabels):
        if preset.instance_rate is not None and config.method == "instance_labels":
            label_lr = preset.instance_rate * batch_size / optim.lr
        else:
            one = method.family(torch.zeros(1, dtype=torch.int64), splits.num_classes, 0.5)
            label_lr = one.default_label_lr(optim.lr, batch_size, max(1, _or(config.epochs, preset.epochs)))
        labels = replace(labels, label_lr=label_lr)
    model = config.model or (preset.model if config.dataset == "digits" or min(height, width) >= 16 else "small_conv")
    return replace(
        config,
        noise=preset_noise(config),
        model=model,
        epochs=_or(config.epochs, preset.epochs),
        baselines=config.baselines if config.baselines is not None else preset.baselines,
        threads=preset_threads(config),
        optim=optim,
        labels=labels,
        data=data,
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
