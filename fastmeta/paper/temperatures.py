"""Students on soft targets over a range of temperatures: which are trained, which one validation picks, the curve.

A student holds validation rows out that no step of it has seen, and the temperature is the one that is best on them on
average over the seeds. Choosing by test accuracy would be optimistic; what it would give is told beside it. Teachers
and labels are runs of their own, trained once, whatever the number of temperatures; they train on all rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from fastmeta.paper.artefact import Cell, Figure, Found
from fastmeta.paper.published import Number
from fastmeta.paper.scale import Scale
from fastmeta.paper.shared_runs import ALL_ROWS, folded_labels
from fastmeta.paper.wanted import Wanted
from fastmeta.report.run_folder import spread
from fastmeta.report.style import axes_of, band, legend, line, point, write
from fastmeta.training.rundir import write_atomically

#: by scale; the paper tries 0 to 10 in steps of 0.25, and 0 is no temperature
TEMPERATURES: Mapping[str, tuple[float, ...]] = {
    "full": tuple(k / 4 for k in range(1, 41)),
    "short": (0.5, 1.0, 2.0, 4.0),
    "cpu": (0.5, 1.0, 2.0),
    "smoke": (0.5, 1.0, 2.0),
}
#: share of each class that a student holds out to pick the temperature
VAL_FRACTION = {"full": 0.1, "short": 0.1, "cpu": 0.2, "smoke": 0.2}
#: of AlexNet, which has no BatchNorm; the other scales have their own networks and rates
_ALEXNET_LR = 0.01


def student(scale: Scale, method: str, network: str, **over: Any) -> Wanted:
    """A run of the student `network` on CIFAR-100 that holds validation rows out."""
    own: dict[str, Any] = {**ALL_ROWS, "data.meta_batch_size": None, "data.val_fraction": VAL_FRACTION[scale.name]}
    if network == "alexnet" and scale.name in ("full", "short"):
        own["optim.lr"] = _ALEXNET_LR
    recipe = "cifar100-vgg16" if network == "vgg16" else "cifar100-resnet18"
    return Wanted(scale.config(recipe, method, network=network, **{**own, **over}))


def taught(scale: Scale, teacher: Wanted, network: str) -> dict[float, Wanted]:
    """Students of the predictions of `teacher`, by temperature; of folds its final model is the teacher."""
    return {
        t: Wanted(student(scale, "distill", network, **{"method.temperature": t}).config, sources={"teacher": teacher})
        for t in TEMPERATURES[scale.name]
    }


def on_labels(scale: Scale, recipe: str, network: str) -> dict[float, Wanted]:
    """Students of the converged instance labels that the network of `recipe` has learned in folds, by temperature."""
    source = folded_labels(scale, "instance_labels", recipe)
    own = {"method.play": "static"}
    return {
        t: Wanted(
            student(scale, "replay", network, **own, **{"method.temperature": t}).config,
            sources={"trajectory": source},
        )
        for t in TEMPERATURES[scale.name]
    }


def named(prefix: str, students: Mapping[float, Wanted]) -> dict[str, Wanted]:
    """The students as an artefact wants them."""
    return {f"{prefix}/T={t:g}": one for t, one in students.items()}


@dataclass(frozen=True)
class Curve:
    """What students of one kind have reached, by temperature and seed, in %."""

    test: Mapping[float, Mapping[int, float]]
    val: Mapping[float, Mapping[int, float]]
    failed: Mapping[int, str]

    @classmethod
    def read(cls, found: Found, prefix: str) -> Curve:
        test: dict[float, Mapping[int, float]] = {}
        val: dict[float, Mapping[int, float]] = {}
        failed: dict[int, str] = {}
        for t in TEMPERATURES[found.scale.name]:
            name = f"{prefix}/T={t:g}"
            test[t], val[t] = (found.cell(name, figure=f"{part}_accuracy_last").values for part in ("test", "val"))
            failed |= found.failed(name)
        return cls(test, val, failed)

    @property
    def seeds(self) -> list[int]:
        """Those with all temperatures."""
        return sorted(set.intersection(*map(set, self.test.values()), *map(set, self.val.values())))

    def best(self, by: Mapping[float, Mapping[int, float]]) -> float | None:
        """The temperature with the highest mean over the seeds; of equal ones the one next to 1."""
        seeds = self.seeds
        means = {t: mean(values[seed] for seed in seeds) for t, values in by.items()} if seeds else {}
        return max(means, key=lambda t: (means[t], -abs(t - 1))) if means else None

    def cell(self, t: float | None, published: Number | None = None, *, optimistic: bool = False) -> Cell:
        """Test accuracy at a temperature."""
        values = {} if t is None else {seed: self.test[t][seed] for seed in self.seeds}
        return Cell(values, published, self.failed, optimistic)

    def plain(self, published: Number | None = None) -> Cell:
        return self.cell(1.0, published)

    def chosen(self, published: Number | None = None) -> Cell:
        """At the temperature that validation picks."""
        return self.cell(self.best(self.val), published)

    @property
    def gap(self) -> Cell:
        """What the chosen temperature gains over none."""
        plain, chosen = self.plain().values, self.chosen().values
        return Cell({seed: chosen[seed] - plain[seed] for seed in plain}, failed=self.failed)


def write_curves(found: Found, curves: Mapping[str, Curve]) -> list[Figure]:
    """temperatures.csv, a line for each student, and the figure of test accuracy over the temperature."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["student of", "temperature", "seed", "test %", "validation %"])
    for title, curve in curves.items():
        for t, values in curve.test.items():
            writer.writerows([title, f"{t:g}", seed, values[seed], curve.val[t].get(seed)] for seed in sorted(values))
    write_atomically(found.out / "temperatures.csv", table.getvalue().encode())
    drawn = {title: curve for title, curve in curves.items() if curve.seeds}
    if not drawn:
        return []
    figure, axes = axes_of("temperature", "test accuracy, %", f"Students over the temperature, {found.scale.name}")
    for number, (title, curve) in enumerate(drawn.items()):
        _draw(axes, number, title, curve)
    axes.set_xscale("log", base=2)
    ticks = [t for t in TEMPERATURES[found.scale.name] if (4 * t).is_integer() and not int(4 * t) & int(4 * t) - 1]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    legend(figure)
    write(figure, found.out / "temperatures")
    caption = (
        "Test accuracy of students over the temperature of their targets: means over seeds, bands of one standard "
        "deviation. A diamond marks the temperature that validation picks."
    )
    return [Figure("temperatures.svg", caption)]


