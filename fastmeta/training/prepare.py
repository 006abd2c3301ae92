"""Everything that a run needs and that can be wrong: loaded, split, resolved, built and tried, before it begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fastmeta.data import (
    DATA_FORMS,
    PILOT,
    Dataset,
    HoldOut,
    InputError,
    Pool,
    Settings,
    Splits,
    as_dataset,
    derived_seed,
    is_data,
    load_dataset,
    split,
)
from fastmeta.data.noise import lasting as lasting_noise
from fastmeta.data.sources import lasting as lasting_name
from fastmeta.data.sources import lasting_path, lasting_root, with_superclasses
from fastmeta.distributed import ALONE, Ranks
from fastmeta.functional.network import Network
from fastmeta.meta.approximation import Approximation
from fastmeta.training import global_generators, on_ranks
from fastmeta.training.build import build_model, inner_module, kind_of, with_other_weights
from fastmeta.training.canaries import Canaries
from fastmeta.training.config import CUSTOM, DataConfig, TrainConfig
from fastmeta.training.device import memory_format, pick_device
from fastmeta.training.model_copy import copy_of
from fastmeta.training.modes import wholly_in_eval
from fastmeta.training.module_state import is_plain
from fastmeta.training.pilot import noise_of, pilot_epochs
from fastmeta.training.presets import preset_noise, resolve, without_search
from fastmeta.training.rundir.checkpoint import pack
from fastmeta.training.rundir.files import new_digest
from fastmeta.training.rundir.places import lasting_options
from fastmeta.training.search import Search, plan
from fastmeta.training.stage import Stage, TrainingError
from fastmeta.training.stage_names import is_trial
from fastmeta.training.store_choice import settled, store_in_words
from fastmeta.training.trial import Trial, with_weights

Data = Any  # of `fastmeta.data.as_dataset`
#: what a config says of how a data set is read
CHOSEN = (
    *("given", "truth", "root", "download", "superclasses", "image_size", "skip_corrupt", "resident"),
    *("label_column", "truth_column", "split_column"),
)


@dataclass
class Prepared:
    """What :func:`prepare` gives."""

    config: TrainConfig  # resolved
    splits: Splits
    data: Pool
    initial: nn.Module  # each stage starts from a copy
    device: torch.device
    few: Any  # network input of a few training samples
    found: tuple[str, ...] = ()  # of the model, for `notes`
    canaries: Canaries | None = None  # once their given labels are known
    search: Search | None = None  # until it has chosen
    of_ranks: tuple[str, ...] = ()  # lines for `about`

    @property
    def ranks(self) -> Ranks:
        return self.data.ranks

    @property
    def stages(self) -> tuple[str, ...]:
        """In this order: a pilot where canaries need one, trials of a search, the method, baselines."""
        chosen = self.splits.chosen
        pilot = (PILOT,) if chosen is not None and chosen.given is None else ()
        trials = () if self.search is None else (trial.name for trial in self.search.trials)
        return (*pilot, *trials, self.config.method, *self.config.baseline_names())

    @property
    def recorded(self) -> TrainConfig:
        """The config that makes this run: `config`, or one that searches for it."""
        return self.config if self.search is None else self.search.asked

    def choose(self, name: str) -> None:
        """The run is made with this candidate of the search."""
        assert self.search is not None
        self.config, self.search = self.search[name].config, None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before it starts."""
        notes = (*self.splits.notes, *([] if self.data.note is None else [self.data.note]), *self.found)
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

    @cached_property
    def initial_digest(self) -> str | None:
        """Of the initial weights of a module that was given; a config's own come from its seed."""
        if not str(self.config.model).startswith(CUSTOM):
            return None
        state = {k: v for k, v in self.initial.state_dict().items() if is_plain(v)}
        return new_digest(pack(state, {})).hexdigest()

    @property
    def about_canaries(self) -> str | None:
        """One line on what they are, or on why there are none; None where the config has none."""
        splits, config = self.splits, self.config
        if splits.canaries is None:
            return f"canaries: none, {splits.no_canaries}" if splits.no_canaries else None
        how = "with the labels of before they were checked"
        if PILOT in self.stages:
            count = pilot_epochs(config)
            pilot = f"a pilot of {count} epoch{'s' * (count > 1)}"
            how = f"some with wrong labels, drawn from the noise that {pilot} finds"
        return f"canaries: {len(splits.canaries):,} clean {splits.train.source.noun} are trained on, {how}"

    @property
    def about(self) -> list[str]:
        """Lines on canaries, on the search, on ranks, and on a label table that is not on the device."""
        of_search = None if self.search is None else f"search: {self.search}"
        table = store_in_words(self.config, self.data.clean_start, self.splits.num_classes)
        return [line for line in (self.about_canaries, of_search, *self.of_ranks, table) if line is not None]

    def draw_canaries(self, pilot: Stage) -> None:
        """Wrong labels for some of them, from the noise that the pilot has found."""
        assert self.splits.canaries is not None
        try:
            transition, shares = noise_of(pilot)
        except FloatingPointError as error:
            raise TrainingError(f"{pilot.name}: {error}: training has diverged; lower optim.lr") from error
        self.canaries = Canaries.drawn(self.splits.canaries.y, transition, shares, self.config.seed)

    def stage(self, name: str) -> Stage:
        config, own = self.config, is_trial(name) or name == self.config.method
        if is_trial(name):
            assert self.search is not None
            config = self.search[name].trial or config
        return Stage(name, config, self.data, self.build, self.canaries if own else None)

    def build(self, name: str) -> nn.Module:
        """A network of a stage's own: "model" is a copy of the initial one, every other name has other weights."""
        if name == "model":
            return copy_of(self.initial)
        with global_generators.kept():
            global_generators.seed_all(derived_seed(self.config.seed, f"weights of {name}"))
            if not str(self.config.model).startswith(CUSTOM):
                made = build_model(self.config, self.splits.num_classes, self.splits.train.source.input_shape)
                return with_weights(made, tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, self.few))
            return with_other_weights(copy_of(self.initial))


