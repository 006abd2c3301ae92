"""The list in docs/recipes.md, made of the shipped files: `python -m tests.support.recipe_list` writes it."""

from __future__ import annotations

import textwrap
from pathlib import Path

from fastmeta import recipes
from fastmeta.recipes import Published, Recipe

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
BEGIN, END = "<!-- recipes:begin -->", "<!-- recipes:end -->"
WIDTH = 132


def listed() -> str:
    """All of them, in Markdown."""
    return "\n\n".join(map(_section, map(recipes.read, recipes.names())))


def with_list(page: str) -> str:
    """`page` with the list between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{listed()}\n{END}{rest.split(END)[1]}"


def _section(recipe: Recipe) -> str:
    parts = [
        f"### {recipe.name}",
        textwrap.fill(f"**{recipe.title}.** {recipe.source}.", WIDTH),
        textwrap.fill(recipe.notes, WIDTH),
        textwrap.fill(f"Compared by default: {', '.join(f'`{m}`' for m in recipe.methods)}.", WIDTH),
    ]
    if recipe.published:
        parts.append(_table(recipe))
    return "\n\n".join(parts)


def _table(recipe: Recipe) -> str:
    """Published rows, a column for each noise that they were taken with."""
    noises = sorted({_noise(recipe, row) for row in recipe.published})
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in recipe.published:
        clean = ("yes" if row.clean else "no") + (", pretrained" if row.pretrained else "")
        std = "" if row.std is None else f" ± {row.std}"
        found.setdefault((row.row, clean, row.source), {})[_noise(recipe, row)] = f"{row.test}{std}"
    head = ["published, test %", *(f"`{noise}`" for noise in noises), "clean data", "source"]
    lines = [
        [name, *(cells.get(noise, "") for noise in noises), clean, source]
        for (name, clean, source), cells in found.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def _noise(recipe: Recipe, row: Published) -> str:
    return row.when.get("noise", recipe.tables.get("noise", "none"))


if __name__ == "__main__":
    PAGE.write_text(with_list(PAGE.read_text()))
