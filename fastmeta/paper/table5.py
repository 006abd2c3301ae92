"""Table 5: labels that one network has learned train another."""

from __future__ import annotations

from collections.abc import Mapping

from fastmeta.paper.artefact import Artefact, Found, Reading, Row
from fastmeta.paper.claims import Claim, higher
from fastmeta.paper.published import published
from fastmeta.paper.scale import Scale
from fastmeta.paper.temperatures import Curve, named, on_labels, student, told_temperatures, write_curves
from fastmeta.paper.wanted import Wanted

WORDS = {"vgg16": "VGG16", "resnet18": "ResNet18", "alexnet": "AlexNet"}
#: by scale: the networks that learn labels, and those that are trained on them
SOURCES = {"full": ("vgg16", "resnet18"), "short": ("resnet18",), "cpu": ("resnet18",), "smoke": ("resnet18",)}
STUDENTS = {
    "full": ("vgg16", "resnet18", "alexnet"),
    "short": ("vgg16", "resnet18"),
    "cpu": ("vgg16", "resnet18", "alexnet"),
    "smoke": ("resnet18", "alexnet"),
}


class Table5(Artefact):
    name, title = "table5", "Transfer of learned labels"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        found: dict[str, Wanted] = {}
        for network in STUDENTS[scale.name]:
            found[f"onehot/{network}"] = student(scale, "onehot", network)
            for source in SOURCES[scale.name]:
                found |= named(f"from_{source}/{network}", on_labels(scale, f"cifar100-{source}", network))
        return found

    def read(self, found: Found) -> Reading:
        told, scale = published("table5"), found.scale.name
        curves: dict[str, Curve] = {}
        rows = {}
        for source in SOURCES[scale]:
            row, cells = f"from_{source}", {}
            for network in STUDENTS[scale]:
                curve = Curve.read(found, f"{row}/{network}")
                cells[WORDS[network]] = curve.chosen(told.number(row, WORDS[network]))
                curves[f"{WORDS[source]} → {WORDS[network]}"] = curve
            budget = f"{len(curve.test)} temperatures, by validation"
            rows[row] = Row(told.rows[row].title, cells, budget=budget)
        baseline = {
            WORDS[network]: found.cell(f"onehot/{network}", told.number("onehot", WORDS[network]))
            for network in STUDENTS[scale]
        }
        rows["onehot"] = Row(told.rows["onehot"].title, baseline)
        notes = [*NOTES, *told_temperatures(curves, found)]
        if len(SOURCES[scale]) < len(SOURCES["full"]):
            notes.append("At this scale one network learns labels, the one that stands for ResNet18.")
        columns = tuple(WORDS[network] for network in STUDENTS[scale])
        return Reading(columns, [*rows.values()], _claims(rows, columns, curves), write_curves(found, curves), notes)


NOTES = (
    "Labels are the average of five folds at their end, at a temperature T: p^(1/T), renormalised.",
    "All students, those of the baseline too, hold validation rows out, which the paper's do not.",
)


def _claims(rows: Mapping[str, Row], columns: tuple[str, ...], curves: Mapping[str, Curve]) -> list[Claim]:
    claims = []
    if (curve := curves.get("ResNet18 → AlexNet")) is not None:
        plain = curve.plain(published("table4").number("instance_labels", "no temperature"))
        baseline = rows["onehot"].cells["AlexNet"]
        told = [cell.published.text for cell in (plain, baseline) if cell.published is not None]
        text = "AlexNet: labels from ResNet18, without temperature, are better than the given ones."
        claims.append(higher(text, plain, baseline, published=" against ".join(told), sign=True))
    for name, row in rows.items():
        if name == "onehot":
            continue
        own = WORDS[name.removeprefix("from_")]
        for column in columns:
            above, below = row.cells[column], rows["onehot"].cells[column]
            numbers = [cell.published.text for cell in (above, below) if cell.published is not None]
            whose = "the network's own labels" if column == own else f"labels from {own}"
            claims.append(
                higher(
                    f"{column}: {whose} are better than the given ones.",
                    above,
                    below,
                    published=" against ".join(numbers),
                )
            )
    return claims
