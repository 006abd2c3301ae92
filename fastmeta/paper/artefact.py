"""What an artefact is: a table or a figure of the paper, the runs that it wants, and how it is read off them.

To add one, write ``fastmeta/paper/NAME.py`` with one subclass of :class:`Artefact`, and its line in `registry.py`::

    class Table9(Artefact):
        name, title = "table9", "Nothing but a baseline"

        def wanted(self, scale):
            return {"baseline": Wanted(scale.config("cifar10-resnet18", "onehot"))}

        def read(self, found):
            cell = found.cell("baseline", published("table1").number("onehot", "CIFAR-10 ResNet18"))
            return Reading(columns=("CIFAR-10",), rows=(Row("baseline", {"CIFAR-10": cell}),))

`wanted` is called before anything runs, and must be a function of the scale alone. `read` is called once all runs are
finished or have failed, and also for a look in between: a cell without finished runs is an empty one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastmeta.paper.claims import Claim
from fastmeta.paper.published import Number
from fastmeta.paper.wanted import Wanted
from fastmeta.report.run_folder import spread
from fastmeta.training.rundir import SUMMARY, read, read_summary

if TYPE_CHECKING:
    from fastmeta.paper.scale import Scale
    from fastmeta.paper.tuning import Search

#: parts of a run: the method's own model, its fine-tuned copy, and the baselines of the same run
PARTS = ("own", "finetuned", "union", "union_finetuned", "clean")


@dataclass(frozen=True)
class Cell:
    """One place of a table: what was measured, and what is published for it."""

    values: Mapping[int, float] = field(default_factory=dict)
    """By seed; in the unit of the artefact."""
    published: Number | None = None
    failed: Mapping[int, str] = field(default_factory=dict)
    """Why a seed has no value."""
    optimistic: bool = False
    """Is it accuracy on rows that have also tuned the run? Then the table marks it."""

    @property
    def mean(self) -> float | None:
        found = spread(list(self.values.values()))
        return None if found is None else found[0]

    @property
    def std(self) -> float | None:
        """Of a sample; None of one value."""
        found = spread(list(self.values.values()))
        return None if found is None else found[1]


@dataclass(frozen=True)
class Row:
    title: str
    cells: Mapping[str, Cell]
    """By column."""
    clean: str = "no"
    """Does it use clean data, and how: no; 1,000 as meta set; validation."""
    budget: str = "–"
    """How many settings were tried for it, and where."""
    ours: bool = False
    """Does it stand here for the sake of a fair comparison, and not in the paper?"""


@dataclass(frozen=True)
class Figure:
    """A figure that `read` has written into `Found.out`."""

    file: str
    """Its name: correctness.svg or .png, below 500 KB."""
    caption: str


@dataclass(frozen=True)
class Reading:
    """What an artefact comes to."""

    columns: Sequence[str] = ()
    rows: Sequence[Row] = ()
    claims: Sequence[Claim] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    """Beside the scale's own: what differs from the paper's setting, one sentence or two each."""
    unit: str = "test accuracy, %"
    digits: int = 1


@dataclass(frozen=True)
class Found:
    """The finished runs of an artefact."""

    scale: Scale
    seeds: tuple[int, ...]
    wanted: Mapping[str, Wanted]
    """As :meth:`Artefact.wanted` gave them."""
    runs: Path
    """OUT/runs."""
    out: Path
    """OUT/NAME, where figures go."""
    failures: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """By :attr:`Wanted.key` and seed, why a run has failed."""

    def paths(self, name: str) -> dict[int, Path]:
        """By seed, the run directories of ``wanted[name]`` that are finished; of folds that of the final run.

        Beside final/ lie fold0, ... and labels/.
        """
        one = self.wanted[name]
        return {seed: one.run(self.runs, seed) for seed in self.seeds if one.is_finished(self.runs, seed)}

    def summaries(self, name: str) -> dict[int, Mapping[str, Any]]:
        """By seed, the summary.json of the finished runs."""
        return {seed: read(path / SUMMARY, read_summary) for seed, path in self.paths(name).items()}

    def failed(self, name: str) -> dict[int, str]:
        """By seed, why a run is not there, of this or of one that it learns from."""

        def message(one: Wanted, seed: int) -> str | None:
            first = next(filter(None, (message(source, seed) for source in one.sources.values())), None)
            return first or self.failures.get((one.key, seed))

        return {seed: text for seed in self.seeds if (text := message(self.wanted[name], seed))}

    def cell(
        self, name: str, published: Number | None = None, *, part: str = "own", figure: str = "test_accuracy_last"
    ) -> Cell:
        """100 × a figure of summary.json over the seeds; of fine-tuned copies it is the test accuracy.

        Args:
            name: key of `wanted`.
            part: one of `PARTS`.
        """
        values, failed = {}, dict(self.failed(name))
        for seed, summary in self.summaries(name).items():
            stage = part_of_run(summary, part)
            value = stage.get("test_accuracy" if part.endswith("finetuned") else figure)
            if stage.get("failed"):
                failed[seed] = stage["failed"]
            elif value is not None:
                values[seed] = 100 * float(value)
        return Cell(values, published, failed)

    def measured(self, name: str, value: Any, published: Number | None = None, *, optimistic: bool = False) -> Cell:
        """A number that ``value(path)`` reads off each finished run."""
        values = {seed: float(value(path)) for seed, path in self.paths(name).items()}
        return Cell(values, published, self.failed(name), optimistic)


def part_of_run(summary: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The figures of one of `PARTS`."""
    base = part.removesuffix("finetuned").rstrip("_")
    stage: Mapping[str, Any] = summary if base in ("", "own") else summary["baselines"][base]
    if base == part or stage.get("failed"):
        return stage
    return stage.get("finetuned") or {"failed": "it was not fine-tuned"}


class Artefact(ABC):
    """A table or a figure of the paper. It has no state."""

    name: ClassVar[str]
    """As the command has it: table6."""
    title: ClassVar[str]

    @abstractmethod
    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        """The runs that it is read off, by names of its own."""

    def searches(self, scale: Scale) -> Sequence[Search]:
        """What --tune tries for it."""
        return ()

    @abstractmethod
    def read(self, found: Found) -> Reading:
        """Rows, claims and figures; figures are written into ``found.out``."""
