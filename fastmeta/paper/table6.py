"""Table 6: uniform noise in setting A. Methods of others, instance labels, and what whoever has clean rows can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastmeta.paper.artefact import Artefact, Cell, Found, Reading, Row
from fastmeta.paper.claims import Claim, higher
from fastmeta.paper.published import published, settings
from fastmeta.paper.scale import Scale
from fastmeta.paper.shared_runs import noisy, noisy_labels
from fastmeta.paper.tuning import Search, budget
from fastmeta.paper.wanted import Wanted

#: by scale: data set and rate of each column
COLUMNS = {
    "full": (("cifar10", 0.4), ("cifar10", 0.6), ("cifar100", 0.4), ("cifar100", 0.6)),
    "short": (("cifar10", 0.4),),
    "cpu": (("cifar10", 0.4),),
    "smoke": (("cifar10", 0.6),),
}
OTHERS = ("focal", "coteaching", "mentornet", "l2rw", "mwnet")
#: rows of one run of plain training beside the published one, by the part of the run
PLAIN = {
    "finetuned": "baseline, then fine-tuned on clean",
    "union": "given and clean together",
    "union_finetuned": "given and clean together, then fine-tuned on clean",
    "clean": "clean alone",
}
FINETUNE_STEPS = 100
#: logits that a visit moves a label by, in place of the paper's rates, which are of its schedule and network
LABEL_STEPS = (0.25, 0.5, 1.0, 2.0)


class Table6(Artefact):
    name, title = "table6", "Uniform noise, setting A"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        found: dict[str, Wanted] = {}
        for data, rate in COLUMNS[scale.name]:
            column, recipe = column_of(data, rate), f"{data}-a"
            found |= {f"{column}/{name}": one for name, one in noisy_runs(scale, recipe, rate, OTHERS).items()}
        return found

    def searches(self, scale: Scale) -> Sequence[Search]:
        return noisy_searches(scale, "cifar10-a")

    def read(self, found: Found) -> Reading:
        columns = tuple(column_of(data, rate) for data, rate in COLUMNS[found.scale.name])
        rows = noisy_rows(found, columns, "table6", {name: name for name in OTHERS})
        claims: list[Claim] = []
        for column in columns:
            claims += noisy_claims(rows, column, "table6", {name: name for name in OTHERS})
        return Reading(columns, [*rows.values()], claims, notes=NOTES)


NOTES = (
    "The paper does not give the formula of the entropy curriculum and never takes it away: both are measured here. "
    "The weight of a sample is 1 - H/log C of its label, with mean 1 in a batch.",
    "The published baseline comes from a longer schedule; here all rows have one schedule.",
    "Uniform noise may hit the true class: of C classes the realised rate is p (C - 1)/C.",
)


def column_of(data: str, rate: float) -> str:
    return f"{data.upper().replace('CIFAR', 'CIFAR-')} {rate:.0%}"


def noisy_runs(scale: Scale, recipe: str, rate: float, others: tuple[str, ...]) -> dict[str, Wanted]:
    """The runs of a column of tables 6 and 7. MentorNet's mentor is learned, but for mentornet_pd."""

    def of(name: str) -> Wanted:
        if name == "mentornet_pd":
            return noisy(scale, "mentornet", rate, recipe=recipe)
        over = {"method.curriculum": "learned"} if name.startswith("mentornet") else {}
        return noisy(scale, name.removesuffix("_dd"), rate, recipe=recipe, **over)

    beside = {"baselines": "union,clean", "finetune_steps": FINETUNE_STEPS}
    found = {"onehot": noisy(scale, "onehot", rate, recipe=recipe, **beside)}
    found |= {name: of(name) for name in others}
    found["instance_labels"] = noisy_labels(scale, rate, recipe=recipe, curriculum=True)
    found["no_curriculum"] = noisy_labels(scale, rate, recipe=recipe)
    soft = found["no_curriculum"].config.labels.target_prob
    found["softened"] = noisy(scale, "label_smoothing", rate, recipe=recipe, **{"method.target_prob": soft})
    return found


def noisy_searches(scale: Scale, recipe: str) -> list[Search]:
    """How far labels move, and where they start, at 40% noise, without the entropy curriculum."""
    grid = {"label_step": LABEL_STEPS, "target_prob": settings()["grids"]["target_prob"]}
    return [Search("noise/instance_labels", noisy_labels(scale, 0.4, recipe=recipe).config, grid)]


def noisy_rows(found: Found, columns: tuple[str, ...], table: str, others: Mapping[str, str]) -> dict[str, Row]:
    """Rows by their name; `others` are the published name of each method's row."""
    told, scale = published(table), found.scale
    titles = {name: told.rows[row].title for name, row in others.items()}
    clean = {name: told.rows[row].clean for name, row in others.items()}
    metas = {summary["meta_size"] for name in found.wanted for summary in found.summaries(name).values()}
    amount = f"{max(metas):,} rows" if metas else "yes"

    def row(name: str, title: str, uses: bool, run: str = "", row: str = "", part: str = "own") -> Row:
        cells = {
            column: found.cell(f"{column}/{run or name}", told.number(row, column), part=part) for column in columns
        }
        tried = budget(scale, "noise", run or name)
        return Row(title, cells, amount if uses else "no", tried, ours=not row)

    rows = {"onehot": row("onehot", "baseline", False, row="onehot")}
    rows |= {name: row(name, titles[name], clean[name], row=published_row) for name, published_row in others.items()}
    rows["instance_labels"] = row("instance_labels", "instance labels", True, row="instance_labels")
    rows["no_curriculum"] = row("no_curriculum", "instance labels, no entropy curriculum", True)
    rows["softened"] = row("softened", "given, softened as labels start, never moved", False)
    rows |= {part: row(part, title, True, run="onehot", part=part) for part, title in PLAIN.items()}
    return rows


def noisy_claims(rows: Mapping[str, Row], column: str, table: str, others: Mapping[str, str]) -> list[Claim]:
    """What the paper claims of a column, and whether it holds against what it does not compare with."""
    told = published(table)

    def cell(name: str) -> Cell:
        return rows[name].cells[column]

    def pair(first: str, second: str) -> str:
        numbers = [told.number(name, column) for name in (first, second)]
        return " against ".join("–" if number is None else number.text for number in numbers)

    ours = cell("instance_labels")
    claims = [
        higher(
            f"{column}: instance labels are better than plain training.",
            ours,
            cell("onehot"),
            published=pair("instance_labels", "onehot"),
            sign=True,
        )
    ]
    for name, row in others.items():
        if told.number(row, column) is not None:
            text = f"{column}: instance labels are better than {told.rows[row].title}."
            claims.append(higher(text, ours, cell(name), published=pair("instance_labels", row)))
    missing = "not compared"
    for name, words in (
        ("no_curriculum", "the entropy curriculum helps instance labels"),
        ("softened", "instance labels are better than the start that they moved from"),
        ("finetuned", "instance labels are better than fine-tuning the baseline on the clean rows"),
        ("union", "instance labels are better than training on given and clean rows together"),
        ("clean", "instance labels are better than training on the clean rows alone"),
    ):
        claims.append(higher(f"{column}: {words}.", ours, cell(name), published=missing))
    return claims
