"""What a config leaves open, by data set: settings that were tuned for the digits, sensible ones for all else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from fastmeta.data import InputError, Source, Splits
from fastmeta.distributed import ALONE, Ranks
from fastmeta.posterior import FOLDS, MARGIN
from fastmeta.training import on_ranks
from fastmeta.training.batches import steps_per_epoch
from fastmeta.training.config import DataConfig, LabelConfig, TrainConfig
from fastmeta.training.sections import SEARCH, own_options

if TYPE_CHECKING:
    from fastmeta.methods import Method

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
    #: label_lr * lr / batch_size of instance labels, in data whose labels go at a rate; None goes by labels.label_step
    instance_rate: float | None = None
    #: do instance labels move by exact steps, where nobody asks for others?
    exact: bool = False


DIGITS = Preset(
    noise="uniform:0.8",
    model="fastmeta.models.digits:digits_conv",
    epochs=30,
    batch_size=64,
    meta_batch_size=30,
    lr=0.1,
    weight_decay=4e-3,
    # most labels are wrong: they start soft
    target_prob=0.4,
    baselines="all",
    threads=1,
    instance_rate=10.0,
    # twenty clean images for each of the copies are too few to estimate 72% wrong labels from, in some runs
    exact=True,
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

#: clean steps at the end of an epoch, and their rate, which is that of fine-tuning too
CLEAN_STEPS, CLEAN_LR = 10, 0.02
#: clean rows in all of them, as a share of the training rows: labels then cost 2.5 times plain training at most
MOST_CLEAN = 0.8

#: of labels that are estimated: clean steps of a copy, least samples of a step, and share of the prediction
POSTERIOR_STEPS, LEAST_CLEAN_BATCH, MIX = 30, 16, 0.3
#: clean rows without which none can be left out, so that nothing is estimated
LEAST_CLEAN = 2

#: what a search tries beside the rate where it is left open, and what it may cost, in runs
TRIED = ("label_step", "eta", "steps", "target_prob")
SEARCH_BUDGET = 4.0

#: rate of labels that are probabilities, as a share of that of logits, whose gradient has a factor p more
SIMPLEX_RATE = 1 / 6

#: torch's own of AdamW; the presets' are of SGD
ADAMW_LR, ADAMW_WEIGHT_DECAY = 1e-3, 1e-2


def preset_noise(config: TrainConfig) -> str:
    """The label noise of a run: only the bundled digits are corrupted without being asked to."""
    return config.noise if config.noise is not None else _preset(config).noise


def preset_threads(config: TrainConfig) -> int | None:
    """CPU threads of a run, None for torch's own choice."""
    return config.threads if config.threads is not None else _preset(config).threads


def _preset(config: TrainConfig) -> Preset:
    return DIGITS if config.dataset == "digits" else ARRAYS