def load_data(config: TrainConfig, data: Data | None = None) -> tuple[TrainConfig, Dataset]:
    """The data set of a run, and the config that finds it again from anywhere. Raises InputError."""
    if data is not None and not is_data(data):
        raise InputError(f"data must be {DATA_FORMS}, got {kind_of(data)}")
    of, usual = config.data, config.method_class().meta_fraction  # or an error before the data are read
    of = replace(
        of,
        split_seed=of.split_seed or 0,
        meta_fraction=usual if of.meta_fraction is None else of.meta_fraction,
    )
    config = replace(config, data=of)
    if data is None:
        dataset = load_dataset(config.dataset, seed=of.split_seed or 0, **{name: getattr(of, name) for name in CHOSEN})
        # what is there now is not fetched again, by whoever the run's config comes to
        config = replace(config, data=replace(of, root=lasting_root(config.dataset, of.root), download=False))
    else:
        _check_unread(of)
        dataset = as_dataset(data)
        config = replace(config, dataset=f"{CUSTOM}{dataset.name}")
    if (file := config.data.superclasses) is not None:
        dataset = with_superclasses(dataset, file) if data is not None else dataset
        config = replace(config, data=replace(config.data, superclasses=lasting_path(file)))
    config = replace(config, dataset=type(config.dataset)(lasting_name(config.dataset)))
    if config.noise is not None:
        config = replace(config, noise=type(config.noise)(lasting_noise(config.noise)))
    return lasting_options(config), dataset


def split_data(config: TrainConfig, dataset: Dataset) -> Splits:
    """The parts that a run trains and measures on; `config` as :func:`load_data` gives it. Raises InputError."""
    of = config.data
    assert of.split_seed is not None
    assert of.meta_fraction is not None
    return split(
        dataset,
        noise=preset_noise(config),
        seed=config.seed,
        canaries=config.labels.canaries if config.can_have_canaries else "off",
        hold_out=HoldOut(
            *(of.split_seed, of.meta_fraction, of.meta_count, of.meta_balanced, of.folds, of.fold, of.val_fraction),
            of_train=of.meta_is_train,
        ),
    )


def prepare(
    config: TrainConfig, *, model: nn.Module | None = None, data: Data | None = None, ranks: Ranks = ALONE
) -> Prepared:
    """Load, split, resolve, build. Raises InputError and writes nothing.

    Of several `ranks` each has its own training rows in `data`; `splits` are of all.
    """
    if config.data.download and data is None and ranks.size > 1:  # by one; the others find what is there then
        ranks.by_first(partial(_fetch, config))
    asked, config, splits, model, notes, of_ranks = ranks.together(partial(_read, config, model, data, ranks))
    device = pick_device(config.device, ranks)
    settings = _settings(config, device)
    # augmentation numbers the rows of a rank: what it draws must be others on each
    settings = replace(settings, seed=derived_seed(config.seed, "rank", ranks.rank)) if ranks.rank else settings
    whole = None if ranks.size == 1 else splits
    pool = Pool.of(splits.own(ranks), device, settings, config.data.resident, ranks, whole)
    rows = pool.clean_start, splits.num_classes
    asked, config = ranks.by_first(lambda: tuple(settled(c, *rows, device, ranks) for c in (asked, config)))
    build = partial(
        _build, asked, config, splits, pool, model, notes, (*of_ranks, *on_ranks.told(config, splits, ranks))
    )
    prepared = ranks.together(build)
    with torch.no_grad():  # one that was given may have begun otherwise on each
        ranks.spread(t for t in prepared.initial.state_dict().values() if is_plain(t))
    return prepared


