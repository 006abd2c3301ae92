"""The rows whose labels have changed most, to be judged by eye: images, texts, or numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmeta._text import printable, printable_lines
from fastmeta.export import Samples
from fastmeta.report.markup import Markup, element
from fastmeta.training.rundir import RunLabels

ROWS = 40
NAME_LENGTH, TEXT_LENGTH, NUMBERS = 40, 300, 8
#: bytes of all images together, as base64; they are made smaller until they keep it
_MOST_BYTES = 500_000
_SIDES = (112, 64, 48, 32, 24, 16)


def changed_rows(labels: RunLabels, samples: Samples | None) -> Markup | None:
    """Those first whose given label has the least quality; None where no label has changed.

    Args:
        samples: of the rows of `labels`, in their order.
    """
    changed = int((labels.learned != labels.given).sum())
    if not changed:
        return None
    positions = labels.suspicious(min(ROWS, changed))
    images = _images(samples, positions) if samples is not None and samples.kind == "image" else None
    cards = [_card(labels, at, samples, None if images is None else images[k]) for k, at in enumerate(positions)]
    wide = samples is not None and samples.kind == "text"
    return element("div", cards, class_="rows texts" if wide else "rows")


def _images(samples: Samples, positions: np.ndarray) -> list[str] | None:
    for side in _SIDES:
        made = [samples.image_uri(int(at), side) for at in positions]
        if sum(map(len, made)) <= _MOST_BYTES:
            return made
    return None


def _card(labels: RunLabels, at: Any, samples: Samples | None, image: str | None) -> Markup:
    names = [printable(labels.class_names[column[at]], NAME_LENGTH) for column in (labels.given, labels.learned)]
    verdict = None
    if labels.true is not None:
        true = printable(labels.class_names[labels.true[at]], NAME_LENGTH)
        right = labels.true[at] == labels.learned[at]
        verdict = element("div", "right" if right else f"truly {true}", class_="right" if right else "wrong")
    told = f"row {int(labels.row[at])} · quality {labels.quality[at]:.3f}"
    return element(
        "div",
        element("img", src=image, alt=f"row {int(labels.row[at])}") if image is not None else _words(samples, int(at)),
        element("div", names[0], " → ", element("b", names[1])),
        verdict,
        element("div", told, class_="soft"),
        class_="row",
    )


def _words(samples: Samples | None, at: int) -> Markup | None:
    if samples is None or samples.kind == "image":
        return None
    if samples.kind == "text":
        text = printable_lines(samples.text(at)[: TEXT_LENGTH + 1])
        return element("div", text if len(text) <= TEXT_LENGTH else text[:TEXT_LENGTH] + "…", class_="sample")
    numbers = np.asarray(samples.x[at]).reshape(-1)
    if numbers.dtype.kind not in "iufb":
        return None
    told = ", ".join(f"{v:.3g}" for v in numbers[:NUMBERS].tolist()) + (" …" if len(numbers) > NUMBERS else "")
    return element("div", told, class_="sample soft")