def resolve(config: TrainConfig, splits: Splits, ranks: Ranks = ALONE) -> TrainConfig:
    """`config` with every None replaced, but for `out`, `threads` where torch chooses, and label_lr of fixed labels.

    What a search tries stays open. Batches are of all `ranks`, which have equal parts of them.

    Raises:
        InputError: settings that do not fit the samples.
    """
    if config.labels.searches:
        return _searching(config, resolve(without_search(config), splits))
    if config.labels.search_budget is not None:
        raise InputError(
            f"labels.search_budget={config.labels.search_budget:g} is about labels.label_lr=search; leave it out"
        )
    preset = _preset(config)
    source = splits.train.source
    check_options(config, source)
    if not len(splits.meta):
        _check_needs_none(config)
    if config.finetune_lr is not None and not config.finetune_steps:
        raise InputError(
            f"finetune_lr={config.finetune_lr} is about the steps of finetune_steps, and finetune_steps is 0; leave it "
            "out, or say how many"
        )
    side, channels = _image(source.input_shape)
    augment = config.data.augment
    if "augment" in source.options:
        augment = augment or ("crop_flip" if channels >= 3 and side >= 16 else "none")
        if augment != "none" and config.data.padding >= side:
            _, height, width = source.input_shape or ()
            raise InputError(
                f"data.padding must be smaller than the image, got {config.data.padding} for {height}×{width} pixels"
            )
    if config.data.mean and len(config.data.mean) != channels:
        raise InputError(
            f"data.mean and data.std must have a number for each of {channels} channels, got {len(config.data.mean)}"
        )
    of, clean = config.data, len(splits.meta)
    batch_size = on_ranks.batch_size("batch_size", of.batch_size, preset.batch_size, len(splits.train), ranks)
    data = replace(
        config.data,
        batch_size=batch_size,
        meta_batch_size=on_ranks.batch_size("meta_batch_size", of.meta_batch_size, preset.meta_batch_size, clean, ranks)
        or None,
        augment=augment,
    )
    sgd = config.optim.name == "sgd"
    optim = replace(
        config.optim,
        lr=_or(config.optim.lr, preset.lr if sgd else ADAMW_LR),
        weight_decay=_or(config.optim.weight_decay, preset.weight_decay if sgd else ADAMW_WEIGHT_DECAY),
    )
    update = config.label_update
    asked = config.labels.update or any(
        getattr(config.labels, k) is not None for k in own_options("posterior", "exact")
    )
    if update == "posterior" and not asked and (preset.exact or len(splits.meta) < LEAST_CLEAN):
        update = "exact"
    canaries = "off" if splits.canaries is None else str(len(splits.canaries))
    labels = replace(config.labels, update=update, canaries=canaries)
    if update != "posterior" and labels.target_prob is None:
        labels = replace(labels, target_prob=config.method_class().default_target_prob(preset.target_prob))
    rows = len(splits.train) + (0 if splits.canaries is None else len(splits.canaries))
    epochs = _epochs(config, preset.epochs, steps_per_epoch(rows, batch_size, ranks))
    if labels.update == "posterior":
        labels = _of_posterior(labels, len(splits.meta), len(splits.train), epochs)
    elif labels.update == "none":
        labels = replace(labels, warmup_epochs=_or(labels.warmup_epochs, max(1, round(epochs / 10))))
    elif labels.update == "epoch":
        labels = _of_epochs(labels, config.method_class(), data.meta_batch_size or 1, len(splits.train), epochs)
    else:
        assert optim.lr is not None
        usual = config.method_class().default_lookahead("sgd" if sgd else repr(preset.lr))
        labels = replace(labels, lookahead=_or(labels.lookahead, usual))
        labels = _of_steps(labels, config, preset, optim.lr, batch_size, epochs, splits.num_classes)
    model = config.model or (preset.model if config.dataset == "digits" else default_model(source, preset.model))
    resolved = replace(
        config,
        noise=preset_noise(config),
        model=model,
        epochs=epochs,
        baselines=_or(config.baselines, preset.baselines if len(splits.meta) else "none"),
        threads=preset_threads(config),
        optim=optim,
        labels=labels,
        data=data,
        finetune_lr=_or(config.finetune_lr, CLEAN_LR) if config.finetune_steps else None,
    )
    try:
        resolved.method_class().check(resolved, splits.num_classes)
    except ValueError as error:
        raise InputError(error) from error
    return resolved


def _check_needs_none(config: TrainConfig) -> None:
    """InputError for what looks at clean rows, of which there are none."""
    needs = [f"method={config.method}"] if config.method_class().uses_clean(config.options) else []
    needs += [f"finetune_steps={config.finetune_steps}"] if config.finetune_steps else []
    needs += [f"baselines={name}" for name in config.baseline_names() if name != "noisy"]
    if needs:
        held = "meta_fraction" if config.data.meta_count is None else "meta_count"
        raise InputError(
            f"{needs[0]} needs clean rows, and data.{held}={getattr(config.data, held):g} holds none out; leave one of "
            "them out"
        )


