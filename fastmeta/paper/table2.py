"""Tables 2 and 8: labels that are softened by hand, against plain training, without noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fastmeta.paper.artefact import Artefact, Found, Reading, Row
from fastmeta.paper.claims import higher
from fastmeta.paper.published import PublishedTable, published
from fastmeta.paper.scale import Scale
from fastmeta.paper.shared_runs import supervised
from fastmeta.paper.tuning import budget
from fastmeta.paper.wanted import Wanted

#: by scale, the networks of the columns
NETWORKS = {
    "full": ("resnet18", "vgg16"),
    "short": ("resnet18",),
    "cpu": ("resnet18", "vgg16"),
    "smoke": ("resnet18",),
}
_WORDS = {"resnet18": "ResNet18", "vgg16": "VGG16", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def column_of(data: str, network: str) -> str:
    return f"{_WORDS[data]} {_WORDS[network]}"


class Regularisers(Artefact):
    """Plain training, label smoothing and the confidence penalty on one data set."""

    data: ClassVar[str]

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        return {
            f"{column_of(self.data, network)}/{method}": supervised(scale, method, f"{self.data}-{network}")
            for network in NETWORKS[scale.name]
            for method in ("onehot", "label_smoothing", "confidence_penalty")
        }

    def read(self, found: Found) -> Reading:
        columns = tuple(column_of(self.data, network) for network in NETWORKS[found.scale.name])
        told, plain = published(self.name), published("table1")

        def row(method: str, title: str, table: PublishedTable) -> Row:
            cells = {column: found.cell(f"{column}/{method}", table.number(method, column)) for column in columns}
            return Row(title, cells, budget=budget(found.scale, "supervised", method))

        rows = {"onehot": row("onehot", "baseline (of table 1)", plain)}
        rows |= {name: row(name, told.rows[name].title, told) for name in ("label_smoothing", "confidence_penalty")}
        claims = []
        for column in columns:
            for name in ("label_smoothing", "confidence_penalty"):
                numbers = (told.number(name, column), plain.number("onehot", column))
                claims.append(
                    higher(
                        f"{column}: {told.rows[name].title} is better than plain training.",
                        rows[name].cells[column],
                        rows["onehot"].cells[column],
                        published=" against ".join(number.text for number in numbers if number),
                        sign=name == "label_smoothing",
                    )
                )
        return Reading(columns, [*rows.values()], claims, notes=NOTES)


NOTES = ("The strengths are the conventional ones, 0.1 each; the paper does not give its own.",)


class Table2(Regularisers):
    name, title, data = "table2", "Fixed-label regularisers, CIFAR-100", "cifar100"
