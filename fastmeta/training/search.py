"""labels.label_lr=search: trials say how far labels should move and from where, or that they should stay.

Candidates are "none", labels that stay as they are given, and then settings of the update that is asked for:

    update   tried, as a multiple of the default     beside labels.target_prob
    exact    labels.label_step (else label_lr)       the default, and a soft one
    epoch    labels.eta and labels.steps             the same

Each is trained in a shorter run, a trial; what becomes of "none" is known without one. A trial takes its share of the
epochs of every part of the run, and its labels go as much faster. Candidates are judged in their order: one replaces
the best of those before where :meth:`Canaries.choose` finds it better by more than chance, which is split among all
trials. The canaries that report have no say. Then the run is made with what has won.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmeta._text import shown
from fastmeta.data import InputError, Pool, Splits
from fastmeta.data.canary_rows import LEAST_ASKED
from fastmeta.training.canaries import Canaries
from fastmeta.training.config import TrainConfig
from fastmeta.training.label_moves import plain_steps_of
from fastmeta.training.pilot import pilot_epochs
from fastmeta.training.presets import TRIED, resolve, without_search
from fastmeta.training.sections import OPTIONS_OF, LabelConfig
from fastmeta.training.stage_names import trial_name

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage

#: epochs of a trial, at least, as a share of the run's: benchmarks/label_search.py
LEAST_SHARE = 0.5
#: of the default, in the order in which they are tried with each start: those of exact steps; of epochs, and their K
EXACT_RATES, EPOCH_RATES, EPOCH_STEPS = (1, 3, 1 / 3), (1, 3), (1, 3)
#: the candidate that needs no trial
NONE = "none"


@dataclass(frozen=True)
class Candidate:
    """Settings of the table [labels], and what they make of the run."""

    name: str
    settings: Mapping[str, Any]
    config: TrainConfig  # of the run itself, resolved
    trial: TrainConfig | None = None  # of the trial
    cost: float = 0.0  # of the trial, in runs of the default


@dataclass
class Search:
    """The candidates of a run, and what has become of those that were tried."""

    asked: TrainConfig  # with labels.label_lr=search
    usual: TrainConfig  # the same without
    candidates: tuple[Candidate, ...]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name, as JSON holds them

    @property
    def trials(self) -> tuple[Candidate, ...]:
        return tuple(c for c in self.candidates if c.trial is not None)

    @property
    def cost(self) -> float:
        """Of all trials, in runs."""
        return sum(c.cost for c in self.candidates)

    def __getitem__(self, name: str) -> Candidate:
        """ValueError for a name that no candidate has."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise ValueError(f"no candidate of the search is called {shown(name)}")

    def keep(self, stage: Stage, failed: str | None) -> None:
        """The labels of the canaries at the end of a trial, or why there are none."""
        learned = None
        if failed is None:
            assert stage.kept is not None
            # and not those of the epoch that is best by the same canaries, which chance alone would make better
            learned = stage.kept.learned().tolist()
        self.results[stage.name] = {
            "settings": dict(self[stage.name].settings),
            "learned": learned,
            "failed": failed,
            "seconds": stage.seconds,
        }

    def load(self, results: Mapping[str, Any], count: int) -> None:
        """ValueError for what :meth:`keep` has not given for these candidates and `count` canaries."""
        for name, result in results.items():
            if self[name].settings != result["settings"]:
                raise ValueError(f"it tried {result['settings']} as {name}, expected {dict(self[name].settings)}")
            if result["failed"] is None and len(result["learned"] or ()) != count:
                raise ValueError(f"it holds no labels of the {count} canaries behind {name}")
        self.results = {name: dict(result) for name, result in results.items()}

    def told(self, stage: Stage) -> str:
        """What has come of a trial, in a line."""
        name, result = stage.name, self.results[stage.name]
        line = f"{name}, {settings_in_words(result['settings'])}"
        if stage.kept is None or result["failed"] is not None:
            return f"{line}: failed"
        _, told = stage.kept.canaries.choose({name: np.asarray(result["learned"])})
        return f"{line}: {told[name]['right_by_choosing']:.1%} of the labels right by the canaries that choose"

    def choose(self, canaries: Canaries) -> dict[str, Any]:
        """What summary.json says under `search`."""
        best, learned = NONE, {NONE: canaries.given}
        _, told = canaries.choose(learned)
        rows = [self._row(self[NONE], None, None, told[NONE])]
        for trial in self.trials:
            result = self.results[trial.name]
            if result["failed"] is not None:
                rows.append(self._row(trial, result["failed"], None, {}))
                continue
            learned[trial.name] = np.asarray(result["learned"], np.int64)
            pair = {name: learned[name] for name in (best, trial.name)}
            chosen, told = canaries.choose(pair, among=len(self.trials))
            rows.append(self._row(trial, None, best, told[trial.name]))
            best = chosen
        return {
            "budget": self.asked.labels.search_budget,
            "cost": self.cost,
            "epochs": self.epochs,
            "seconds": sum(result["seconds"] for result in self.results.values()),
            "chosen": best,
            "candidates": rows,
        }

    @staticmethod
    def _row(
        candidate: Candidate, failed: str | None, against: str | None, told: Mapping[str, float | None]
    ) -> dict[str, Any]:
        return {
            "name": candidate.name,
            "settings": dict(candidate.settings),
            "cost": candidate.cost,
            "failed": failed,
            "against": against,
            "right_by_choosing": told.get("right_by_choosing"),
            "chance": told.get("chance"),
        }

    @property
    def epochs(self) -> int:
        """Of each trial."""
        return next(trial.trial.epochs or 0 for trial in self.trials if trial.trial is not None)

    def __str__(self) -> str:
        """What it will do, in a line."""
        return (
            f"{len(self.trials)} trial{'s' * (len(self.trials) > 1)} of {self.epochs} of {self.usual.epochs} epochs, "
            f"{self.cost:.1f} times the cost of the run (labels.search_budget={self.asked.labels.search_budget:g})"
        )


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """label_step=0.3, target_prob=0.4."""
    if settings.get("update") == NONE:
        return "labels that stay"
    return ", ".join(f"{name}={settings[name]:g}" for name in ("label_lr", *TRIED) if name in settings)


