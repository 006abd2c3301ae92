"""report.html of an artefact: one file with its table, claims and figures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from fastmeta._text import printable
from fastmeta.paper.artefact import Artefact, Found, Reading
from fastmeta.paper.published import SOURCE
from fastmeta.report.markup import Markup, element, table
from fastmeta.report.page import note, page, section, tile

_KINDS = {"reproduced": "good", "not reproduced": "bad", "not decided": ""}
_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def artefact_page(
    artefact: Artefact,
    found: Found,
    reading: Reading,
    notes: Sequence[str],
    failures: Mapping[str, str],
    environment: Mapping[str, Any],
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    legend: Sequence[str],
) -> bytes:
    """`head`, `body` and `legend` are the table's."""
    counts = {verdict: sum(claim.verdict == verdict for claim in reading.claims) for verdict in _KINDS}
    tiles = [tile(count, verdict) for verdict, count in counts.items()] if reading.claims else []
    return page(
        f"fastmeta: {artefact.name}",
        element("h1", artefact.title),
        element("p", f"{artefact.name} of {SOURCE}, scale {found.scale.name}", class_="soft"),
        element(
            "div",
            tile(found.scale.name, "scale"),
            tile(len(found.seeds), "seeds"),
            tiles,
            class_="tiles",
        ),
        section("Table", table(head, body), [element("p", text, class_="soft") for text in legend]) if body else None,
        section("Claims", [_claim(claim) for claim in reading.claims]) if reading.claims else None,
        section("Figures", [_figure(found, figure.file, figure.caption) for figure in reading.figures])
        if reading.figures
        else None,
        section("What differs from the paper", element("ul", [element("li", text) for text in notes]))
        if notes
        else None,
        section("Failed runs", [note(f"{path}: {printable(text)}", "bad") for path, text in failures.items()])
        if failures
        else None,
        section("Measured on", element("p", _machine(environment))),
    )


def _claim(claim: Any) -> Markup:
    said = f"Published: {claim.published or 'in words'}. Here: {claim.measured}."
    return note(
        element("span", element("b", f"{claim.verdict}: "), claim.text, element("br"), said), _KINDS[claim.verdict]
    )


def _figure(found: Found, file: str, caption: str) -> Markup | None:
    path = found.out / file
    if path.suffix not in _TYPES or not path.is_file():
        return None
    data = base64.b64encode(path.read_bytes()).decode()
    return element(
        "figure",
        element("figcaption", caption),
        element("img", src=f"data:{_TYPES[path.suffix]};base64,{data}", alt=caption, style="max-width:100%"),
    )


def _machine(environment: Mapping[str, Any]) -> str:
    gpu, cpu = environment["gpu"], environment["cpu"]
    device = gpu["name"] if gpu else f"{cpu['model']}, {cpu['usable_cores']} cores"
    commit = (environment["commit"] or "an installed package")[:12] + (" and changes" if environment["dirty"] else "")
    return (
        f"{device}; torch {environment['torch']}, fastmeta {environment['fastmeta']}, {commit}; {environment['date']}"
    )
