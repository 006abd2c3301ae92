"""Everything that a run needs and that can be wrong: loaded, split, resolved, built and tried, before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from fastmeta.data import Dataset, DeviceData, InputError, Splits, derived_seed, load_batch, load_dataset, split
from fastmeta.data.sources import npz_path
from fastmeta.functional.network import Network
from fastmeta.meta.approximation import Approximation
from fastmeta.training import generators
from fastmeta.training.build import CUSTOM, build_model, inner_module, kind_of
from fastmeta.training.config import TrainConfig
from fastmeta.training.copies import copy_of
from fastmeta.training.device import pick_device
from fastmeta.training.modes import wholly_in_eval
from fastmeta.training.presets import preset_noise, resolve
from fastmeta.training.stage import Stage
from fastmeta.training.trial import Trial, with_weights

Data = Dataset | Mapping[str, Any]


@dataclass
class Prepared:
    """What :func:`prepare` gives."""

    config: TrainConfig  # resolved
    splits: Splits
    data: DeviceData
    initial: nn.Module  # each stage starts from a copy
    device: torch.device
    found: tuple[str, ...] = ()  # of the model, for `notes`

    @property
    def stages(self) -> tuple[str, ...]:
        return (self.config.method, *self.config.baseline_names())

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before it starts."""
        notes = (*self.splits.notes, *self.found)
        if self.config.precision == "tf32" and self.device.type != "cuda":
            notes += (f"precision tf32 is about CUDA: on {self.device} it is fp32",)
        if wholly_in_eval(self.initial):
            notes += (
                f"model {self.config.model} is in evaluation mode in all its parts and is trained so, as it was given: "
                "dropout is off and running statistics stand still; if that is not meant, call model.train() before",
            )
        return notes

    @cached_property
    def fingerprint(self) -> str:
        return self.splits.fingerprint()

    def stage(self, name: str) -> Stage:
        return Stage(name, self.config, self.data, copy_of(self.initial))


def prepare(config: TrainConfig, *, model: nn.Module | None = None, data: Data | None = None) -> Prepared:
    """Load, split, resolve, build. Raises InputError and writes nothing."""
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {kind_of(model)}")
    if data is not None and not isinstance(data, Dataset | Mapping):
        raise InputError(f"data must be a fastmeta.data.Dataset or a mapping of arrays, got {kind_of(data)}")
    device = pick_device(config.device)
    if data is None:
        dataset = load_dataset(config.dataset, seed=config.seed, given=config.data.given, truth=config.data.truth)
    else:
        dataset = data if isinstance(data, Dataset) else Dataset.from_arrays(data)
        config = replace(config, dataset=f"npz:{dataset.name}")
    if config.dataset.startswith("npz:") and data is None:
        # the run directory must find the file again from any folder
        config = replace(config, dataset=f"npz:{npz_path(config.dataset).resolve()}")
    splits = split(dataset, noise=preset_noise(config), meta_fraction=config.data.meta_fraction, seed=config.seed)
    config = resolve(config, splits)
    notes: tuple[str, ...] = ()
    if model is None:
        generators.seed_all(derived_seed(config.seed, "weights"))
        model = build_model(config, splits.num_classes, splits.train.x.shape[1:])
    else:
        model, notes = inner_module(model)
        config = replace(config, model=CUSTOM + type(model).__name__)
    on_device = DeviceData.of(
        splits,
        device,
        augment=config.data.augment or "none",
        padding=config.data.padding,
        pad_mode=config.data.pad_mode,
    )
    sizes = config.data.batch_size, config.data.meta_batch_size
    few = torch.arange(min(2, *(size or 1 for size in sizes)), device=device)
    x = load_batch(on_device.images, few, on_device.transform)
    with generators.kept():
        generators.seed_all(derived_seed(config.seed, "weights"))
        model = with_weights(model, x)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"model {config.model} has no parameter to train: none requires a gradient")
    bf16 = config.precision == "bf16"
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
    notes += Trial(model, str(config.model), x, splits.num_classes, autocast)()
    prepared = Prepared(config, splits, on_device, model, device, notes)
    _check_layers(prepared)
    return prepared


def _check_layers(prepared: Prepared) -> None:
    """InputError where approx=last:L asks for more layers than the model has."""
    approximation = Approximation.parse(prepared.config.approx_choice)
    if approximation.kind == "last":
        try:
            approximation.moving(Network(prepared.initial))
        except ValueError as error:
            raise InputError(error) from error
