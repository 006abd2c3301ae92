"""Table 7: uniform noise in setting B, on CIFAR-100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastmeta.paper.artefact import Artefact, Found, Reading
from fastmeta.paper.scale import Scale
from fastmeta.paper.table6 import NOTES, column_of, noisy_claims, noisy_rows, noisy_runs, noisy_searches
from fastmeta.paper.tuning import Search
from fastmeta.paper.wanted import Wanted

RECIPE = "cifar100-b"
RATES = {"full": (0.2, 0.4, 0.8), "short": (0.4,), "cpu": (0.2, 0.4), "smoke": (0.8,)}
OTHERS = ("mentornet_pd", "data_parameters", "mentornet_dd", "l2rw")


class Table7(Artefact):
    name, title = "table7", "Uniform noise, setting B"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        return {
            f"{column_of('cifar100', rate)}/{name}": one
            for rate in RATES[scale.name]
            for name, one in noisy_runs(scale, RECIPE, rate, OTHERS).items()
        }

    def searches(self, scale: Scale) -> Sequence[Search]:
        return noisy_searches(scale, RECIPE)

    def read(self, found: Found) -> Reading:
        columns = tuple(column_of("cifar100", rate) for rate in RATES[found.scale.name])
        others = {name: name for name in OTHERS}
        rows = noisy_rows(found, columns, "table7", others)
        claims = [claim for column in columns for claim in noisy_claims(rows, column, "table7", others)]
        return Reading(columns, [*rows.values()], claims, notes=[*NOTES, *_NOTES])


_NOTES = (
    "The paper cites setting B as two different works; it is that of Data Parameters. Data Parameters are read at "
    "epoch 84 there, and at the end here.",
)