def in_words(told: Mapping[str, Any]) -> str:
    """A summary's `search`: labels move by label_step=0.9, target_prob=0.4, the choice of canaries among 6 trials."""
    rows = {row["name"]: row for row in told["candidates"]}
    chosen, stays = rows[told["chosen"]], rows[NONE]
    right = f"{chosen['right_by_choosing']:.1%} right by those that choose"
    if told["chosen"] == NONE:
        return (
            f"search: labels stay as they are, {right}; none of {len(rows) - 1} trials was better by more than chance"
        )
    of = f"of {len(rows) - 1} trials" if len(rows) > 2 else "the only trial"
    return (
        f"search: {settings_in_words(chosen['settings'])}, which canaries choose {of}; {right}, "
        f"{stays['right_by_choosing']:.1%} as given"
    )


def plan(config: TrainConfig, splits: Splits, pool: Pool) -> Search:
    """The search that a config asks for. InputError where no canaries can judge, or the budget pays no trial."""
    if splits.canaries is None:
        raise InputError(_no_canaries(splits))
    asked = resolve(config, splits)
    usual = resolve(without_search(asked), splits)
    budget, epochs = asked.labels.search_budget or 0.0, usual.epochs or 1
    whole = plain_steps_of(usual, pool)
    configs = [
        (some, resolve(replace(usual, labels=replace(usual.labels, **some)), splits))
        for some in _grid(asked.labels, usual, splits.num_classes)
    ]

    def tried(length: int) -> list[Candidate]:
        found = []
        for number, (settings, own) in enumerate(configs, 1):
            trial = shorter(own, length)
            cost = plain_steps_of(trial, pool) / whole
            found.append(Candidate(trial_name(number), settings, own, trial, cost))
        return found

    least = max(math.ceil(LEAST_SHARE * epochs), min(2, epochs))
    for length in range(epochs, least - 1, -1):  # as long as the budget lets all of them be
        found = tried(length)
        if sum(c.cost for c in found) <= budget:
            break
    while sum(c.cost for c in found) > budget:
        *found, last = found
        if not found:
            raise InputError(
                f"labels.search_budget={budget:g} pays no trial: one of {least} of {epochs} epochs costs "
                f"{last.cost:.2g} of a run; give more"
            )
    return Search(asked, usual, (_staying(usual), *found))


