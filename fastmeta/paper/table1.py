"""Table 1: learned labels without noise, over five folds, against plain training on all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastmeta.paper.artefact import Artefact, Found, Reading, Row
from fastmeta.paper.claims import higher
from fastmeta.paper.published import published
from fastmeta.paper.scale import Scale
from fastmeta.paper.shared_runs import folded_labels, supervised
from fastmeta.paper.table2 import column_of
from fastmeta.paper.tuning import Search, budget
from fastmeta.paper.wanted import Wanted

#: by scale, data set and network of each column
COLUMNS = {
    "full": (("cifar100", "resnet18"), ("cifar100", "vgg16"), ("cifar10", "resnet18"), ("cifar10", "vgg16")),
    "short": (("cifar100", "resnet18"),),
    "cpu": (("cifar10", "resnet18"),),
    "smoke": (("cifar10", "resnet18"),),
}
METHODS = ("class_labels", "instance_labels")
#: of the paper's grid, all but 0.3
TARGET_PROBS = (0.5, 0.7, 0.9)
#: how far labels move, in place of the paper's rates: an instance label in a visit, a class label in an epoch
LABEL_STEPS = {"instance_labels": (0.1, 0.3, 1.0), "class_labels": (0.01, 0.02, 0.05)}


class Table1(Artefact):
    name, title = "table1", "Supervised training with learned labels"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        found = {}
        for data, network in COLUMNS[scale.name]:
            column, recipe = column_of(data, network), f"{data}-{network}"
            found[f"{column}/onehot"] = supervised(scale, "onehot", recipe)
            found |= {f"{column}/{method}": folded_labels(scale, method, recipe) for method in METHODS}
        return found

    def searches(self, scale: Scale) -> Sequence[Search]:
        return supervised_searches(scale)

    def read(self, found: Found) -> Reading:
        told = published("table1")
        columns = tuple(column_of(data, network) for data, network in COLUMNS[found.scale.name])
        rows = {
            name: Row(
                told.rows[name].title,
                {column: found.cell(f"{column}/{name}", told.number(name, column)) for column in columns},
                budget=budget(found.scale, "supervised", name),
            )
            for name in ("onehot", *METHODS)
        }
        claims = []
        pairs = (("instance_labels", "onehot"), ("class_labels", "onehot"), ("instance_labels", "class_labels"))
        for column in columns:
            for above, below in pairs:
                numbers = (told.number(name, column) for name in (above, below))
                words = "plain training" if below == "onehot" else told.rows[below].title
                claims.append(
                    higher(
                        f"{column}: {told.rows[above].title} are better than {words}.",
                        rows[above].cells[column],
                        rows[below].cells[column],
                        published=" against ".join(number.text for number in numbers if number),
                        sign=(above, below) == pairs[0],
                    )
                )
        return Reading(columns, [*rows.values()], claims, notes=NOTES)


NOTES = (
    "Labels are learned in five folds, of which each holds out another fifth as the clean set. The final model trains "
    "on all rows, on the labels as they moved, averaged over the folds in which a row trained. No row has seen other "
    "data than the baseline.",
    "The paper is silent on momentum and schedule: momentum 0 as its rates suggest at scales full and short, 0.9 else.",
)


def supervised_searches(scale: Scale) -> list[Search]:
    """On one fold, as the paper did it, for each kind of label; validation rows are held out beside the fold."""
    data, network = COLUMNS[scale.name][0]
    return [
        Search(
            f"supervised/{method}",
            scale.config(f"{data}-{network}", method),
            {"label_step": LABEL_STEPS[method], "target_prob": TARGET_PROBS},
        )
        for method in METHODS
    ]
