"""The labels of a run: labels.npz for everybody, labels.safetensors for going on with them."""

from __future__ import annotations

import io
import re
import reprlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmeta._memory import check_room, free_memory
from fastmeta.data import Splits
from fastmeta.distributed import rows_to_first
from fastmeta.losses import FAMILIES, InstanceLabels, Labels
from fastmeta.training.label_metrics import average_precision, changes, flips
from fastmeta.training.readings import TABLE, Readings
from fastmeta.training.rundir.checkpoint import header, unpack, write
from fastmeta.training.rundir.files import write_atomically

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage


#: tensors and values of labels.safetensors
Table = tuple[dict[str, torch.Tensor], dict[str, Any]]


def write_labels(path: Path, stage: Stage, splits: Splits, readings: Readings, content: Table | None) -> dict[str, Any]:
    """labels.npz, as they are read, and labels.safetensors, the table of learned ones, which is `content`; returns the
    label figures of the summary.

    Canaries are in neither. Labels that they say are worse than the given ones are withheld: see layout.py.
    """
    (given, y_true), labels = stage.data.of_all(), stage.method.labels
    size = len(given)
    canaries = None
    if labels is None:
        one, zero = torch.ones(len(given)), torch.zeros(len(given))
        table = {"learned": given, "probability": one, "given_probability": one, "entropy": zero}
    else:
        chosen = readings.of[readings.chosen]
        if stage.kept is not None:
            canaries = stage.kept.result(chosen["learned"])
        # in the precision of the table, which its own reading has already
        dtype = readings.of[TABLE]["probability"].dtype
        table = {k: v[:size] if k == "learned" else v[:size].to(dtype) for k, v in chosen.items()}
        assert readings.quality is not None
        table["label_quality"] = readings.quality[:size].to(dtype)
        assert content is not None
        write(path / "labels.safetensors", *content, stage.config.max_shard_mb)
    withheld = canaries is not None and canaries["right_after"] < canaries["right_before"] and not stage.config.force
    learned = table["learned"]
    if withheld:
        table |= {"learned": given, "probability": table["given_probability"]}
    arrays = {
        "index": splits.train.row,
        "given": given.cpu().numpy(),
        **{k: v.cpu().numpy() for k, v in table.items()},
    }
    if withheld:
        arrays["withheld"] = learned.cpu().numpy()
    if splits.train.y_true is not None:
        arrays["true"] = splits.train.y_true
    write_atomically(path / "labels.npz", npz_bytes(arrays))

    initial = None if y_true is None else float((given == y_true).double().mean())
    figures = changes(given, table["learned"], y_true)
    precision = None if labels is None else average_precision(table["label_quality"], given, y_true)
    return {
        "label_accuracy_initial": initial,
        "label_accuracy_final": figures["label_accuracy"],
        "labels_changed": figures["labels_changed"],
        "labels_corrected": figures["labels_corrected"],
        "labels_spoiled": figures["labels_spoiled"],
        "wrong_label_average_precision": precision,
        "label_flips": flips(given, table["learned"], splits.num_classes),
        "canaries": canaries,
        "labels_withheld": withheld,
        "reading": None if labels is None else readings.summary(stage),
    }


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """As np.savez_compressed, but for the time of day, which that writes beside each array."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with file.open(entry, "w", force_zip64=True) as content:
                np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def label_table(stage: Stage) -> Table | None:
    """What :func:`write_labels` wants on rank 0, of all rows; all ranks ask together. None without learned labels."""
    labels, ranks = stage.method.labels, stage.ranks.host
    if labels is None:
        return None
    tensors, values = _content(labels, stage.data.train_size)
    by_row = tensors.keys() & {"targets", *getattr(labels, "row_state", ())}
    found = ranks.each((sorted(by_row), sum(tensors[name].nbytes for name in by_row)))
    free, whole = free_memory(), sum(size for _, size in found)
    # to write it takes the table, a copy, and the file as it is made
    fits = free is None or whole * (3 if stage.config.max_shard_mb is None else 1) <= free
    if ranks.size > 1 and not (ranks.told(fits) and all(names == found[0][0] for names, _ in found)):
        by_row, (tensors, values) = {"targets"}, _of_others(labels, {"targets": labels.targets})
    return {name: rows_to_first(t, ranks) if name in by_row else t for name, t in sorted(tensors.items())}, values


def _content(labels: Any, size: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and values that :func:`load_labels` takes: a family of ours with a dense table, wherever the labels
    themselves keep theirs.

    Of labels with canaries behind the first `size` rows, these rows.

    Of other labels, and of a table that memory does not hold, it is what stands in tensors, under a name that says so.
    """
    tensors = {name: t for name, t in labels.state_dict().items() if isinstance(t, torch.Tensor)}
    if isinstance(labels, Labels):
        try:
            if isinstance(labels, InstanceLabels) and labels.table is not None:
                # beside the dense one, what is written of it
                check_room(3 * len(labels) * labels.num_classes * labels.dtype.itemsize, "a dense table to be written")
            state = labels.dense().state_dict()
            shapes = labels.shapes(size, labels.num_classes)
            return (
                {k: t[: shapes[k][0]] if k in shapes else t for k, t in state.items()},
                {"family": labels.family},
            )
        except ValueError:
            tensors = {"targets": labels.targets[:size]}
    return _of_others(labels, tensors)


def _of_others(labels: Any, tensors: dict[str, torch.Tensor]) -> Table:
    return tensors, {"family": f"{type(labels).__module__}:{type(labels).__qualname__}"}


def load_labels(path: Path, size: int, num_classes: int) -> Labels | None:
    """None for a table of another family, which only its own method could read: labels.npz has what it says."""
    shapes, values = header(path)
    if re.fullmatch(r"[\w.]+:[\w.<>]+", str(values.get("family"))):
        unpack(path)
        return None
    kind = FAMILIES.get(str(values.get("family")))
    if kind is None:
        raise ValueError(f"it holds no labels but {reprlib.repr(values)}")
    if {k: v for k, v in shapes.items() if k != "label_step"} != kind.shapes(size, num_classes):
        raise ValueError(f"its tables are not those of {size:,} labels of {num_classes:,} classes")
    state, _ = unpack(path)
    labels = kind(state["targets"], num_classes, 0.5, dtype=state[kind.parameter].dtype)
    labels.load_state_dict(state)
    return labels
