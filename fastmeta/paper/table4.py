"""Table 4: distillation into a smaller network, by predictions and by learned labels, over temperatures."""

from __future__ import annotations

from collections.abc import Mapping

from fastmeta.paper.artefact import Artefact, Cell, Found, Reading, Row
from fastmeta.paper.claims import Claim, higher
from fastmeta.paper.published import published
from fastmeta.paper.scale import Scale
from fastmeta.paper.shared_runs import folded_labels, supervised
from fastmeta.paper.temperatures import Curve, named, on_labels, student, taught, told_temperatures, write_curves
from fastmeta.paper.wanted import Wanted

TEACHER, STUDENT = "resnet18", "alexnet"
#: of test accuracy at the temperature that is best on the test set itself
OPTIMISTIC = "best temperature by test accuracy"


class Table4(Artefact):
    name, title = "table4", "Distillation"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        recipe = f"cifar100-{TEACHER}"
        teachers = {
            "onehot_teacher": supervised(scale, "onehot", recipe),
            "smoothing_teacher": supervised(scale, "label_smoothing", recipe),
            "instance_teacher": folded_labels(scale, "instance_labels", recipe),
        }
        found: dict[str, Wanted] = dict(teachers)
        for name, teacher in teachers.items():
            found |= named(name, taught(scale, teacher, STUDENT))
        found |= named("instance_labels", on_labels(scale, recipe, STUDENT))
        return found | {"onehot": student(scale, "onehot", STUDENT)}

    def read(self, found: Found) -> Reading:
        told, transfer = published("table4"), published("table5")
        plain, best = told.columns
        curves = {name: Curve.read(found, name) for name in told.rows}
        rows = {}
        for name, curve in curves.items():
            cells = {
                plain: curve.plain(told.number(name, plain)),
                best: curve.chosen(told.number(name, best)),
                OPTIMISTIC: curve.cell(curve.best(curve.test), optimistic=True),
            }
            rows[name] = Row(told.rows[name].title, cells, budget=f"{len(curve.test)} temperatures, by validation")
        baseline = found.cell("onehot", transfer.number("onehot", "AlexNet"))
        rows["onehot"] = Row("baseline (of table 5): the student on given labels", {plain: baseline})
        titled = {told.rows[name].title: curve for name, curve in curves.items()}
        notes = (*NOTES, *told_temperatures(titled, found), _teachers(found))
        columns = (*told.columns, OPTIMISTIC)
        return Reading(columns, [*rows.values()], _claims(rows, curves), write_curves(found, titled), notes)


NOTES = (
    "Targets are soft alone, without a share of the given labels and without the factor T². The temperature divides "
    "the teacher's logits; of learned labels p it makes p^(1/T), renormalised.",
    "The teacher with instance labels is the final model of five folds, and the converged labels are their average.",
    "Students train on fewer rows than the paper's, because they hold validation rows out, and the baseline does too.",
)


def _claims(rows: Mapping[str, Row], curves: Mapping[str, Curve]) -> list[Claim]:
    told = published("table4")
    plain, best = told.columns

    def at(name: str, column: str = plain) -> Cell:
        return rows[name].cells[column]

    def pair(first: Cell, second: Cell) -> str:
        return " against ".join("–" if cell.published is None else cell.published.text for cell in (first, second))

    def claim(text: str, above: Cell, below: Cell, *, sign: bool = False) -> Claim:
        return higher(text, above, below, published=pair(above, below), sign=sign)

    numbers = [told.rows[name].numbers for name in ("onehot_teacher", "instance_teacher")]
    gaps = [f"{of[best].mean - of[plain].mean:.1f}" for of in numbers]
    teacher, labels, onehot = at("instance_teacher"), at("instance_labels"), at("onehot_teacher")
    return [
        claim("Without temperature, a teacher with instance labels teaches better.", teacher, onehot),
        claim("Without temperature, converged labels teach better than a one-hot teacher.", labels, onehot),
        claim(
            "Without temperature, a teacher with label smoothing teaches better than a one-hot teacher.",
            at("smoothing_teacher"),
            onehot,
        ),
        claim("A temperature helps the one-hot teacher.", at("onehot_teacher", best), onehot),
        claim(
            "At their best temperatures, a teacher with instance labels teaches better than a one-hot teacher.",
            at("instance_teacher", best),
            at("onehot_teacher", best),
        ),
        claim(
            "At their best temperatures, a one-hot teacher teaches better than one with label smoothing.",
            at("onehot_teacher", best),
            at("smoothing_teacher", best),
        ),
        higher(
            "A teacher with instance labels is less sensitive to the temperature: the best one gains less over none.",
            curves["onehot_teacher"].gap,
            curves["instance_teacher"].gap,
            published=f"gains of {' and '.join(gaps)}",
        ),
        claim("Converged labels teach the student better than the given ones.", labels, at("onehot"), sign=True),
    ]


def _teachers(found: Found) -> str:
    from fastmeta.report.run_folder import in_words

    words = []
    for name in ("onehot_teacher", "smoothing_teacher", "instance_teacher"):
        cell = found.cell(name)
        words.append(f"{published('table4').rows[name].title} {in_words(list(cell.values.values()))}")
    return f"The teachers' own test accuracy, %: {'; '.join(words)}."
