"""Finished runs without training: a small one is made once, and copied with other files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta.training import LabelConfig, TrainConfig, train
from fastmeta.training.rundir import npz_bytes
from fastmeta.training.rundir.files import seal_of
from fastmeta.training.rundir.summary import summary_digest
from tests.support.runs import Warnings, two_classes

#: labels that move in each step, and far: quicker than estimates
EXACT = LabelConfig(update="exact", label_step=3.0, warmup_epochs=0)
NAMES = ["<b>dark</b>", "br,ight \"&'"]


def small_run(folder: Path, **options: Any) -> Path:
    """Two classes of bright and dark images, in folder/two.npz, a tenth wrong; their names need escapes."""
    np.savez(folder / "two.npz", **two_classes(class_names=NAMES), note=np.array("a note"))
    options = {"model": "mlp", "epochs": 3, "threads": 1, "baselines": "none", "labels": EXACT, **options}
    config = TrainConfig(dataset=f"npz:{folder / 'two.npz'}", out=str(folder / "run"), **options)
    return train(config, listener=Warnings()).path


def changed(run: Path, to: Path, summary: dict[str, Any] | None = None, **arrays: Any) -> Path:
    """A copy of `run` at `to` with other values in its summary and other arrays in labels.npz, sealed as its own."""
    shutil.copytree(run, to)
    with np.load(run / "labels.npz") as file:
        table = {**file, **arrays}
    (to / "labels.npz").write_bytes(npz_bytes({k: v for k, v in table.items() if v is not None}))
    told = json.loads((run / "summary.json").read_text()) | (summary or {})
    told["files"]["labels.npz"] = seal_of(to / "labels.npz")
    told["digest"] = summary_digest(told)
    (to / "summary.json").write_text(json.dumps(told))
    return to


def withheld(run: Path, to: Path) -> Path:
    """The same of a run whose labels canaries find worse."""
    share = {"rate": 0.5, "low": 0.2, "high": 0.8, "rows": 10}
    canaries = {"origin": "drawn", "count": 40, "kept_epoch": 3, "stopped_at": None, "wrong_rate": 0.1}
    canaries |= {"put_right": share, "spoiled": share, "right_before": 0.9, "right_after": 0.5}
    with np.load(run / "labels.npz") as file:
        given, learned = file["given"], file["learned"]
    return changed(run, to, {"labels_withheld": True, "canaries": canaries}, learned=given, withheld=learned)