def _draw(axes: Any, number: int, title: str, curve: Curve) -> None:
    t, seeds = sorted(curve.test), curve.seeds
    spreads = [spread([curve.test[k][seed] for seed in seeds]) or (0.0, None) for k in t]
    centres, deviations = [c for c, _ in spreads], [d or 0.0 for _, d in spreads]
    line(axes, number, t, centres, title)
    low, high = ([c + sign * d for c, d in zip(centres, deviations, strict=True)] for sign in (-1, 1))
    band(axes, number, t, low, high)
    if (best := curve.best(curve.val)) is not None:
        point(axes, number, best, centres[t.index(best)], "_nolegend_")


def told_temperatures(curves: Mapping[str, Curve], found: Found) -> Sequence[str]:
    """Notes: how the temperature is chosen, and which one it is."""
    chosen = {title: curve.best(curve.val) for title, curve in curves.items()}
    picked = "; ".join(f"{title}: {t:g}" for title, t in chosen.items() if t is not None)
    share = VAL_FRACTION[found.scale.name]
    tried = ", ".join(f"{t:g}" for t in TEMPERATURES[found.scale.name])
    if len(TEMPERATURES[found.scale.name]) > 10:
        tried = "0.25 to 10 in steps of 0.25"
    notes = [
        f"The temperature is chosen by validation: each student holds {share:.0%} of the training rows out, and the "
        "temperature with the best mean accuracy on them counts. The paper does not say on which rows it chose. "
        "Teachers and learned labels come from runs on all rows.",
        f"Temperatures tried: {tried}. No temperature is 1.",
    ]
    return [*notes, f"Chosen: {picked}."] if picked else notes
