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
import os
import reprlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from fastmeta.data import InputError, Splits
from fastmeta.data.dataset import MOST_CLASSES
from fastmeta.losses import ClassLabels, InstanceLabels
from fastmeta.methods import METHODS
from fastmeta.training import generators
from fastmeta.training.checkpoint import header, pack, unpack
from fastmeta.training.config import TrainConfig
from fastmeta.training.files import (
    CONFIG,
    SUMMARY,
    command,
    is_sealed,
    new_digest,
    parse_json,
    read_bytes,
    user_path,
    write_atomically,
)
from fastmeta.training.label_metrics import average_precision, flips, label_figures, learned_labels
from fastmeta.training.module_state import ModuleState, load_state
from fastmeta.training.schema import anything, each, maybe, number, one_of, record, table, text, whole
from fastmeta.training.stage import Stage
from fastmeta.training.trial import inner_module

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


def result_files(learns_labels: bool) -> tuple[str, ...]:
    """What the method's own stage leaves when it is done."""
    return ("model.safetensors", "labels.npz", *(["labels.safetensors"] if learns_labels else []))


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
    write_atomically(path / "labels.npz", _npz(arrays))

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


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """As np.savez_compressed, but for the time of day, which that writes beside each array."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with file.open(entry, "w", force_zip64=True) as content:
                np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


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
    files                           sizes and digests of the files that the run has written
    digest                          of all of this but the seconds: equal runs have equal ones
    """
    summary = {
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
    return summary | {"digest": _summary_digest(json.loads(to_json(summary)))}


def load_run(path: str | Path, *, model: nn.Module | None = None, trust_code: bool = False) -> Run:
    """A finished run from its directory, which may be anybody's: its files are read as data.

    Args:
        path: the run directory.
        model: needed where the run was given a module of the caller's own. One that is given takes over the run's
            weights and becomes the `Run.model`.
        trust_code: import and call the factory ``package.module:factory`` that the run names as its model. Without it
            such a run needs `model`, because the name may be that of any code.

    Raises:
        InputError: no run there, an unfinished or a damaged one, one that needs another `model`, or one whose model is
            code that is not trusted.
    """
    path = user_path(path, "path")
    if not os.path.isfile(path / CONFIG):
        raise InputError(f"{path} is no run directory: it has no {CONFIG}")
    if not os.path.isfile(path / SUMMARY):
        raise InputError(f"{path} is not finished; go on with: {resume_command(path)}")
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {kind_of(model)}")
    config = TrainConfig.read(path / CONFIG)
    if config.model is None:
        raise InputError(f"{path}/config.toml names no model: it is not the one that the run has written")
    if trust_code:
        config = config.trusted()
    summary = read(path / SUMMARY, _summary)
    _check_same_run(path, config, summary)
    model = _load_model(path, config, summary, model)
    labels = None
    if METHODS[config.method].needs_meta:
        size, num_classes = summary["train_size"], summary["num_classes"]
        labels = read(path / "labels.safetensors", lambda p: _load_labels(p, size, num_classes))
    for name, seal in summary.get("files", {}).items():
        # all but the table of labels are needed above
        if os.path.lexists(path / name) and not read(path / name, partial(is_sealed, seal=seal)):
            raise InputError(f"{path / name} has changed since the run wrote it; run it again")
    return Run(path, summary, config, model.eval(), labels)


def _check_same_run(path: Path, config: TrainConfig, summary: Mapping[str, Any]) -> None:
    for key in ("method", "model", "epochs", "seed"):
        begun, done = getattr(config, key), summary[key]
        if begun != done:
            raise InputError(
                f"{path} holds files of two runs: {key} is {begun!r} in {CONFIG} and {done!r} in {SUMMARY}; "
                "bring back the one that belongs to the other"
            )


def _load_model(path: Path, config: TrainConfig, summary: Mapping[str, Any], given: nn.Module | None) -> nn.Module:
    """The run's model with its weights; InputError, and no memory taken, where the file holds another's."""
    file = path / "model.safetensors"
    shapes, _ = read(file, header)
    way = "pass one built as that was" if given is not None else "the run is damaged, run it again with --config"

    def misfit(model: nn.Module, how: str = "") -> InputError:
        return InputError(
            f"{file} does not fit the {type(model).__name__} (the run trained {config.model}){how}: {way}"
        )

    model = None if given is None else inner_module(given)[0]
    if model is None:
        of_run = config, summary["num_classes"], summary["image_shape"]
        bare = None if names_code(config.model) else _without_memory(*of_run)
        if bare is not None and _shapes(bare) != shapes:
            raise misfit(bare)
        with generators.kept():  # reading a run leaves the caller's draws alone
            model = build_model(*of_run)
    tensors, values = read(file, unpack)
    state = {k: t for k, t in tensors.items() if not k.startswith(BESIDE)}
    beside = {k.removeprefix(BESIDE): t for k, t in tensors.items() if k.startswith(BESIDE)}
    try:
        load_state(model, ModuleState(state, beside, values.get("beside", {})))
    except ValueError as error:
        raise misfit(model, f"; {error}") from error
    return model


def _without_memory(config: TrainConfig, num_classes: int, image_shape: list[int]) -> nn.Module | None:
    """The network as shapes alone; None for the few of torchvision's that cannot be had so."""
    try:
        with torch.device("meta"):
            return build_model(config, num_classes, image_shape)
    except InputError:
        raise
    except Exception:
        return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def resume_command(path: Path, model: str | None = None) -> str:
    """What to type to go on with the run at `path` of the user's own `model`, where that is known."""
    return command("--resume", str(path), *(["--trust-code"] if names_code(model) else []))


def kind_of(value: Any) -> str:
    """For messages about a value of a wrong type."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


_RATE = maybe(number(0, 1))
_STAGE = {
    "test_accuracy_last": _RATE,
    "test_accuracy_best": _RATE,
    "test_accuracy_best_epoch": maybe(whole()),
    "nll": maybe(number(0)),
    "ece": _RATE,
    "train_fit": _RATE,
    "seconds": number(0),
}
_LABELS = {
    "label_accuracy_initial": _RATE,
    "label_accuracy_final": _RATE,
    "labels_changed": whole(),
    "labels_corrected": maybe(whole()),
    "labels_spoiled": maybe(whole()),
    "wrong_label_average_precision": _RATE,
    "label_flips": each(record({"given": whole(), "learned": whole(), "count": whole(1)})),
}
SEAL_FORM = record({"bytes": whole(), "digest": text})
#: of a stage, of the labels and of the whole, as :func:`stage_summary`, :func:`write_labels`, :func:`summary_of` give
STAGE_FORM, LABELS_FORM = record(_STAGE, {"failed": maybe(text)}), record(_LABELS)
SUMMARY_FORM = record(
    {
        "num_classes": whole(2, MOST_CLASSES),
        "image_shape": each(whole(1, 2**20), 3),
        "class_names": each(text),
        "dataset": text,
        "noise": text,
        "noise_rate": _RATE,
        "method": one_of(*METHODS),
        "model": text,
        "epochs": whole(1),
        "seed": whole(),
        "label_lr": maybe(number(0)),
        "train_size": whole(1),
        "meta_size": whole(),
        "test_size": maybe(whole()),
        "baselines": table(STAGE_FORM),
        **_STAGE,
        **_LABELS,
        "warnings": each(text),
        **dict.fromkeys(("fastmeta", "precision", "compile", "approx", "device", "torch"), text),
        "threads": whole(1),
    },
    {
        "failed": maybe(text),
        "files": record({}, dict.fromkeys(result_files(True), SEAL_FORM)),
        "digest": anything,
    },
)


def _summary(path: Path) -> dict[str, Any]:
    summary = parse_json(read_bytes(path))
    schema = (summary.get("schema"), summary.get("schema_version")) if isinstance(summary, dict) else (None, None)
    if schema != (SCHEMA, SCHEMA_VERSION):
        given = " ".join(str(part)[:40] for part in schema)
        raise ValueError(f"schema {given}, this fastmeta reads {SCHEMA} {SCHEMA_VERSION}")
    SUMMARY_FORM(summary, "")
    classes = summary["num_classes"]
    if len(summary["class_names"]) != classes:
        raise ValueError(f"class_names has {len(summary['class_names'])} names for num_classes {classes}")
    if any(max(flip["given"], flip["learned"]) >= classes for flip in summary["label_flips"]):
        raise ValueError(f"label_flips names a class above num_classes {classes}")
    if summary.get("digest", _summary_digest(summary)) != _summary_digest(summary):
        raise ValueError("its content and its digest differ: it has changed since it was written")
    return summary


def _summary_digest(summary: Mapping[str, Any]) -> str:
    def timeless(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if k != "seconds"}

    baselines = {name: timeless(stage) for name, stage in summary["baselines"].items()}
    content = {k: v for k, v in timeless(summary).items() if k != "digest"} | {"baselines": baselines}
    return new_digest(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _load_labels(path: Path, size: int, num_classes: int) -> InstanceLabels | ClassLabels:
    shapes, values = header(path)
    tables = {
        InstanceLabels.family: {"targets": (size,), "label_logits": (size, num_classes)},
        ClassLabels.family: {"targets": (size,), "alpha": (num_classes,)},
    }
    if values.get("family") not in tables:
        raise ValueError(f"it holds no labels but {reprlib.repr(values)}")
    if {k: v for k, v in shapes.items() if k != "label_step"} != tables[values["family"]]:
        raise ValueError(f"its tables are not those of {size:,} labels of {num_classes:,} classes")
    state, _ = unpack(path)
    labels: InstanceLabels | ClassLabels
    if values["family"] == InstanceLabels.family:
        labels = InstanceLabels(state["targets"], num_classes, 0.5, dtype=state["label_logits"].dtype)
    else:
        labels = ClassLabels(state["targets"], num_classes, 0.5, dtype=state["alpha"].dtype)
    labels.load_state_dict(state)
    return labels


def read(path: Path, reader: Callable[[Path], T]) -> T:
    """What `reader` makes of a file of a run; InputError in one line for whatever it raises."""
    try:
        return reader(path)
    except Exception as error:  # whatever bytes of anybody's make a library raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__
        reason = reason.splitlines()[0]
        raise InputError(
            f"{path} cannot be read ({reason}): the run is damaged or of another version; run it again"
        ) from error


CUSTOM = "custom:"
#: of tensors in model.safetensors that are no part of the state_dict; most models have none
BESIDE = "beside state_dict/"


def names_code(model: str | None) -> bool:
    """Whether a run's `model` stands for code that would have to be imported."""
    from fastmeta import models

    return model is not None and not model.startswith(CUSTOM) and models.names_code(model)


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
