"""An artefact for the terminal: its table and what its claims come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmeta._text import printable
from fastmeta.paper.artefact import Artefact, Cell, Reading
from fastmeta.paper.written_reading import legend, measured

if TYPE_CHECKING:
    from rich.console import Group

_NAME = 44


def in_terminal(artefact: Artefact, reading: Reading) -> Group:
    """A row may have several columns: they stand below each other, so that 80 characters are enough."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Text | Table] = [Text(f"\n{printable(artefact.title)} ({artefact.name})", style="bold")]
    for column in reading.columns:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column(printable(column, _NAME), no_wrap=True)
        for head in ("published", "here"):
            table.add_column(head, justify="right", no_wrap=True)
        for row in reading.rows:
            cell = row.cells.get(column, Cell())
            published = cell.published.text if cell.published else "–"
            name = printable(row.title, _NAME) + (" †" if row.ours else "")
            table.add_row(Text(name), Text(published), Text(measured(cell, reading.digits)))
        parts += [table, Text()]
    if reading.rows:
        parts.append(Text("\n".join(legend(reading)) + "\n", style="dim"))
    for claim in reading.claims:
        parts.append(Text(f"{claim.verdict}: {printable(claim.text)} {printable(claim.measured)}"))
    return Group(*parts)
