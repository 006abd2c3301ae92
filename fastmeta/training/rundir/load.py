"""A finished run from its directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastmeta._text import shown
from fastmeta.data import InputError
from fastmeta.losses import Labels
from fastmeta.training import global_generators
from fastmeta.training.build import build_model, inner_module, kind_of
from fastmeta.training.config import TrainConfig
from fastmeta.training.model_copy import copy_of
from fastmeta.training.module_state import ModuleState, load_state
from fastmeta.training.rundir.checkpoint import header, unpack
from fastmeta.training.rundir.files import is_sealed, read, user_path
from fastmeta.training.rundir.in_words import in_words
from fastmeta.training.rundir.label_files import load_labels
from fastmeta.training.rundir.labels_table import labels_table
from fastmeta.training.rundir.layout import CONFIG, FINETUNED, SUMMARY, resume_command
from fastmeta.training.rundir.summary import read_summary

#: of tensors in model.safetensors that are no part of the state_dict; most models have none
BESIDE = "beside state_dict/"
LABELS = "labels.safetensors"


@dataclass
class Run:
    """A finished run."""

    path: Path
    summary: dict[str, Any]  #: summary.json
    config: TrainConfig  #: resolved
    model: nn.Module  #: after the last step, in evaluation mode, on the CPU if loaded from files
    labels: Labels | None  #: the table of learned labels; None for fixed ones, tables of others, and withheld ones
    finetuned: nn.Module | None = None  #: a copy of `model` behind the config's `finetune_steps`; None without

    def __repr__(self) -> str:
        """What was trained on what, and what came out, in a few lines."""
        return in_words(self.path, self.summary)

    def labels_table(self) -> Any:
        """labels.npz as a pandas DataFrame, one row per training sample, by its row in the data set.

        Columns: given and learned (class names, as categories), probability (of the learned class), given_probability,
        label_quality (of learned labels: how far to believe the given one), entropy (nats); true where the right
        classes are known. Where canaries say that labels are worse than they were given, learned is given, and withheld
        is what was learned.

        Raises:
            ImportError: without pandas.
            InputError: the file is gone or damaged.
        """
        return labels_table(self.path / "labels.npz", self.summary["class_names"])


def load_run(path: str | Path, *, model: nn.Module | None = None, trust_code: bool = False, force: bool = False) -> Run:
    """A finished run from its directory, which may be anybody's: its files are read as data.

    Args:
        path: the run directory.
        model: needed where the run was given a module of the caller's own. One that is given takes over the run's
            weights and becomes the `Run.model`.
        trust_code: import and call the factory ``package.module:factory`` that the run names as its model. Without it
            such a run needs `model`, because the name may be that of any code.
        force: hand out labels that canaries say are worse than the given ones.

    Raises:
        InputError: no run there, an unfinished or a damaged one, one that needs another `model`, or one whose model is
            code that is not trusted.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {kind_of(model)}")
    path, config, summary = _finished(path)
    if trust_code:
        config = config.trusted()
    model = _load_model(path, config, summary, model)
    finetuned = None
    if summary.get("finetuned", {"failed": "there is none"})["failed"] is None:
        finetuned = _load_finetuned(path, model)
    labels = _learned(path, summary, force)
    for name, seal in summary.get("files", {}).items():
        # all but the table of labels are needed above
        if os.path.lexists(path / name) and not read(path / name, partial(is_sealed, seal=seal)):
            raise InputError(f"{path / name} has changed since the run wrote it; run it again")
    return Run(path, summary, config, model.eval(), labels, finetuned)


def load_learned_labels(path: str | Path) -> tuple[Path, Mapping[str, Any], Labels | None]:
    """Directory, summary and learned labels of a finished run, as `load_run` gives them; its network is not built.

    So labels that any network has learned, one of the user's code too, are there for another.
    """
    path, _, summary = _finished(path)
    labels = _learned(path, summary, force=False)
    seal = summary.get("files", {}).get(LABELS)
    if labels is not None and seal is not None and not read(path / LABELS, partial(is_sealed, seal=seal)):
        raise InputError(f"{path / LABELS} has changed since the run wrote it; run it again")
    return path, summary, labels


def _finished(path: str | Path) -> tuple[Path, TrainConfig, dict[str, Any]]:
    """Directory, config and summary of a finished run."""
    path = user_path(path, "path")
    if not os.path.isfile(path / CONFIG):
        raise InputError(f"{path} is no run directory: it has no {CONFIG}")
    if not os.path.isfile(path / SUMMARY):
        raise InputError(f"{path} is not finished; go on with: {resume_command(path)}")
    config = TrainConfig.read(path / CONFIG)
    if config.model is None:
        raise InputError(f"{path}/config.toml names no model: it is not the one that the run has written")
    summary = read(path / SUMMARY, read_summary)
    _check_same_run(path, config, summary)
    return path, config, summary


def _learned(path: Path, summary: Mapping[str, Any], force: bool) -> Labels | None:
    if not summary["learns_labels"] or (summary.get("labels_withheld") and not force):
        return None
    size, num_classes = summary["train_size"], summary["num_classes"]
    return read(path / LABELS, lambda p: load_labels(p, size, num_classes))


def _check_same_run(path: Path, config: TrainConfig, summary: Mapping[str, Any]) -> None:
    for key in ("method", "model", "epochs", "seed"):
        begun, done = getattr(config, key), summary[key]
        if begun != done:
            raise InputError(
                f"{path} holds files of two runs: {key} is {shown(begun)} in {CONFIG} and {shown(done)} in {SUMMARY}; "
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
        of_run = config, summary["num_classes"], summary["input_shape"]
        bare = None if "model" in config.names_code() else _without_memory(*of_run)
        if bare is not None and _shapes(bare) != shapes:
            raise misfit(bare)
        with global_generators.kept():  # reading a run leaves the caller's draws alone
            model = build_model(*of_run)
    try:
        load_state(model, _state(file))
    except ValueError as error:
        raise misfit(model, f"; {error}") from error
    return model


def _load_finetuned(path: Path, model: nn.Module) -> nn.Module:
    """A copy of the run's model, which is loaded, with the weights of the fine-tuned one."""
    file = path / FINETUNED
    if read(file, header)[0] != read(path / "model.safetensors", header)[0]:
        raise InputError(f"{file} does not fit model.safetensors beside it: the run is damaged, run it again")
    copy = copy_of(model)
    try:
        load_state(copy, _state(file))
    except ValueError as error:
        raise InputError(f"{file} does not fit the {type(model).__name__}; {error}: the run is damaged") from error
    return copy.eval()


def _state(file: Path) -> ModuleState:
    tensors, values = read(file, unpack)
    state = {k: t for k, t in tensors.items() if not k.startswith(BESIDE)}
    beside = {k.removeprefix(BESIDE): t for k, t in tensors.items() if k.startswith(BESIDE)}
    return ModuleState(state, beside, values.get("beside", {}))


def _without_memory(config: TrainConfig, num_classes: int, input_shape: list[int] | None) -> nn.Module | None:
    """The network as shapes alone; None for the few of torchvision's that cannot be had so."""
    try:
        with torch.device("meta"):
            return build_model(config, num_classes, input_shape)
    except InputError:
        raise
    except Exception:
        return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
