"""What the runs of a comparison come to: a row for each model, which one of a search is chosen, and who leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastmeta.comparison.grid import in_text
from fastmeta.comparison.planned_runs import METHOD, PLAIN, SOFTENED, Setting
from fastmeta.data import InputError
from fastmeta.report.run_folder import spread
from fastmeta.report.run_report import checked_metrics
from fastmeta.training.config import CUSTOM, TrainConfig, is_code
from fastmeta.training.rundir import CONFIG, SUMMARY, read, read_summary

#: figures of a row, of each seed
FIGURES = ("last", "best", "val_selected", "val_last", "nll", "ece", "seconds")


@dataclass(frozen=True)
class Done:
    """What a comparison keeps of a finished run."""

    seed: int
    summary: Mapping[str, Any]
    config: TrainConfig  # resolved
    steps: int


@dataclass(frozen=True)
class Row:
    """One model, over the seeds."""

    name: str  # onehot, finetuned, union, clean, softened, a method, or one of these and "_finetuned"
    title: str
    setting: Setting
    seeds: tuple[int, ...]
    figures: Mapping[str, tuple[float | None, ...]]  # by `FIGURES`, of each seed; accuracies in [0, 1]
    facts: Mapping[str, Any]
    failed: tuple[tuple[int, str], ...] = ()
    chosen: bool | None = None  # by validation, of several points; None of one point, or where nothing can choose
    label_accuracy: tuple[float | None, ...] = ()

    def mean(self, figure: str) -> float | None:
        found = spread(self.figures[figure])
        return None if found is None else found[0]

    def sd(self, figure: str) -> float | None:
        found = spread(self.figures[figure])
        return None if found is None else found[1]

    @property
    def whole(self) -> bool:
        """Whether all of its seeds have figures."""
        return not self.failed and bool(self.seeds)

    @property
    def clean_data(self) -> int | None:
        """Rows with right labels that it has seen or was chosen by; None where nobody knows."""
        clean = self.facts.get("clean_rows")
        return None if clean is None else clean + (self.facts["val_size"] if self.chosen else 0)

    def told(self) -> dict[str, Any]:
        """As comparison.json has it."""
        figures = {}
        for key, values in self.figures.items():
            found = spread(values)
            figures[key] = {"mean": found and found[0], "sd": found and found[1], "values": list(values)}
        return {
            "row": self.name,
            "title": self.title,
            "setting": self.setting.name,
            "method": self.setting.method,
            "point": dict(self.setting.point),
            "tuning_budget": self.setting.tried,
            "chosen": self.chosen,
            "seeds": list(self.seeds),
            "failed": [{"seed": seed, "message": message} for seed, message in self.failed],
            "clean_data": self.clean_data,
            **self.facts,
            **figures,
            **({"label_accuracy": list(self.label_accuracy)} if self.label_accuracy else {}),
        }


@dataclass
class _Gathered:
    seeds: list[int] = field(default_factory=list)
    stages: list[Mapping[str, Any]] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)
    seconds: list[float | None] = field(default_factory=list)


def done_run(path: Path, setting: Setting, seed: int) -> Done | None:
    """A finished run, None where there is none. InputError for a damaged one, or for that of another plan."""
    if not (path / SUMMARY).is_file():
        return None
    summary = read(path / SUMMARY, read_summary)
    if (summary["method"], summary["seed"]) != (setting.method, seed):
        raise InputError(f"{path} holds a run of method {summary['method']} and seed {summary['seed']}; move it away")
    lines = read(path / "metrics.jsonl", checked_metrics).get(summary["method"], [])
    return Done(seed, summary, TrainConfig.read(path / CONFIG), int(lines[-1].get("step", 0)) if lines else 0)


def standings(
    settings: Sequence[Setting],
    done: Mapping[str, Sequence[Done]],
    failed: Mapping[str, Sequence[tuple[int, str]]],
) -> list[Row]:
    """Rows in a fixed order; `done` and `failed` are by the name of a setting."""
    by_seed = {name: sorted(runs, key=lambda run: run.seed) for name, runs in done.items()}
    rows = [row for s in settings for row in _rows_of(s, by_seed.get(s.name, ()), failed.get(s.name, ()), by_seed)]
    return _with_choices(sorted(rows, key=lambda row: _order(row, settings)))


def _order(row: Row, settings: Sequence[Setting]) -> tuple[int, int, int]:
    """Plain training by its stages first, then the softened start, then methods in their own order."""
    number = next(k for k, s in enumerate(settings) if s.name == row.setting.name)
    stages = ("onehot", "union", "clean", "finetuned", "union_finetuned")
    stage = stages.index(row.name) if row.setting.kind == PLAIN else 0
    return ((PLAIN, SOFTENED, METHOD).index(row.setting.kind), stage, number)


def _rows_of(
    setting: Setting,
    runs: Sequence[Done],
    failed: Sequence[tuple[int, str]],
    done: Mapping[str, Sequence[Done]],
) -> list[Row]:
    config = setting.config
    tuned = config is not None and config.finetune_steps > 0
    own = {PLAIN: "onehot", SOFTENED: "softened"}.get(setting.kind, setting.method)
    stages: dict[str, tuple[str | None, bool]] = {own: (None, False)}  # by row: baseline, and whether fine-tuned
    if tuned:
        stages["finetuned" if setting.kind == PLAIN else f"{own}_finetuned"] = (None, True)
    if setting.kind == PLAIN:
        stages |= {"union": ("union", False), "clean": ("clean", False), "union_finetuned": ("union", True)}
    rows = []
    for name, (baseline, finetuned) in stages.items():
        found = _Gathered(failed=list(failed))
        for run in runs:
            _gather(found, run, baseline, finetuned)
        found.failed.sort()
        figures = {
            "last": [s.get("test_accuracy" if finetuned else "test_accuracy_last") for s in found.stages],
            "best": [s.get("test_accuracy_best") for s in found.stages],
            "val_selected": [s.get("test_accuracy_at_best_val") for s in found.stages],
            "val_last": [s.get("val_accuracy_last") for s in found.stages],
            "nll": [s.get("nll") for s in found.stages],
            "ece": [s.get("ece") for s in found.stages],
            "seconds": found.seconds,
        }
        learned = baseline is None and not finetuned and any(run.summary["learns_labels"] for run in runs)
        rows.append(
            Row(
                name,
                _title(setting, runs[0].config if runs else config, baseline, finetuned),
                setting,
                tuple(found.seeds),
                {key: tuple(values) for key, values in figures.items()},
                _facts(setting, runs, baseline, finetuned, done),
                tuple(found.failed),
                label_accuracy=tuple(run.summary["label_accuracy_final"] for run in runs) if learned else (),
            )
        )
    return rows


def _gather(found: _Gathered, run: Done, baseline: str | None, finetuned: bool) -> None:
    stage: Mapping[str, Any] = run.summary if baseline is None else run.summary["baselines"][baseline]
    seconds, message = stage["seconds"], stage.get("failed")
    if finetuned and not message:
        tuned = stage.get("finetuned") or {"failed": "it was not fine-tuned", "seconds": 0.0}
        stage, message, seconds = tuned, tuned["failed"], seconds + tuned["seconds"]
    if message:
        found.failed.append((run.seed, message))
        return
    found.seeds.append(run.seed)
    found.stages.append(stage)
    found.seconds.append(seconds)


def _title(setting: Setting, config: TrainConfig | None, baseline: str | None, finetuned: bool) -> str:
    if setting.kind == PLAIN:
        words = {None: "given labels", "union": "given and clean together", "clean": "clean alone"}[baseline]
    elif setting.kind == SOFTENED:
        soft = None if config is None else config.options.target_prob
        words = "given, softened" + ("" if soft is None else f" to {soft:.3g}") + ", never moved"
    else:
        words = setting.method + (f" of {setting.teacher}" if setting.teacher else "")
    if finetuned:
        words += ", then fine-tuned on clean"
    point = [f"{key}={in_text(value)}" for key, value in setting.point.items()]
    if setting.kind == SOFTENED:  # whose words have it already
        point = [word for word in point if not word.startswith("labels.target_prob=")]
    return ", ".join([words, *point])


def clean_rows(summary: Mapping[str, Any]) -> int:
    """Clean rows that a run's method has seen in training, canaries too."""
    if not summary.get("uses_clean", summary["uses_meta_batch"] or summary["learns_labels"]):
        return 0
    return int(summary["meta_size"]) + int((summary.get("canaries") or {}).get("count", 0))