def shorter(config: TrainConfig, epochs: int) -> TrainConfig:
    """A resolved config over so many epochs: each part of the run in proportion, labels faster to go as far."""
    labels, whole = config.labels, config.epochs or 1

    def share(of: int | None) -> int | None:
        return min(max(1, round(of * epochs / whole)), max(1, epochs - 1)) if of else of

    warmup = share(labels.warmup_epochs) or 0
    first = 0 if labels.update == "exact" else 1  # labels that move between epochs do not behind the last one
    moving, left = (n - max(first, w) for n, w in ((whole, labels.warmup_epochs or 0), (epochs, warmup)))
    name = labels.rate_name.removeprefix("labels.")
    rate = {name: getattr(labels, name) * (moving / left)}
    return replace(
        config,
        epochs=epochs,
        max_steps=config.max_steps if epochs == whole else None,
        labels=replace(labels, warmup_epochs=warmup, **rate),
        optim=replace(config.optim, warmup=share(config.optim.warmup)),
    )


def _staying(usual: TrainConfig) -> Candidate:
    """Labels that stay as they start, behind a warm-up as long as the pilot, which goes by it."""
    others = {key for keys in OPTIONS_OF.values() for key in keys} - set(OPTIONS_OF["none"])
    settings: dict[str, Any] = {
        "update": "none",
        "target_prob": usual.labels.target_prob,
        "warmup_epochs": pilot_epochs(usual),
    }
    without = {key: getattr(LabelConfig, key) for key in others}
    labels = replace(usual.labels, **without, **settings)
    plain = replace(usual, labels=labels, approx="none", watch_every=None, compile="off")
    return Candidate(NONE, settings, plain)


def _grid(asked: LabelConfig, usual: TrainConfig, classes: int) -> list[dict[str, Any]]:
    """Settings of the trials, the default ones among them."""
    labels = usual.labels
    name = labels.rate_name.removeprefix("labels.")
    starts = (soft_start(classes), labels.target_prob) if asked.target_prob is None else (asked.target_prob,)
    rates = EPOCH_RATES if labels.update == "epoch" else EXACT_RATES
    steps = EPOCH_STEPS if labels.update == "epoch" and asked.steps is None else (1,)
    found: list[dict[str, Any]] = []
    for rate, count, start in product(rates, steps, starts):
        usual_rate = getattr(labels, name)
        settings = {name: usual_rate if rate == 1 else float(f"{rate * usual_rate:.3g}"), "target_prob": start}
        if labels.update == "epoch":
            settings["steps"] = count * (labels.steps or 1)
        if settings not in found:
            found.append(settings)
    return found


def soft_start(classes: int) -> float:
    """A probability of the given class that is soon overtaken, and leads all the same: 0.4, 0.47 of three classes."""
    return round(max(0.4, 1.4 / classes), 2)


def _no_canaries(splits: Splits) -> str:
    count = len(splits.meta)
    most = min(count - len(np.unique(splits.meta.y)), count // 2)
    way = f"take some all the same (--labels.canaries N, from {LEAST_ASKED} to {most})"
    if most < LEAST_ASKED:
        way = f"bring more, {2 * LEAST_ASKED} at least, and say how many are canaries (--labels.canaries N)"
    return f"labels.label_lr=search is judged by canaries, and there are none: {splits.no_canaries}; {way}"
