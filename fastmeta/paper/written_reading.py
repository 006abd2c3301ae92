"""What is written of an artefact: table.md, table.csv, result.json, its figures, report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fastmeta._text import printable
from fastmeta._version import __version__
from fastmeta.bench.environment import record
from fastmeta.paper.artefact import Artefact, Cell, Figure, Found, Reading, Row
from fastmeta.paper.artefact_page import artefact_page
from fastmeta.paper.dots import draw_dots
from fastmeta.paper.published import SOURCE
from fastmeta.paper.wanted import in_order
from fastmeta.report.run_folder import in_words
from fastmeta.training.rundir import SUMMARY, lasting, read, read_summary, to_json, write_atomically

SCHEMA, SCHEMA_VERSION = "fastmeta.reproduction", 1
OPTIMISTIC = "°"
#: figures of a run that result.json repeats
_FIGURES = (
    *("test_accuracy_last", "test_accuracy_best", "nll", "ece", "label_accuracy_initial", "label_accuracy_final"),
    *("noise_rate", "train_size", "meta_size", "val_size", "test_size", "epochs", "seconds", "torch", "device"),
)


def write_reading(
    artefact: Artefact, found: Found, reading: Reading, failures: Mapping[str, str], command: str
) -> None:
    """Write all of it into ``found.out``. OSError where that cannot be done."""
    if any(cell.mean is not None for row in reading.rows for cell in row.cells.values()):
        draw_dots(found.out / artefact.name, artefact.title, reading)
        picture = Figure(f"{artefact.name}.png", "Measured here, and published.")
        reading = Reading(**{**vars(reading), "figures": [picture, *reading.figures]})
    notes = [*found.scale.notes(), *reading.notes]
    told = lines(artefact, found, reading, notes, failures)
    write_atomically(found.out / "table.md", ("\n".join(told) + "\n").encode("utf-8", "backslashreplace"))
    write_atomically(found.out / "table.csv", _csv(reading).encode("utf-8", "backslashreplace"))
    content = _content(artefact, found, reading, notes, failures, command)
    write_atomically(found.out / "result.json", (to_json(content, indent=1) + "\n").encode())
    body = [list(cells(reading, row)) for row in reading.rows]
    drawn = (heads(found, reading), body, legend(reading)) if body else ((), (), ())
    page = artefact_page(artefact, found, reading, notes, failures, content["environment"], *drawn)
    write_atomically(found.out / "report.html", page)


def heads(found: Found, reading: Reading) -> list[str]:
    """Of the table: each column twice, and what a row needs to be compared fairly."""
    here = "here" + (f", on {found.scale.on}" if found.scale.on else "")
    columns = [f"{column}: {what}" for column in reading.columns for what in ("published", here)]
    return ["", *columns, "clean data", "tuning budget"]


def cells(reading: Reading, row: Row) -> Iterator[str]:
    """Texts of a row, under `heads`."""
    yield row.title + (" †" if row.ours else "")
    for column in reading.columns:
        cell = row.cells.get(column, Cell())
        yield cell.published.text if cell.published else "–"
        yield measured(cell, reading.digits)
    yield row.clean
    yield row.budget


def measured(cell: Cell, digits: int) -> str:
    """83.1 ± 0.4 (3), or a dash; the number of seeds in brackets."""
    count = len(cell.values)
    if not count:
        return "failed" if cell.failed else "–"
    text = f"{in_words(list(cell.values.values()), 1, digits)} ({count})"
    lost = len(set(cell.failed) - set(cell.values))
    return text + (f", {lost} failed" if lost else "") + (OPTIMISTIC if cell.optimistic else "")


def legend(reading: Reading) -> list[str]:
    """What the signs of the table mean."""
    told = [f"{reading.unit}: mean ± standard deviation, and the number of seeds in brackets."]
    if any(row.ours for row in reading.rows):
        told.append("† not in the paper: it stands here for a fair comparison.")
    if any(cell.optimistic for row in reading.rows for cell in row.cells.values()):
        told.append(f"{OPTIMISTIC} optimistic: measured on rows that have also tuned the run.")
    return told


def lines(
    artefact: Artefact, found: Found, reading: Reading, notes: list[str], failures: Mapping[str, str]
) -> list[str]:
    """table.md."""
    seeds = ", ".join(map(str, found.seeds))
    told = [f"# {printable(artefact.title)} ({artefact.name})", ""]
    told += [f"{SOURCE}; scale {found.scale.name}, seeds {seeds}.", ""]
    if reading.rows:
        told += [_line(heads(found, reading)), _line(["---"] * len(heads(found, reading)))]
        told += [_line(cells(reading, row)) for row in reading.rows]
        told += ["", " ".join(legend(reading))]
    if reading.claims:
        told += ["", "## Claims", "", _line(["claim", "published", "measured here", ""]), _line(["---"] * 4)]
        told += [_line([c.text, c.published or "in words", c.measured, c.verdict]) for c in reading.claims]
        told += ["", "Not decided: within one standard deviation, or of one seed."]
    told += [f"\n![{figure.caption}]({figure.file})" for figure in reading.figures]
    told += ["", "## What differs from the paper", "", *(f"* {note}" for note in notes)] if notes else []
    if failures:
        told += ["", "## Failed runs", "", *(f"* {path}: {printable(text)}" for path, text in failures.items())]
    return told


def _line(texts: Any) -> str:
    return "| " + " | ".join(printable(text).replace("|", "\\|") for text in texts) + " |"


def _csv(reading: Reading) -> str:
    """A line for each row and column."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["row", "column", "published", "published_std", "measured", "measured_std", "seeds", "failed"]
    writer.writerow([*head, "clean_data", "tuning_budget", "in_paper", "optimistic"])
    for row in reading.rows:
        for column in reading.columns:
            cell = row.cells.get(column, Cell())
            number = cell.published
            told = [number and number.mean, number and number.std, cell.mean, cell.std]
            about = [row.clean, row.budget, not row.ours, cell.optimistic]
            writer.writerow([row.title, column, *told, len(cell.values), len(cell.failed), *about])
    return buffer.getvalue()


