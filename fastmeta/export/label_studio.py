"""Tasks of Label Studio: the most suspicious rows, each with the learned class as a prediction.

A task is ``{"data": {...}, "predictions": [{"model_version", "score", "result": [...]}]}`` as its guide "Import
pre-annotated data" has it; the labeling interface that the names of a prediction belong to is written beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from fastmeta._version import __version__
from fastmeta.export.sample_views import samples_of
from fastmeta.training.rundir import RunLabels, to_json

#: pixels of the longer side of an image that is embedded: most, and least, because people shall see it
MOST, LEAST = 512, 128


def write(labels: RunLabels, path: Path, format: str) -> dict[Path, bytes]:
    samples = samples_of(labels)
    kind = "text" if samples is None or samples.kind == "numbers" else samples.kind
    tasks = [_task(labels, at, kind, samples) for at in range(len(labels))]
    return {
        path: (to_json(tasks, indent=1) + "\n").encode(),
        path.with_suffix(".xml"): _interface(kind, labels.class_names).encode("utf-8", "backslashreplace"),
    }


def _task(labels: RunLabels, at: int, kind: str, samples: Any) -> dict[str, Any]:
    names, row = labels.class_names, int(labels.row[at])
    given, learned = names[labels.given[at]], names[labels.learned[at]]
    if samples is None or samples.kind == "numbers":
        shown = f"row {row}"
    elif samples.files is not None:  # as Label Studio serves files of its LOCAL_FILES_DOCUMENT_ROOT
        shown = "/data/local-files/?d=" + quote(samples.files[at], errors="surrogateescape")
    else:
        shown = samples.image_uri(at, MOST, LEAST) if kind == "image" else samples.text(at)
    prediction: dict[str, Any] = {
        "model_version": f"fastmeta {__version__}, learned labels (in-sample)",
        "result": [
            {"from_name": "label", "to_name": "sample", "type": "choices", "value": {"choices": [learned]}},
        ],
    }
    if labels.probability is not None:
        prediction["score"] = float(labels.probability[at])
    data = {kind: shown, "row": row, "given_label": given, "label_quality": float(labels.quality[at])}
    return {"data": data, "predictions": [prediction]}


def _interface(kind: str, names: list[str]) -> str:
    tag = "Image" if kind == "image" else "Text"
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in names)
    return (
        f'<View>\n  <{tag} name="sample" value="${kind}"/>\n  <Header value="given: $given_label"/>\n'
        f'  <Choices name="label" toName="sample" choice="single">\n{choices}\n  </Choices>\n</View>\n'
    )