def _facts(
    setting: Setting,
    runs: Sequence[Done],
    baseline: str | None,
    finetuned: bool,
    done: Mapping[str, Sequence[Done]],
) -> dict[str, Any]:
    """What is not a figure of a seed; nulls while no run is done."""
    if not runs:
        names = ("clean_rows", "val_size", "meta_size", "test_size", "train_size", "noise_rate", "epochs", "steps")
        return dict.fromkeys(names) | {"pretrained": None, "model": None, "trials": 0}
    summaries = [run.summary for run in runs]
    rates = [s["noise_rate"] for s in summaries]
    found = spread(rates)
    meta = max(s["meta_size"] for s in summaries)
    if baseline is not None or finetuned:
        clean: int | None = max(meta, *map(clean_rows, summaries))
    else:
        clean = max(map(clean_rows, summaries))
        if getattr(setting.config and setting.config.options, "teacher", None) is not None:
            teachers = done.get(setting.teacher, ()) if setting.teacher else ()
            clean = max([clean, *(clean_rows(run.summary) for run in teachers)]) if teachers else None
    own = baseline is None
    return {
        "clean_rows": clean,
        "trials": max(len((s.get("search") or {}).get("candidates", ())) for s in summaries) if own else 0,
        "val_size": max(s.get("val_size", 0) for s in summaries),
        "meta_size": meta,
        "test_size": summaries[0]["test_size"],
        "train_size": summaries[0]["train_size"],
        "noise_rate": None if found is None else found[0],
        "epochs": summaries[0]["epochs"],
        "steps": runs[0].steps,
        "pretrained": pretrained(summaries[0]["model"]),
        "model": summaries[0]["model"],
    }