def _epochs(config: TrainConfig, usual: int, steps_per_epoch: int) -> int:
    """Passes that are begun."""
    if config.max_steps is None:
        return _or(config.epochs, usual)
    begun = -(-config.max_steps // steps_per_epoch)
    return begun if config.epochs is None else min(config.epochs, begun)


def without_search(config: TrainConfig) -> TrainConfig:
    """A config that searches, with what it finds by default in place of a search."""
    labels = replace(config.labels, update=config.label_update, label_lr=None, search_budget=None)
    return replace(config, labels=labels)


def _searching(asked: TrainConfig, usual: TrainConfig) -> TrainConfig:
    """`usual`, which is `asked` resolved without its search, with that again."""
    tried = {name: getattr(asked.labels, name) for name in TRIED}
    budget = _or(asked.labels.search_budget, SEARCH_BUDGET)
    labels = replace(usual.labels, **tried, label_lr=SEARCH, search_budget=budget)
    return replace(usual, labels=labels)


def _of_steps(
    labels: LabelConfig, config: TrainConfig, preset: Preset, lr: float, batch_size: int, epochs: int, classes: int
) -> LabelConfig:
    """Labels that move in each step, at a rate or so far."""
    method = config.method_class()
    if labels.label_lr is None and labels.label_step is None:
        rate = labels.lookahead_rate or lr
        at_rate = labels.needs_rate or preset.instance_rate is not None
        step = None if at_rate else method.default_label_step()
        if preset.instance_rate is not None and config.method == "instance_labels":
            label_lr: float | None = preset.instance_rate * batch_size / rate
        elif step is None:
            label_lr = method.default_label_lr(rate, batch_size, epochs, classes)
        else:
            label_lr = None
        if label_lr is not None:
            share = SIMPLEX_RATE if labels.parametrisation == "simplex" else 1.0
            label_lr *= share * (1 - labels.label_momentum)  # labels go as far in a run
        labels = replace(labels, label_lr=label_lr, label_step=step if label_lr is None else None)
    waits = labels.label_step is not None and "labels.update" in method.supports
    warmup = _or(labels.warmup_epochs, min(max(1, round(epochs / 10)), epochs - 1) if waits else 0)
    if warmup >= epochs:
        raise InputError(
            f"labels.update=exact moves labels behind the first labels.warmup_epochs={warmup} epochs, and "
            f"epochs={epochs} leaves none; train longer"
        )
    return replace(labels, warmup_epochs=warmup)


def _of_epochs(labels: LabelConfig, method: type[Method], clean_rows: int, train_rows: int, epochs: int) -> LabelConfig:
    """Labels that move once an epoch. `clean_rows` are those of one clean step."""
    warmup = _or(labels.warmup_epochs, max(1, epochs // 10))
    if max(1, warmup) >= epochs:
        raise InputError(
            f"labels.update=epoch moves labels behind the first labels.warmup_epochs={warmup} epochs and before the "
            f"last one, and epochs={epochs} leaves none; train longer"
        )
    most = max(1, int(MOST_CLEAN * train_rows / clean_rows))
    return replace(
        labels,
        steps=_or(labels.steps, min(CLEAN_STEPS, most)),
        clean_lr=_or(labels.clean_lr, CLEAN_LR),
        eta=_or(labels.eta, method.default_eta()),
        warmup_epochs=warmup,
    )


def _of_posterior(labels: LabelConfig, clean_rows: int, train_rows: int, epochs: int) -> LabelConfig:
    """Labels that are estimated every few epochs, from `clean_rows` in all."""
    labels = replace(
        labels,
        steps=_or(labels.steps, POSTERIOR_STEPS),
        clean_lr=_or(labels.clean_lr, CLEAN_LR),
        warmup_epochs=_or(labels.warmup_epochs, max(1, round(epochs / 10))),
        every=_or(labels.every, max(1, round(epochs / 10))),
        mix=_or(labels.mix, MIX),
        margin=_or(labels.margin, MARGIN),
    )
    estimates = sum(labels.moves_after(epoch, epochs) for epoch in range(1, epochs + 1))
    most = int(MOST_CLEAN * train_rows * epochs / (estimates * FOLDS * (labels.steps or 1)))
    return replace(labels, clean_batch=_or(labels.clean_batch, min(clean_rows, max(LEAST_CLEAN_BATCH, most))))


def check_options(config: TrainConfig, source: Source) -> None:
    """InputError for an option of [data] that samples of this kind do not follow, by name."""
    without = DataConfig()
    about = {
        "augment": "images",
        "padding": "images",
        "pad_mode": "images",
        "mean": "images",
        "std": "images",
        "standardise": "features",
        "workers": "data sets that are not held in memory",
        "resident": "image files and arrays",
    }
    for name, kind in about.items():
        value, default = getattr(config.data, name), getattr(without, name)
        if name not in source.options and value not in (default, "none"):
            raise InputError(
                f"data.{name}={value} is about {kind}, and {config.dataset} holds others; leave it out (--data.{name})"
            )


def default_model(source: Source, of_images: str) -> str:
    """For images by their size; an mlp for features; InputError where a source does not tell the shape of a sample."""
    if source.input_shape is None:
        raise InputError("samples that are no tensors need a model of your own: model= or package.module:factory")
    side, _ = _image(source.input_shape)
    if "standardise" in source.options or not side:  # features
        return "mlp"
    return of_images if side >= 16 else "small_conv"


def _image(shape: tuple[int, ...] | None) -> tuple[int, int]:
    """Shorter side and channels of (channels, height, width), zeros for other shapes."""
    return (min(shape[1:]), shape[0]) if shape is not None and len(shape) == 3 else (0, 0)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
