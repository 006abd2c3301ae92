"""A folder that ``datasets.load_dataset`` reads: one parquet file whose classes bear their names, and a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastmeta._text import distinct
from fastmeta.export.columns import NOTE, parquet_bytes, pyarrow
from fastmeta.training.rundir import RunLabels

_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

# Learned labels

Written by fastmeta from a run of `{method}` on {dataset}: {rows} rows. {note}.

`row` is the number of the sample in the data set; `given` and `learned` are classes, in the order {names}.
"""


def write(labels: RunLabels, path: Path, format: str) -> dict[Path, bytes]:
    arrow, _ = pyarrow()
    table: dict[str, Any] = {
        "row": labels.row,
        "given": labels.given,
        "learned": labels.learned,
        "label_quality": labels.quality,
    }
    classes = {"names": distinct(labels.class_names), "_type": "ClassLabel"}
    features: dict[str, Any] = {
        "row": {"dtype": "int64", "_type": "Value"},
        "given": classes,
        "learned": classes,
        "label_quality": {"dtype": "float64", "_type": "Value"},
    }
    if labels.true is not None:
        table["true"], features["true"] = labels.true, classes
    # where datasets itself writes features; it needs no class of its own to be read
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    types = {name: arrow.float64() if name == "label_quality" else arrow.int64() for name in table}
    schema = arrow.schema(list(types.items()), metadata=about)
    card = _CARD.format(
        method=labels.summary["method"],
        dataset=json.dumps(labels.summary["dataset"]),
        rows=f"{len(labels):,}",
        note=NOTE[0].upper() + NOTE[1:],
        names=json.dumps(labels.class_names[:100], ensure_ascii=False),
    )
    return {
        path / "data" / "train-00000-of-00001.parquet": parquet_bytes(table, labels, schema),
        path / "README.md": card.encode("utf-8", "backslashreplace"),
    }
