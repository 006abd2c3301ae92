"""Figure 3: training rows that were given a wrong class, their labels at the start and at the end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastmeta.paper.artefact import Artefact, Cell, Figure, Found, Reading, Row
from fastmeta.paper.claims import Claim, higher
from fastmeta.paper.figure4 import CURRICULUM_OR_NOT, clean_rows, noisy_runs
from fastmeta.paper.reading import LearnedRun, mean_probs, read_run, samples, sheet
from fastmeta.paper.scale import Scale
from fastmeta.paper.wanted import Wanted
from fastmeta.report.style import write

#: rows on the sheet
COUNT = 12
COLUMNS = ("start", "end")


class Figure3(Artefact):
    name, title = "figure3", "Labels of noisy samples at the start and at convergence"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        return noisy_runs(scale)

    def read(self, found: Found) -> Reading:
        rows: list[Row] = []
        claims: list[Claim] = []
        figures: list[Figure] = []
        for name, words in CURRICULUM_OR_NOT.items():
            runs = {seed: read_run(path) for seed, path in found.paths(name).items()}
            if runs and (drawn := samples(first := next(iter(runs.values())), COUNT)):
                write(sheet(drawn, first.class_names, first.epochs[-1]), found.out / f"samples_{name}")
                figures.append(Figure(f"samples_{name}.png", f"Labels learned {words}. {CAPTION}"))
            told = {seed: _probs(run) for seed, run in runs.items()}
            for k, title in enumerate(("true class", "given class")):
                cells = {c: Cell({s: v[c][k] for s, v in told.items()}, None, found.failed(name)) for c in COLUMNS}
                clean = clean_rows(found, name)
                rows.append(Row(f"probability of the {title}, {words}", cells, clean, ours=name == "plain"))
            claims.append(
                higher(
                    f"Labels that were given wrong move towards the true class, {words}: its mean probability, in %.",
                    rows[-2].cells["end"],
                    rows[-2].cells["start"],
                    published="shown for single samples",
                    sign=name == "curriculum",
                )
            )
        return Reading(COLUMNS, rows, claims, figures, NOTES, unit="mean over labels that were given wrong, %")


CAPTION = (
    f"{COUNT} training rows that were given a wrong class, drawn at random and not chosen. Grey: the label at the "
    "start; coloured: at the end."
)
NOTES = (
    "The paper shows chosen samples. Here they are drawn at random among all labels that were given wrong.",
    "Whether the published figure includes the entropy curriculum is not said; both are shown.",
)


def _probs(run: LearnedRun) -> dict[str, tuple[float, float]]:
    """Mean probability of the true and of the given class, in %, of labels that were given wrong."""
    wrong = np.flatnonzero(run.wrong)
    assert run.true is not None
    found = {}
    for column, epoch in zip(COLUMNS, (run.epochs[0], run.epochs[-1]), strict=True):
        found[column] = (
            100 * mean_probs(run, epoch, wrong, run.true),
            100 * mean_probs(run, epoch, wrong, run.given),
        )
    return found
