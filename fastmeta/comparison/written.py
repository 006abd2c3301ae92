"""The table of a comparison in Markdown, as CSV and for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastmeta._text import printable
from fastmeta.comparison.standings import Row, leaders
from fastmeta.recipes import Published, Recipe
from fastmeta.report.run_folder import in_words

if TYPE_CHECKING:
    from rich.console import Group

#: characters of a row's title in the terminal
_NAME = 34


def _clean(row: Row) -> str:
    if row.clean_data is None:
        return "?"
    return f"{row.clean_data:,}"


def _seeds(row: Row) -> str:
    count = len(row.seeds) + len({seed for seed, _ in row.failed})
    return f"{len(row.seeds)} of {count}" if row.failed else str(len(row.seeds))


def _yes(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"


def _percent(figure: str, missing: str = "–") -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        text = in_words(row.figures[figure], 100)
        return missing if text == "–" else text

    return cell


def _number(figure: str, digits: int) -> Callable[[Row], str]:
    return lambda row: in_words(row.figures[figure], 1, digits)


def _fact(name: str, form: str = ",") -> Callable[[Row], str]:
    return lambda row: "–" if row.facts[name] is None else format(row.facts[name], form)


def _rate(row: Row) -> str:
    return "–" if row.facts["noise_rate"] is None else f"{100 * row.facts['noise_rate']:.1f}"


def _schedule(row: Row) -> str:
    if row.facts["epochs"] is None:
        return "–"
    return f"{row.facts['epochs']:,} epochs, {row.facts['steps']:,} steps"


def _budget(row: Row) -> str:
    trials = f", {row.facts['trials']} trials in each run" if row.facts["trials"] else ""
    return str(row.setting.tried) + trials + (", chosen" if row.chosen else "")


COLUMNS: dict[str, Callable[[Row], str]] = {
    "row": lambda row: printable(row.title).replace("|", "\\|"),
    "test %, last": _percent("last"),
    "best": _percent("best"),
    "val-selected": _percent("val_selected", "n/a"),
    "NLL": _number("nll", 3),
    "ECE": _number("ece", 3),
    "seeds": _seeds,
    "noise, %": _rate,
    "meta size": _fact("meta_size"),
    "clean data used": _clean,
    "pretrained": lambda row: _yes(row.facts["pretrained"]),
    "schedule": _schedule,
    "tuning budget": _budget,
    "s": _number("seconds", 1),
}


def markdown(recipe: Recipe, rows: Sequence[Row], published: Sequence[Published]) -> str:
    """table.md."""
    lines = [f"# {printable(recipe.title)}", ""]
    lines += [f"{printable(text)}\n" for text in (recipe.source, recipe.notes) if text]
    lines += _table(list(COLUMNS), [[cell(row) for cell in COLUMNS.values()] for row in rows])
    lines += ["", leaders(rows), ""]
    lines += [f"* {note}" for note in notes(rows)]
    if published:
        told = [(p.row, _published(p), _yes(p.clean), _yes(p.pretrained), p.source) for p in published]
        lines += ["", "Published, under their own conditions:", ""]
        lines += _table(
            ["row", "test %", "clean data", "pretrained", "source"], [[*map(printable, row)] for row in told]
        )
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _published(one: Published) -> str:
    return f"{one.test:g}" + ("" if one.std is None else f" ± {one.std:g}")


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table has to know."""
    found = [
        "last: after the last epoch; best: of the epoch that is best on the test set itself, for comparison only",
        "clean data used: rows with right labels that a row has seen, or was chosen by",
    ]
    val = max((row.facts["val_size"] or 0 for row in rows), default=0)
    if val:
        found.append(
            f"val-selected: of the epoch that the {val:,} validation rows pick; these are clean data too, beside those "
            "that are told"
        )
    searched = [row for row in rows if row.setting.tried > 1]
    if searched:
        if any(row.chosen for row in searched):
            found.append(
                "several points of a search: the one with the best mean validation accuracy behind the last epoch is "
                "chosen, and the validation rows count as clean data that it uses"
            )
        if any(row.chosen is None for row in searched):
            found.append(
                "several points of a search, and none is chosen: there is no validation accuracy to choose by "
                "(data.val_fraction), and picking the best by test accuracy would be selection on the test set; so "
                "none of them is called the best"
            )
    if any(row.facts["pretrained"] is None and row.seeds for row in rows):
        found.append("pretrained ?: the network is code, of which nobody here knows what weights it starts from")
    if any(row.clean_data is None and row.seeds for row in rows):
        found.append("clean data ?: it learns from a run outside of this comparison")
    if any(row.facts["trials"] for row in rows):
        found.append(
            "trials in each run: by labels.label_lr=search; canaries choose among them, and their seconds are apart"
        )
    if any(row.setting.teacher for row in rows):
        found.append("seconds of a row that learns from another's run are without that run's")
    found.append("s: training and evaluation, mean over the seeds; of a fine-tuned row with the training before")
    return [*found, *failures(rows)]


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each run that failed, or for each of its baselines that did."""
    told = dict.fromkeys((row.setting.name, seed, message) for row in rows for seed, message in row.failed)
    return [f"failed: {name}/seed{seed}: {printable(message)}" for name, seed, message in told]


def as_csv(rows: Sequence[Row], published: Sequence[Published]) -> str:
    """table.csv: plain numbers, accuracies in %; published rows have a source."""
    figures = {"test_last": "last", "test_best": "best", "val_selected": "val_selected", "nll": "nll", "ece": "ece"}
    scale = {"nll": 1.0, "ece": 1.0}
    head = ["row", "method", "point", "chosen"]
    head += [name + part for name in figures for part in ("", "_sd")]
    head += ["seeds", "failed", "noise_rate", "meta_size", "clean_data_used", "pretrained", "epochs", "steps"]
    head += ["tuning_budget", "trials", "seconds", "source"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, head, restval="", lineterminator="\n")
    writer.writeheader()

    def number(value: float | None, by: float = 1.0) -> str:
        return "" if value is None else f"{by * value:.6g}"

    for row in rows:
        cells: dict[str, Any] = {
            "row": printable(row.title),
            "method": row.setting.method,
            "point": " ".join(f"{key}={value}" for key, value in row.setting.point.items()),
            "chosen": "" if row.chosen is None else _yes(row.chosen),
            "seeds": len(row.seeds),
            "failed": len(row.failed),
            "noise_rate": number(row.facts["noise_rate"], 100),
            "meta_size": row.facts["meta_size"],
            "clean_data_used": row.clean_data,
            "pretrained": _yes(row.facts["pretrained"]),
            "epochs": row.facts["epochs"],
            "steps": row.facts["steps"],
            "tuning_budget": row.setting.tried,
            "trials": row.facts["trials"],
            "seconds": number(row.mean("seconds")),
        }
        for name, figure in figures.items():
            cells[name] = number(row.mean(figure), scale.get(name, 100))
            cells[f"{name}_sd"] = number(row.sd(figure), scale.get(name, 100))
        writer.writerow(cells)
    for one in published:
        known = {"row": one.row, "test_last": number(one.test), "test_last_sd": number(one.std), "source": one.source}
        known |= {"clean_data_used": _yes(one.clean), "pretrained": _yes(one.pretrained)}
        writer.writerow({key: printable(value) for key, value in known.items()})
    return stream.getvalue()


def in_terminal(rows: Sequence[Row], published: Sequence[Published]) -> Group:
    """The columns that fit into 80; table.md has all."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    cells: dict[str, Callable[[Row], str]] = {
        "row": lambda row: printable(row.title),
        "test %,\nlast": _percent("last"),
        "val-\nselected": _percent("val_selected", "n/a"),
        "clean\nused": _clean,
        "seeds": _seeds,
        "tuning": lambda row: str(row.setting.tried) + "+" * bool(row.facts["trials"]) + "*" * bool(row.chosen),
        "s": lambda row: "–" if row.mean("seconds") is None else f"{row.mean('seconds'):.1f}",
    }
    for number, head in enumerate(cells):
        drawn.add_column(head, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        drawn.add_row(*(Text(cell(row)) for cell in cells.values()))
    for number, one in enumerate(published):
        if not number:
            drawn.add_section()
        title = f"{printable(one.row, _NAME)} (published)"
        drawn.add_row(Text(title), _published(one), "", "yes" if one.clean else "0")
    notes = [Text("*: chosen by validation")] if any(row.chosen for row in rows) else []
    notes += [Text("+: each run has searched by itself")] if any(row.facts["trials"] for row in rows) else []
    return Group(drawn, *notes)