def _fetch(config: TrainConfig) -> None:
    load_data(config)


def _read(
    config: TrainConfig, model: nn.Module | None, data: Data | None, ranks: Ranks
) -> tuple[TrainConfig, TrainConfig, Splits, nn.Module, tuple[str, ...], list[str]]:
    """Config as asked for and resolved, splits, the network as it begins, lines on it and on ranks."""
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {kind_of(model)}")
    pick_device(config.device, ranks)
    on_ranks.check(config, ranks)
    config, of_ranks = on_ranks.without_canaries(config, ranks)
    config, dataset = load_data(config, data)
    splits = split_data(config, dataset)
    notes: tuple[str, ...] = ()
    if model is not None:
        model, notes = inner_module(model)
        config = replace(config, model=CUSTOM + type(model).__name__)
    asked, config = config, resolve(without_search(config) if config.labels.searches else config, splits, ranks)
    on_ranks.check_baselines(config, splits, ranks)
    if model is None:
        global_generators.seed_all(derived_seed(config.seed, "weights"))
        model = build_model(config, splits.num_classes, splits.train.source.input_shape)
    return asked, config, splits, model, notes, of_ranks


def _build(
    asked: TrainConfig,
    config: TrainConfig,
    splits: Splits,
    pool: Pool,
    model: nn.Module,
    notes: tuple[str, ...],
    of_ranks: tuple[str, ...],
) -> Prepared:
    """All is tried that can be wrong with the network."""
    device = pool.device
    sizes = config.data.batch_size, config.data.meta_batch_size
    x: Any = pool.few(min(2, *(size or 2 for size in sizes)))
    if config.mixup is not None and not (isinstance(x, Tensor) and x.is_floating_point()):
        raise InputError(
            f"mixup={config.mixup:g} mixes numbers, and samples of {config.dataset} reach the network as others; "
            "leave it out"
        )
    with global_generators.kept():
        global_generators.seed_all(derived_seed(config.seed, "weights"))
        model = with_weights(model, x, splits.train.source.noun)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"model {config.model} has no parameter to train: none requires a gradient")
    bf16 = config.precision == "bf16"
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
    notes += Trial(model, str(config.model), x, splits.num_classes, autocast, device, splits.train.source.noun)()
    search = plan(asked, splits, pool) if asked.labels.searches else None
    known = Canaries.known(splits, config.seed)
    prepared = Prepared(config, splits, pool, model, device, x, notes, known, search, of_ranks)
    _check_layers(prepared)
    return prepared


def _check_unread(of: DataConfig) -> None:
    """InputError for an option on how a data set is read, where the data are there already."""
    for name in CHOSEN:
        value = getattr(of, name)
        if name not in ("superclasses", "resident") and value != getattr(DataConfig, name):
            raise InputError(
                f"data.{name}={value} is about how a data set is read by its name, and the data were given in Python; "
                "leave it out"
            )


def _settings(config: TrainConfig, device: torch.device) -> Settings:
    on_cuda = device.type == "cuda"
    return Settings(
        seed=config.seed,
        augment=config.data.augment or "none",
        padding=config.data.padding,
        pad_mode=config.data.pad_mode,
        mean=config.data.mean,
        std=config.data.std,
        standardise=config.data.standardise,
        workers=config.data.workers,
        # what the first layer would round its input to under autocast
        dtype=torch.bfloat16 if on_cuda and config.precision == "bf16" else torch.float32,
        memory_format=memory_format(device),
    )


def _check_layers(prepared: Prepared) -> None:
    """InputError where approx=last:L asks for more layers than the model has."""
    approximation = Approximation.parse(prepared.config.approx_choice)
    if approximation.kind == "last":
        try:
            approximation.moving(Network(prepared.initial))
        except ValueError as error:
            raise InputError(error) from error
