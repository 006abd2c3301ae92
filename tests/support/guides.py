"""What a page of docs/ says to write, read word by word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

#: "In `FILE`, before the line `LINE`", "..., before the line starting with `BEGINNING`", "The new file `FILE`"
_PLACE = re.compile(
    r"(?:[Ii]n `(?P<file>[^`]+)`,\sbefore\sthe\sline\s(?P<starting>starting\swith\s)?`(?P<line>[^`]+)`"
    r"|[Tt]he\snew\sfile\s`(?P<new>[^`]+)`)\s*\Z"
)


@dataclass
class Block:
    """A fenced block: its language, its text, and the paragraph before it."""

    language: str
    text: str
    before: str


def blocks(page: Path) -> list[Block]:
    found = []
    parts = re.split(r"^```(\w*)\n(.*?)^```\n", page.read_text(), flags=re.M | re.S)
    for prose, language, text in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        found.append(Block(language, text, prose.strip().rsplit("\n\n", 1)[-1]))
    return found


def follow(page: Path, root: Path) -> list[str]:
    """Write every block of `page` that names its place into the checkout `root`; the files."""
    written = []
    for block in blocks(page):
        place = _PLACE.search(block.before)
        if place is None:
            continue
        name = place["new"] or place["file"]
        path = root / name
        if place["new"]:
            assert not path.exists(), f"{page.name}: {name} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        else:
            lines = path.read_text().splitlines(keepends=True)
            line = place["line"]
            at = [
                k for k, x in enumerate(lines) if x.startswith(line) and (place["starting"] or x.rstrip("\n") == line)
            ]
            assert len(at) == 1, f"{page.name}: {name} has {len(at)} lines {line!r}"
            lines.insert(at[0], block.text)
            path.write_text("".join(lines))
        written.append(name)
    return written