def pretrained(model: str) -> bool | None:
    """Whether a config's model starts from weights trained elsewhere; None of code, which may do anything.

    Networks of the package and of the zoos are built without weights.
    """
    ours = model.startswith("fastmeta.models.")
    return None if model.startswith(CUSTOM) or (is_code("model", model) and not ours) else False


def _with_choices(rows: Sequence[Row]) -> list[Row]:
    """Of several points of a row, the one with the best mean validation accuracy behind the last epoch is chosen."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.setting.kind, row.setting.method, row.name), []).append(row)
    chosen: dict[int, bool] = {}
    for members in groups.values():
        able = [row for row in members if row.whole and row.mean("val_last") is not None]
        if len(members) > 1 and able:
            best = max(able, key=lambda row: row.mean("val_last") or 0.0)
            chosen |= {id(row): row is best for row in members}
    return [replace(row, chosen=chosen[id(row)]) if id(row) in chosen else row for row in rows]


def candidates(rows: Sequence[Row]) -> list[Row]:
    """Those that may be called the best: whole ones, of a search the chosen point alone."""
    fair = [row for row in rows if row.whole and row.mean("last") is not None]
    return [row for row in fair if row.setting.tried == 1 or row.chosen]


def leaders(rows: Sequence[Row]) -> str:
    """One sentence on the best row, and on the best one without clean data."""
    fair = candidates(rows)
    if not fair:
        tested = any(value is not None for row in rows for value in row.figures["last"])
        if not any(row.seeds for row in rows):
            return "No run is done."
        return "No row is whole, so none is called the best." if tested else "There is no test set: nothing is ranked."
    best, *_ = ranked = sorted(fair, key=lambda row: (-(row.mean("last") or 0.0), row.clean_data or 0))
    text = f"Best after the last epoch: {_with_figure(best)}{_lead(ranked)}"
    without = [row for row in ranked if row.clean_data == 0]
    if best in without:
        return f"{text}; it uses no clean data."
    if not without:
        return f"{text}; no row is without clean data."
    return f"{text}; best without clean data: {_with_figure(without[0])}{_lead(without)}."


def _with_figure(row: Row) -> str:
    mean, sd = row.mean("last"), row.sd("last")
    return f"{row.title}, {100 * (mean or 0.0):.1f}%" + ("" if sd is None else f" ± {100 * sd:.1f}")


def _lead(ranked: Sequence[Row]) -> str:
    """How far the first is ahead of the second, where that is not far."""
    if len(ranked) < 2:
        return ""
    first, second = ranked[:2]
    gap = (first.mean("last") or 0.0) - (second.mean("last") or 0.0)
    deviations = [sd for row in (first, second) if (sd := row.sd("last")) is not None]
    if not deviations:
        return f" (one seed, so nobody knows how far it would vary; next {_with_figure(second)})"
    if gap <= max(deviations):
        return f" (within one standard deviation of the next: {_with_figure(second)})"
    return ""
