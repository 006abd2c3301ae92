"""Table 3: labels as they moved, against converged labels held fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastmeta.paper.artefact import Artefact, Cell, Found, Reading, Row
from fastmeta.paper.claims import higher
from fastmeta.paper.published import published
from fastmeta.paper.scale import Scale
from fastmeta.paper.shared_runs import folded_labels, static_labels, supervised
from fastmeta.paper.table1 import COLUMNS, METHODS, supervised_searches
from fastmeta.paper.tuning import Search, budget
from fastmeta.paper.wanted import Wanted


class Table3(Artefact):
    name, title = "table3", "Static against dynamic labels"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        recipe = "-".join(COLUMNS[scale.name][0])
        found = {"onehot": supervised(scale, "onehot", recipe)}
        for method in METHODS:
            found[f"dynamic/{method}"] = folded_labels(scale, method, recipe)
            found[f"static/{method}"] = static_labels(scale, method, recipe)
        return found

    def searches(self, scale: Scale) -> Sequence[Search]:
        return supervised_searches(scale)

    def read(self, found: Found) -> Reading:
        told, plain = published("table3"), published("table1").number("onehot", "CIFAR-100 ResNet18")
        columns = dict(zip(METHODS, told.columns, strict=True))
        tried = budget(found.scale, "supervised", "instance_labels")
        rows = {}
        for name in ("static", "dynamic"):
            cells = {
                column: found.cell(f"{name}/{method}", told.number(name, column)) for method, column in columns.items()
            }
            rows[name] = Row(told.rows[name].title, cells, budget=tried)
        baseline = found.cell("onehot", plain)
        rows["onehot"] = Row("baseline (of table 1)", {column: baseline for column in columns.values()})

        def words(*cells: Cell) -> str:
            return " against ".join(cell.published.text for cell in cells if cell.published)

        claims = []
        for column in columns.values():
            dynamic, static = (rows[name].cells[column] for name in ("dynamic", "static"))
            text = f"{column}: labels as they moved are better than converged labels held fixed."
            claims.append(higher(text, dynamic, static, published=words(dynamic, static)))
            text = f"{column}: converged labels held fixed are better than plain training."
            sign = column == columns["instance_labels"]
            claims.append(higher(text, static, baseline, published=words(static, baseline), sign=sign))
        return Reading(told.columns, [*rows.values()], claims)
