"""Figure 4: how often training labels are right while they are learned, at 40% uniform noise."""

from __future__ import annotations

from collections.abc import Mapping

from fastmeta.paper.artefact import Artefact, Cell, Figure, Found, Reading, Row
from fastmeta.paper.claims import Claim, beyond, higher
from fastmeta.paper.published import published
from fastmeta.paper.reading import Correctness, correctness, correctness_figure, read_run
from fastmeta.paper.scale import Scale
from fastmeta.paper.shared_runs import noisy_labels
from fastmeta.paper.wanted import Wanted
from fastmeta.report.style import write

#: by scale: data set of table 6 and rate, of which there is a run there
NOISE = {"full": ("cifar100", 0.4), "short": ("cifar10", 0.4), "cpu": ("cifar10", 0.4), "smoke": ("cifar10", 0.6)}


#: of the noisy setting, the runs that differ by it
CURRICULUM_OR_NOT = {"curriculum": "with the entropy curriculum", "plain": "without the entropy curriculum"}


def noisy_runs(scale: Scale) -> dict[str, Wanted]:
    """Instance labels under noise with and without the entropy curriculum, both of table 6."""
    data, rate = NOISE[scale.name]
    return {
        "curriculum": noisy_labels(scale, rate, recipe=f"{data}-a", curriculum=True),
        "plain": noisy_labels(scale, rate, recipe=f"{data}-a"),
    }


def clean_rows(found: Found, name: str) -> str:
    """How many clean rows a run has had."""
    sizes = {summary["meta_size"] for summary in found.summaries(name).values()}
    return f"{max(sizes):,} rows" if sizes else "yes"


class Figure4(Artefact):
    name, title = "figure4", "How often training labels are right while they are learned, under uniform noise"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        return noisy_runs(scale)

    def read(self, found: Found) -> Reading:
        rows: list[Row] = []
        figures: list[Figure] = []
        claims: list[Claim] = []
        for name, words in CURRICULUM_OR_NOT.items():
            told = {seed: correctness(read_run(path)) for seed, path in found.paths(name).items()}
            failed, ours = found.failed(name), name == "plain"
            clean = clean_rows(found, name)
            rows += [_row(told, failed, line, f"{line.title}, {words}", clean, ours) for line in _LINES]
            if told:
                write(correctness_figure(list(told.values())), found.out / f"correctness_{name}")
                figures.append(Figure(f"correctness_{name}.png", f"Training labels, {words}. {CAPTION}"))
            if name == "curriculum":
                claims = _claims(told)
        return Reading(COLUMNS, rows, claims, figures, NOTES, unit="share of training labels, %")


COLUMNS = ("start", "end")
CAPTION = (
    "Tied classes count by the expectation under random tie-breaking. Dotted: where labels start; of wrong ones that "
    "is chance, since the given class leads and the others are equal. Bands: one standard deviation over seeds."
)
NOTES = (
    "The paper shows all training labels alone. Most of them are right from the start, so the labels that were given "
    "wrong stand beside them: of those the top-5 starts at chance.",
    "The paper does not name the data of its figure. Its start at top-5, 65%, fits CIFAR-100, of which 40% uniform "
    "noise leaves 62% by chance; of CIFAR-10 it would be 80%.",
    "Whether the published figure includes the entropy curriculum is not said; both are measured.",
)


class _Line:
    """A row of the table: `k`, of which labels, and whether it counts wrong ones."""

    def __init__(self, title: str, k: int, of: str, wrong: bool, row: str | None) -> None:
        self.title, self.k, self.of, self.wrong, self.row = title, k, of, wrong, row

    def at(self, told: Correctness, end: int) -> float:
        share = float(getattr(told, self.of)[self.k][end])
        return 100 * (1 - share if self.wrong else share)


_LINES = (
    _Line("all labels, wrong at top-1", 1, "of_all", True, "top1_wrong"),
    _Line("all labels, right at top-5", 5, "of_all", False, "top5_right"),
    _Line("labels given wrong, right at top-1", 1, "of_wrong", False, None),
    _Line("labels given wrong, right at top-5", 5, "of_wrong", False, None),
)


def _row(
    told: Mapping[int, Correctness], failed: Mapping[int, str], line: _Line, title: str, clean: str, ours: bool
) -> Row:
    table = published("figure4")
    cells = {
        column: Cell(
            {seed: line.at(one, end) for seed, one in told.items()},
            None if ours or line.row is None else table.number(line.row, column),
            failed,
        )
        for column, end in zip(COLUMNS, (0, -1), strict=True)
    }
    return Row(title, cells, clean, ours=ours or line.row is None)


def _claims(told: Mapping[int, Correctness]) -> list[Claim]:
    def cell(k: int, of: str, end: int) -> Cell:
        return Cell({seed: 100 * float(getattr(one, of)[k][end]) for seed, one in told.items()})

    gained = {seed: 100 * float(one.of_wrong[5][-1] - one.chance[5]) for seed, one in told.items()}
    return [
        higher(
            "More training labels are right at top-1 at the end than at the start.",
            cell(1, "of_all", -1),
            cell(1, "of_all", 0),
            published="67 against 60",
        ),
        higher(
            "More training labels are right at top-5 at the end than at the start.",
            cell(5, "of_all", -1),
            cell(5, "of_all", 0),
            published="90 against 65",
        ),
        beyond(
            "The true class is among the top five of wrong labels more often than by chance, in points.",
            gained,
            0.0,
            published="not shown",
            digits=1,
            sign=True,
        ),
    ]
