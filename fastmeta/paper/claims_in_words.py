"""What the paper claims of learned labels in words: measured on the runs of tables 1 and 6, and a few more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta.data.superclasses import known_superclasses
from fastmeta.paper.artefact import Artefact, Cell, Figure, Found, Reading, Row
from fastmeta.paper.claims import Claim, higher
from fastmeta.paper.figure2 import KINDS, RECIPE, curves_of, folded_runs, folders, folds_of
from fastmeta.paper.figure4 import NOISE, clean_rows, noisy_runs
from fastmeta.paper.reading import (
    CLEAN,
    CORRECTED,
    TOP,
    UNCORRECTED,
    ClassCurves,
    Entropies,
    Kinship,
    class_curves,
    correctness,
    curves_repeat,
    entropies,
    entropy_figure,
    kinship,
    read_run,
    rows_repeat,
    smoothing,
)
from fastmeta.paper.scale import Scale
from fastmeta.paper.shared_runs import FOLDS, noisy
from fastmeta.paper.wanted import Wanted
from fastmeta.report.run_folder import in_words, spread
from fastmeta.report.style import write
from fastmeta.training.rundir import SUMMARY, read, read_summary

#: the training rows are the clean rows, too
FROM_TRAIN: Mapping[str, Any] = {"data.meta_is_train": True}
#: by kind of labels and seed, the mean over folds
_Curves = Mapping[str, Mapping[int, ClassCurves]]


class ClaimsInWords(Artefact):
    name, title = "claims", "What the paper claims of learned labels in words"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        data, rate = NOISE[scale.name]
        recipe = f"{data}-a"

        def noisy_with(**over: Any) -> Wanted:
            return noisy(scale, "instance_labels", rate, recipe=recipe, **over)

        # of the first fold alone: the same training rows as the first fold of instance_labels
        one_fold: dict[str, Any] = {"data.folds": FOLDS, "data.fold": 0}
        found = {
            **folded_runs(scale),
            "train_as_meta": Wanted(scale.config(RECIPE, "instance_labels", **one_fold, **FROM_TRAIN)),
            "noisy": noisy_runs(scale)["plain"],
            "noisy_train_as_meta": noisy_with(**FROM_TRAIN),
            "noisy_reset": noisy_with(**{"labels.reset": True}),
        }
        if scale.name == "cpu":  # where CIFAR-10 stands for CIFAR-100 elsewhere
            over: dict[str, Any] = {"dataset": f"npz:{scale.part('cifar100')}", **one_fold}
            found["superclasses"] = Wanted(scale.config(RECIPE, "instance_labels", **over))
        return found

    def read(self, found: Found) -> Reading:
        told = {seed: entropies(read_run(path)) for seed, path in found.paths("noisy").items()}
        rows, figures = _entropy_rows(told, found.failed("noisy"), clean_rows(found, "noisy")), []
        if told:
            write(entropy_figure(list(told.values())), found.out / "entropies")
            figures.append(Figure("entropies.png", CAPTION))
        curves = {kind: {s: curves_of(path) for s, path in folders(found, kind).items()} for kind in KINDS}
        claims = [*_of_entropies(rows), *_of_alpha(curves), *_of_superclasses(found), *_of_repeats(found, curves)]
        claims += [*_of_train_as_meta(found), *_of_reset(found)]
        notes = (*NOTES, *([CPU_NOTE] if "superclasses" in found.wanted else []))
        return Reading(COLUMNS, [*rows.values()], claims, figures, notes, unit="entropy of labels, nats", digits=3)


NOTES = (
    "Labels that are put right, and that stay wrong, are told apart by the likeliest class at the end.",
    f"Superclasses: top-{TOP} classes beside the given one, at the end of training, of all training rows. Tied "
    "classes, which float16 makes of probabilities below 6e-8, count by chance. Standard errors are over classes.",
    "Training rows as clean rows: the rows that would be held out are left aside, so both runs train on the same rows. "
    "They keep their given labels, wrong ones too.",
    "That a teacher with learned labels is less sensitive to the temperature is in table 4.",
)

CPU_NOTE = (
    "Superclasses at this scale: the first 4,000 training images of CIFAR-100, as many of each class, and the first of "
    "five folds alone. It takes --data of both CIFAR-10 and CIFAR-100."
)

# -- entropies --------------------------------------------------------------------------------------------

COLUMNS = ("start", "highest", "end")
_GROUPS = {CORRECTED: "given wrong, right at the end", UNCORRECTED: "given wrong, still wrong", CLEAN: "given right"}
CAPTION = "Mean entropy of training labels under noise; bands: one standard deviation over seeds."


def _entropy_rows(told: Mapping[int, Entropies], failed: Mapping[int, str], clean: str) -> dict[str, Row]:
    pick: dict[str, Callable[[np.ndarray], float]] = {
        "start": lambda v: float(v[0]),
        "highest": lambda v: float(v.max()),
        "end": lambda v: float(v[-1]),
    }
    return {
        name: Row(
            title,
            {
                column: Cell({s: of(e.mean[name]) for s, e in told.items() if name in e.mean}, None, failed)
                for column, of in pick.items()
            },
            clean,
        )
        for name, title in _GROUPS.items()
    }


def _of_entropies(rows: Mapping[str, Row]) -> list[Claim]:
    def cell(name: str, column: str = "end") -> Cell:
        return rows[name].cells[column]

    return [
        _above(
            "Labels that stay wrong end with more entropy than clean ones.", cell(UNCORRECTED), cell(CLEAN), "in words"
        ),
        _above(
            "Labels that are put right end with less entropy than those that stay wrong.",
            cell(UNCORRECTED),
            cell(CORRECTED),
            "in words",
        ),
        _above(
            "The entropy of labels that are put right rises before it falls: highest against start.",
            cell(CORRECTED, "highest"),
            cell(CORRECTED, "start"),
            "in words",
        ),
    ]


# -- alpha ------------------------------------------------------------------------------------------------


def _of_alpha(curves: _Curves) -> list[Claim]:
    claims = []
    for kind, words in KINDS.items():
        alpha = {seed: smoothing(one) for seed, one in curves[kind].items()}
        early, late = (Cell({s: getattr(a, part) for s, a in alpha.items()}) for part in ("early", "late"))
        text = f"α of {words} is high early and low at convergence: mean of the first and of the last quarter."
        claims.append(_above(text, early, late, "in words"))
    return claims


# -- superclasses -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Share:
    value: float
    error: float


def _of_superclasses(found: Found) -> list[Claim]:
    told: dict[int, list[Kinship]] = {}
    own = "superclasses" in found.wanted
    for seed, path in (found.paths("superclasses") if own else folders(found, "instance_labels")).items():
        runs = [read_run(path)] if own else folds_of(path)
        superclass = known_superclasses(runs[0].class_names)
        if superclass is not None:
            told[seed] = [kinship(run, superclass) for run in runs]
    claims = []
    for of, words in (("of_rows", "labels"), ("of_classes", "the mean label of each class")):
        text = f"Of the top-{TOP} other classes of {words}, more share the superclass than by chance."
        shares = {
            seed: _Share(
                float(np.mean([getattr(k, of) for k in each])),
                float(np.mean([getattr(k, f"{of}_error") for k in each])),
            )
            for seed, each in told.items()
        }
        claims.append(_beyond_chance(text, shares, next(iter(told.values()))[0].chance if told else 0.0))
    return claims


def _beyond_chance(text: str, shares: Mapping[int, _Share], chance: float) -> Claim:
    """By two standard errors over classes, or the deviation over seeds, whichever is more."""
    if not shares:
        return Claim(text, "shown for examples", "not measured: the data have no superclasses", None, None)
    values = [share.value for share in shares.values()]
    error = float(np.mean([share.error for share in shares.values()]))
    found = spread(values)
    assert found is not None
    measured = f"{in_words(values, 100)}% against {100 * chance:.1f}% by chance, standard error {100 * error:.1f}"
    return Claim(text, "shown for examples", measured, found[0] - chance, max(2 * error, found[1] or 0.0))


# -- repeats ----------------------------------------------------------------------------------------------


def _of_repeats(found: Found, curves: _Curves) -> list[Claim]:
    claims = []
    for kind, words in KINDS.items():
        repeats = curves_repeat(list(curves[kind].values()))
        text = f"Trajectories repeat over runs: target probabilities of classes ({words}), correlation of two seeds."
        claims.append(_correlated(text, repeats["curves"]))
        text = f"What sets classes apart repeats over runs ({words}): the same, less the mean over classes."
        claims.append(_correlated(text, repeats["classes"]))
    runs = [folds_of(path)[0] for path in folders(found, "instance_labels").values()]
    text = "Instance labels repeat over runs: mean probability of the given class, over rows, correlation of two seeds."
    claims.append(_correlated(text, rows_repeat(runs)))
    return claims


def _correlated(text: str, values: list[float]) -> Claim:
    if not values:
        return Claim(text, "in words", "not measured: it takes two seeds", None, None)
    found = spread(values)
    assert found is not None
    return Claim(
        text,
        "in words",
        f"{in_words(values, 1, 2)}, {len(values)} pair{'s'[: len(values) > 1]} of seeds",
        found[0],
        found[1],
    )


# -- training rows as clean rows, and labels without memory -----------------------------------------------


def _of_train_as_meta(found: Found) -> list[Claim]:
    folds = {seed: path / "fold0" for seed, path in folders(found, "instance_labels").items()}
    alone = found.paths("train_as_meta")

    def last(paths: Mapping[int, Path]) -> Cell:
        return Cell({seed: smoothing(class_curves(read_run(path))).last for seed, path in paths.items()})

    claims = [
        _above(
            "With the training rows as clean rows labels go back to one-hot: α at the end, held out against training "
            "rows.",
            last(folds),
            last(alone),
            "in words",
        ),
        higher(
            "With the training rows as clean rows test accuracy is lower.",
            _tests(folds),
            _tests(alone),
            published="in words",
        ),
        higher(
            "Under noise, with the training rows as clean rows fewer wrong labels are right at the end, in %.",
            _put_right(found.paths("noisy")),
            _put_right(found.paths("noisy_train_as_meta")),
            published="not measured",
            sign=True,
        ),
    ]
    return claims


def _of_reset(found: Found) -> list[Claim]:
    with_memory, without = found.paths("noisy"), found.paths("noisy_reset")
    return [
        higher(
            "Labels that start anew in each epoch do worse: test accuracy.",
            _tests(with_memory),
            _tests(without),
            published="in words",
        ),
        higher(
            "Labels that start anew in each epoch correct less: wrong labels that are right at the end, in %.",
            _put_right(with_memory),
            _put_right(without),
            published="in words",
        ),
    ]


def _tests(paths: Mapping[int, Path]) -> Cell:
    accuracy = {seed: read(path / SUMMARY, read_summary)["test_accuracy_last"] for seed, path in paths.items()}
    return Cell({seed: 100 * value for seed, value in accuracy.items() if value is not None})


def _put_right(paths: Mapping[int, Path]) -> Cell:
    """Share of labels that were given wrong and are right at top-1 at the end, in %."""
    return Cell({seed: 100 * float(correctness(read_run(path), (1,)).of_wrong[1][-1]) for seed, path in paths.items()})


def _above(text: str, above: Cell, below: Cell, published: str) -> Claim:
    """Of numbers around 1."""
    return higher(text, above, below, published=published, digits=3)
