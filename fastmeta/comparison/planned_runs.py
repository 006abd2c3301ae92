"""Which runs a comparison has: its methods at each point of the grid, and plain training, always beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastmeta._numbers import as_whole
from fastmeta._text import shown
from fastmeta._trust import Untrusted
from fastmeta.comparison.grid import OWN, SOFT_START, Grid, checked_grid, has, in_text, points, read_grid
from fastmeta.data import InputError
from fastmeta.methods import METHODS, Method, method_class
from fastmeta.methods.label_store import check_one_run
from fastmeta.recipes import Recipe
from fastmeta.training import TrainConfig
from fastmeta.training.option_names import names_of, near
from fastmeta.training.rundir import lasting
from fastmeta.training.values import one_of

#: beside a method: given labels as they are, with all that one run of them gives; and the softened start, never moved
METHOD, PLAIN, SOFTENED = "method", "plain", "softened"
#: probability of the given class in that start where nobody says; of two classes it is more than chance
TARGET_PROB, TARGET_PROB_OF_TWO = 0.4, 0.7
#: clean steps of "given, then fine-tuned", where nobody says
FINETUNE_STEPS = 100
MOST_SEEDS, MOST_RUNS = 1000, 10_000
#: all methods of the registry
ALL = "all"
#: of a folder's name
_MOST_NAME = 100


@dataclass(frozen=True)
class Setting:
    """A method at one point of the grid: a run for each seed."""

    name: str  # of its folder
    kind: str
    method: str
    point: Mapping[str, Any] = field(default_factory=dict)  # options of the grid that it has
    tried: int = 1  # points of this method
    config: TrainConfig | None = None  # without seed and out; None of a refused one
    refused: str = ""  # why no run of it can be
    teacher: str = ""  # the setting whose run of the same seed it learns from
    soft_by_default: bool = False  # the softened start, where nobody says how soft


@dataclass(frozen=True)
class PlannedRun:
    """One run: a setting with a seed."""

    setting: Setting
    seed: int
    path: Path
    config: TrainConfig | None

    @property
    def name(self) -> str:
        return f"{self.setting.name}/seed{self.seed}"

    def config_for(self, num_classes: int | None) -> TrainConfig | None:
        """The config once the number of classes is known, None while it is not."""
        if self.config is None or not self.setting.soft_by_default or num_classes != 2:
            return self.config
        return replace(self.config, options={"target_prob": TARGET_PROB_OF_TWO})


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    methods: tuple[str, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    grid: Mapping[str, tuple[Any, ...]]
    new_splits: bool  # whether data.split_seed is each run's seed

    def runs(self, folder: Path) -> Iterator[PlannedRun]:
        """Seed by seed, so that whoever stops early has all rows of some."""
        for seed in self.seeds:
            for setting in self.settings:
                path, config = folder / setting.name / f"seed{seed}", setting.config
                if config is not None:
                    config = replace(config, seed=seed, out=str(path))
                    if self.new_splits:
                        config = replace(config, data=replace(config.data, split_seed=seed))
                    if setting.teacher:
                        teacher = (folder / setting.teacher / f"seed{seed}").absolute()
                        config = replace(config, options=replace(config.options, teacher=str(teacher)))
                yield PlannedRun(setting, seed, path, config)


def make_plan(
    recipe: Recipe,
    *,
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    grid: Grid | Sequence[str] | None = None,
    over: Mapping[str, Any] | None = None,
    new_splits: bool = False,
    trust_code: bool = False,
) -> Plan:
    """What :func:`fastmeta.compare` takes, checked.

    Raises:
        InputError: what cannot be compared at all, such as a recipe that plain training refuses. What one method alone
            refuses is `Setting.refused`.
    """
    over = dict(over or {})
    names = _methods(recipe, methods, trust_code)
    classes = {name: _class(name) for name in names}
    every = [*classes.values(), METHODS["onehot"]]
    _check_over(over, every)
    if new_splits and over.get("data.split_seed") is not None:
        raise InputError("data.split_seed draws one split for all seeds, and new_splits one for each; leave one out")
    found_grid = checked_grid(grid, every) if isinstance(grid, Mapping) else read_grid(grid or (), every)
    count = as_whole(recipe.seeds if seeds is None else seeds)
    if count is None or not 1 <= count <= MOST_SEEDS:
        raise InputError(f"seeds must be a whole number from 1 to {MOST_SEEDS:,}, got {shown(seeds)}")
    plain = _config(recipe, "onehot", over, {}, trust_code)
    maker = _Maker(recipe, over, found_grid, trust_code)
    made = [*maker.settings(PLAIN, "onehot", METHODS["onehot"])]
    made += maker.settings(SOFTENED, "label_smoothing", METHODS["label_smoothing"])
    for name in names:
        if name != "onehot":
            made += maker.settings(METHOD, name, classes[name])
    # whoever learns from another's run comes behind it
    settings = tuple(sorted(_with_teachers(made), key=lambda s: bool(s.teacher)))
    first = plain.seed
    if len(settings) * count > MOST_RUNS:
        raise InputError(f"{len(settings):,} settings × {count:,} seeds are more than {MOST_RUNS:,} runs; take fewer")
    return Plan(recipe, tuple(names), settings, tuple(range(first, first + count)), found_grid, new_splits)


def _methods(recipe: Recipe, methods: Sequence[str] | None, trust_code: bool) -> list[str]:
    """Names, each once. Those of the caller are trusted."""
    if methods is None:
        names: list[str] = [str(name) if trust_code else name for name in recipe.methods]
    elif isinstance(methods, str) or not all(isinstance(name, str) for name in methods):
        raise InputError(f"methods must be a list of names, got {shown(methods)}")
    else:
        # replay needs a folder that only its user can name
        names = [name for name in METHODS if name != "replay"] if list(methods) == [ALL] else list(methods)
    if not names:
        raise InputError("methods is empty; name one at least")
    for name in names:
        if ":" not in name:
            one_of("methods", name, tuple(METHODS))
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise InputError(f"methods has {twice[0]} twice; leave one out")
    for name in names:
        if isinstance(name, Untrusted) and name not in METHODS:
            raise InputError(
                f"{recipe.name} names code as a method, {shown(name)}, which is not run without --trust-code "
                "(trust_code=True)"
            )
    return names


def _check_over(over: Mapping[str, Any], methods: Sequence[type[Method]]) -> None:
    """Options that are laid over the recipe: some method has each."""
    known = list(names_of(TrainConfig))
    for key in over:
        if key in ("method", "out", "baselines"):
            way = {"method": "name methods", "out": "name out beside", "baselines": "all of them always are"}
            raise InputError(f"{key} is decided by the comparison: {way[key]}")
        if key.startswith(OWN):
            raise InputError(f"{key} is about one method; give it as a grid of one value: --grid {key}=VALUE")
        if key not in known:
            close = near(str(key), known)
            hint = f"; did you mean {' or '.join(close)}?" if close else ", which is named as optim.lr is"
            raise InputError(f"unknown option {shown(key)}{hint}")
        if key != SOFT_START and not any(has(method, key) for method in methods):
            raise InputError(f"no method of this comparison has the option {key}; leave it out")


def _class(name: str) -> type[Method]:
    try:
        return method_class(name)
    except ValueError as error:
        raise InputError(f"methods: {error}") from error


def _config(
    recipe: Recipe,
    method: str,
    over: Mapping[str, Any],
    point: Mapping[str, Any],
    trust_code: bool,
    finetune_steps: int = 0,
) -> TrainConfig:
    """The recipe's config for `method`; what is laid over it, as far as the method has it.

    `finetune_steps` are those where nobody says any.

    Options of the recipe that other methods have are left out, as a plain config file of one method has them.
    """
    cls = _class(method)
    own: dict[str, Any] = {key: None for key in _tabled(recipe.values(method)) if not has(cls, key)}
    own |= {key: value for key, value in {**over, **point}.items() if has(cls, key)}
    own["finetune_steps"] = own.get("finetune_steps", recipe.values(method).get("finetune_steps")) or finetune_steps
    if not own["finetune_steps"]:
        own["finetune_lr"] = None
    config = recipe.config(method, **own)
    check_one_run(config.labels.store, "a comparison")
    return config.trusted() if trust_code else config


def _tabled(values: Mapping[str, Any]) -> list[str]:
    """Options of a nested mapping, as table.option; without those of its method."""
    names = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            names += [f"{key}.{own}" for own in value] if key != "method" else []
        else:
            names.append(key)
    return names


@dataclass
class _Maker:
    recipe: Recipe
    over: Mapping[str, Any]
    grid: Mapping[str, tuple[Any, ...]]
    trust_code: bool
    taken: set[str] = field(default_factory=set)

    def settings(self, kind: str, method: str, cls: type[Method]) -> Iterator[Setting]:
        """One for each point of the options of the grid that it has."""
        found = points(self.grid, [key for key in self.grid if self._has(kind, cls, key)])
        if kind == SOFTENED:  # a start that is said by a value and by the default is one
            starts = [{**point, SOFT_START: self._soft(point) or TARGET_PROB} for point in found]
            found = [point for k, point in enumerate(found) if starts[k] not in starts[:k]]
        for point in found:
            name = self._name(method if kind == METHOD else kind, point)
            try:
                config, refused = self._config(kind, method, point), ""
            except InputError as error:
                if kind == PLAIN:
                    raise
                config, refused = None, str(error)
            soft = kind == SOFTENED and self._soft(point) is None
            yield Setting(name, kind, method, point, len(found), config, refused, soft_by_default=soft)

    def _has(self, kind: str, cls: type[Method], key: str) -> bool:
        if kind == SOFTENED and (key == SOFT_START or key.startswith(OWN)):
            return key == SOFT_START
        if key in ("finetune_steps", "finetune_lr") and kind != PLAIN:
            return bool(self.over.get("finetune_steps", self.recipe.tables.get("finetune_steps")))
        return has(cls, key)

    def _config(self, kind: str, method: str, point: Mapping[str, Any]) -> TrainConfig:
        steps = FINETUNE_STEPS if kind == PLAIN else 0
        config = _config(self.recipe, method, self.over, point, self.trust_code, steps)
        config = replace(config, baselines="union,clean" if kind == PLAIN else "none")
        if kind == SOFTENED:
            soft = self._soft(point)
            config = replace(config, options={"target_prob": TARGET_PROB if soft is None else soft})
        return config

    def _soft(self, point: Mapping[str, Any]) -> float | None:
        """The probability of the given class that labels start with, where somebody says."""
        soft = {**self.over, **point}.get(SOFT_START)
        told = self.recipe.values("instance_labels").get("labels", {})
        return told.get("target_prob") if soft is None else soft

    def _name(self, base: str, point: Mapping[str, Any]) -> str:
        """Of a folder: one that no other setting has, the same in every plan with this method and grid."""
        words = [base, *(f"{key.rpartition('.')[2]}={in_text(value)}" for key, value in point.items())]
        stem = re.sub(r"[^\w.=+-]", "_", "-".join(words), flags=re.ASCII)[:_MOST_NAME]
        name, number = stem, 1
        while name in self.taken:
            number += 1
            name = f"{stem}-{number}"
        self.taken.add(name)
        return name


def _wants_teacher(options: Any) -> bool:
    return getattr(options, "teacher", None) == "" and not getattr(options, "labels", "")


def _with_teachers(settings: Sequence[Setting]) -> list[Setting]:
    """Those that learn from a finished run and name none learn from this comparison's run of learned labels."""
    learning = [s for s in settings if s.config is not None and s.config.method_class().learns_labels]
    learning.sort(key=lambda s: s.method != "instance_labels")
    found = []
    for setting in settings:
        options = None if setting.config is None else setting.config.options
        if _wants_teacher(options):
            if learning:
                setting = replace(setting, teacher=learning[0].name)
            else:
                way = "add instance_labels to the methods, or give --grid method.teacher=RUN"
                refused = f"method={setting.method} needs a finished run to learn from; {way}"
                setting = replace(setting, config=None, refused=refused)
        found.append(setting)
    return found


def identity(plan: Plan) -> dict[str, Any]:
    """What must not change under a comparison that goes on, as JSON holds it; methods and seeds may become more."""

    def of(setting: Setting) -> Any:
        if setting.config is None:
            return None
        return {k: v for k, v in lasting(setting.config).items() if k != "seed"}

    return {
        "recipe": plan.recipe.name,
        "methods": list(plan.methods),
        "seeds": list(plan.seeds),
        "grid": {key: list(values) for key, values in plan.grid.items()},
        "new_splits": plan.new_splits,
        "settings": {s.name: of(s) for s in plan.settings},
    }
