"""The files of a run and what a finished one gives back.

config.toml          resolved; `fastmeta train --config` runs it again
metrics.jsonl        a line per epoch and stage; epoch 0 is the start
summary.json         figures of the whole run and its warnings, see :func:`summary_of`; only a finished run has it
labels.npz           per training row: index (row in the data set), given, learned, probability (of the learned
                     class), given_probability, entropy, and true where it is known
labels.safetensors   the label parameters themselves (methods that learn labels)
model.safetensors    weights after the last step, never the best on test
checkpoint/          state of the run, for --resume
figures/             PNGs, made from the files above
"""

from __future__ import annotations

import io
import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fastmeta.data import InputError, Splits
from fastmeta.labels import ClassLabels, InstanceLabels
from fastmeta.methods import METHODS
from fastmeta.training.checkpoint import pack, unpack, write_atomically
from fastmeta.training.config import TrainConfig
from fastmeta.training.label_metrics import average_precision, flips, label_figures, learned_labels
from fastmeta.training.stage import Stage

T = TypeVar("T")

SCHEMA = "fastmeta.run"
SCHEMA_VERSION = 1


@dataclass
class Run:
    """A finished run."""

    path: Path
    summary: dict[str, Any]  #: summary.json
    config: TrainConfig  #: resolved
    model: nn.Module  #: after the last step, in evaluation mode, on the CPU if loaded from files
    labels: InstanceLabels | ClassLabels | None  #: the learned labels; None for methods with fixed ones


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON in which NaN and infinities are null; lone surrogates are escaped, so that it can be encoded."""

    def clean(v: Any) -> Any:
        if isinstance(v, Mapping):
            return {k: clean(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [clean(x) for x in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    text = json.dumps(clean(value), indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # \\ud800 is JSON's escape too


def stage_summary(stage: Stage) -> dict[str, Any]:
    """Figures of a stage that has taken its last step."""
    record = stage.last
    return {
        "test_accuracy_last": record.get("test_accuracy"),
        "test_accuracy_best": None if stage.best is None else stage.best[0],
        "test_accuracy_best_epoch": None if stage.best is None else stage.best[1],
        "nll": record.get("nll"),
        "ece": record.get("ece"),
        "train_fit": record.get("train_fit"),
        "seconds": stage.seconds,
        "failed": None,
    }


def failed_summary(stage: Stage, reason: str) -> dict[str, Any]:
    """The same of a baseline that could not take its last step: no figures, and why."""
    return dict.fromkeys(stage_summary(stage)) | {"seconds": stage.seconds, "failed": reason}


def write_labels(path: Path, stage: Stage, splits: Splits) -> dict[str, Any]:
    """labels.npz, and labels.safetensors for learned ones; returns the label figures of the summary."""
    given = stage.method.targets
    y_true = stage.data.y_true
    labels = stage.method.labels
    if labels is None:
        one, zero = torch.ones(len(given)), torch.zeros(len(given))
        table = {"learned": given, "probability": one, "given_probability": one, "entropy": zero}
    else:
        table = learned_labels(labels)
        write_atomically(path / "labels.safetensors", pack(labels.state_dict(), {"family": labels.family}))
    arrays = {
        "index": splits.train.row,
        "given": given.cpu().numpy(),
        **{k: v.cpu().numpy() for k, v in table.items()},
    }
    if splits.train.y_true is not None:
        arrays["true"] = splits.train.y_true
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path / "labels.npz", buffer.getvalue())

    initial = None if y_true is None else float((given == y_true).double().mean())
    fixed = {"labels_changed": 0, "labels_corrected": None, "labels_spoiled": None, "label_accuracy": initial}
    if y_true is not None:
        fixed |= {"labels_corrected": 0, "labels_spoiled": 0}
    figures = fixed if labels is None else label_figures(labels, y_true)
    precision = None if labels is None else average_precision(table["given_probability"], given, y_true)
    return {
        "label_accuracy_initial": initial,
        "label_accuracy_final": figures["label_accuracy"],
        "labels_changed": figures["labels_changed"],
        "labels_corrected": figures["labels_corrected"],
        "labels_spoiled": figures["labels_spoiled"],
        "wrong_label_average_precision": precision,
        "label_flips": flips(given, table["learned"], splits.num_classes),
    }


def summary_of(
    config: TrainConfig,
    splits: Splits,
    main: Mapping[str, Any],
    labels: Mapping[str, Any],
    baselines: Mapping[str, Any],
    **environment: Any,
) -> dict[str, Any]:
    """summary.json. Accuracies and rates lie in [0, 1]; what nobody can know is null.

    schema, schema_version          "fastmeta.run", raised when a field changes its meaning
    test_accuracy_last, _best       after the last epoch; the best epoch is picked on the test set itself
    nll, ece                        on the test set after the last epoch
    label_accuracy_initial, _final  share of given and of learned labels (argmax) that are right
    labels_changed                  learned class differs from the given one
    labels_corrected, _spoiled      wrong labels put right, right ones made wrong
    wrong_label_average_precision   of 1 - p_learned[given] as a finder of wrong given labels
    noise_rate                      share of wrong given labels
    seconds                         training and evaluation of the method's own stage
    failed                          null; in a baseline that diverged why, and its figures are null
    baselines.NAME.*                the stage figures of noisy, union and clean
    """
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "dataset": config.dataset,
        "noise": splits.noise,
        "noise_rate": splits.noise_rate,
        "method": config.method,
        "model": config.model,
        "epochs": config.epochs,
        "seed": config.seed,
        "label_lr": config.labels.label_lr,
        "train_size": len(splits.train),
        "meta_size": len(splits.meta),
        "test_size": None if splits.test is None else len(splits.test),
        "num_classes": splits.num_classes,
        "class_names": list(splits.class_names),
        "image_shape": list(splits.train.x.shape[1:]),
        **main,
        **labels,
        "baselines": dict(baselines),
        **environment,
    }


def load_run(path: str | Path, *, model: nn.Module | None = None) -> Run:
    """A finished run from its directory. `model` is needed where the run was given a module of the caller's own.

    A `model` that is given takes over the run's weights and becomes the `Run.model`.

    Raises:
        InputError: no run there, an unfinished or a damaged one, or one that needs another `model`.
    """
    path = Path(path).expanduser()
    if not (path / "config.toml").is_file():
        raise InputError(f"{path} is no run directory: it has no config.toml")
    if not (path / "summary.json").is_file():
        raise InputError(f"{path} is not finished; go on with: {resume_command(path)}")
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {kind_of(model)}")
    config = TrainConfig.read(path / "config.toml")
    if config.model is None:
        raise InputError(f"{path}/config.toml names no model: it is not the one that the run has written")
    summary = _read(path / "summary.json", _summary)
    num_classes = summary["num_classes"]
    state, _ = _read(path / "model.safetensors", unpack)
    given, model = model is not None, model or build_model(config, num_classes, summary["image_shape"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        way = "pass one built as that was" if given else "the run is damaged, run it again with --config"
        raise InputError(
            f"{path}/model.safetensors does not fit the {type(model).__name__} (the run trained {config.model}): {way}"
        ) from error
    labels = None
    if METHODS[config.method].needs_meta:
        labels = _read(path / "labels.safetensors", lambda p: _labels(*unpack(p), num_classes))
    return Run(path, summary, config, model.eval(), labels)


def resume_command(path: Path) -> str:
    """What to type to go on."""
    return shlex.join(["fastmeta", "train", "--resume", str(path)])


def kind_of(value: Any) -> str:
    """For messages about a value of a wrong type."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _summary(path: Path) -> dict[str, Any]:
    summary = json.loads(path.read_text(encoding="utf-8"))
    schema = (summary.get("schema"), summary.get("schema_version")) if isinstance(summary, dict) else (None, None)
    if schema != (SCHEMA, SCHEMA_VERSION):
        raise ValueError(f"schema {schema[0]} {schema[1]}, this fastmeta reads {SCHEMA} {SCHEMA_VERSION}")
    for key in ("num_classes", "image_shape"):
        if key not in summary:
            raise ValueError(f"{key} is missing")
    return summary