def _content(
    artefact: Artefact,
    found: Found,
    reading: Reading,
    notes: list[str],
    failures: Mapping[str, str],
    command: str,
) -> dict[str, Any]:
    def of_cell(cell: Cell) -> dict[str, Any]:
        number = cell.published
        return {
            "published": None if number is None else {"mean": number.mean, "std": number.std},
            "measured": {"mean": cell.mean, "std": cell.std, "values": {str(k): v for k, v in cell.values.items()}},
            "failed": {str(k): v for k, v in cell.failed.items()},
            "optimistic": cell.optimistic,
        }

    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "name": artefact.name,
        "title": artefact.title,
        "source": SOURCE,
        "scale": found.scale.name,
        "seeds": list(found.seeds),
        "complete": all(len(found.paths(name)) == len(found.seeds) for name in found.wanted),
        "fastmeta": __version__,
        "environment": record(torch.device("cuda" if torch.cuda.is_available() else "cpu"), command),
        "unit": reading.unit,
        "columns": list(reading.columns),
        "rows": [
            {
                "row": row.title,
                "cells": {column: of_cell(row.cells.get(column, Cell())) for column in reading.columns},
                "clean_data": row.clean,
                "tuning_budget": row.budget,
                "in_paper": not row.ours,
            }
            for row in reading.rows
        ],
        "claims": [
            {
                "text": claim.text,
                "published": claim.published,
                "measured": claim.measured,
                "verdict": claim.verdict,
                "asserted_at_smoke": claim.sign,
            }
            for claim in reading.claims
        ],
        "figures": [{"file": figure.file, "caption": figure.caption} for figure in reading.figures],
        "notes": notes,
        "failed": dict(failures),
        "runs": list(_runs(found)),
    }


def _runs(found: Found) -> Iterator[dict[str, Any]]:
    """Of each run its config and figures."""
    for one in in_order(found.wanted.values()):
        per_seed = {}
        for seed in found.seeds:
            path = one.run(found.runs, seed)
            done = (path / SUMMARY).is_file()
            per_seed[str(seed)] = _figures(read(path / SUMMARY, read_summary)) if done else None
        config = {k: v for k, v in lasting(one.config).items() if k != "seed"}
        yield {
            "folder": f"runs/{one.key}",
            "names": [name for name, other in found.wanted.items() if other.key == one.key],
            "folds": one.folds,
            "learns_from": {option: f"runs/{source.key}" for option, source in one.sources.items()},
            "config": config,
            "seeds": per_seed,
        }


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: summary.get(key) for key in _FIGURES}
    baselines = {name: s.get("test_accuracy_last") for name, s in summary["baselines"].items()}
    return {**told, "baselines": baselines}