def _labels(state: dict[str, Tensor], values: dict[str, Any], num_classes: int) -> InstanceLabels | ClassLabels:
    if values.get("family") not in (InstanceLabels.family, ClassLabels.family):
        raise ValueError(f"it holds no labels but {values}")
    labels: InstanceLabels | ClassLabels
    if values["family"] == InstanceLabels.family:
        labels = InstanceLabels(state["targets"], num_classes, 0.5, dtype=state["label_logits"].dtype)
    else:
        labels = ClassLabels(state["targets"], num_classes, 0.5)
    labels.load_state_dict(state)
    return labels


def _read(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path} cannot be read ({reason}): the run is damaged or of another version; run it again"
        ) from error


CUSTOM = "custom:"


def build_model(config: TrainConfig, num_classes: int, image_shape: list[int] | tuple[int, ...]) -> nn.Module:
    """The network that a resolved config names, with fresh weights from torch's global generator."""
    from fastmeta import models

    assert config.model is not None
    if config.model.startswith(CUSTOM):
        raise InputError(f"this run trained a module of its own, {config.model}: pass it as model=")
    height, width, channels = image_shape
    try:
        return models.build(config.model, num_classes=num_classes, input_shape=(channels, height, width))
    except (ValueError, ImportError) as error:
        raise InputError(f"model: {error}") from error
