"""How a stage stands: on the test set, on validation rows, on the clean rows, and how its labels do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fastmeta.data import Source
from fastmeta.training.label_metrics import label_figures
from fastmeta.training.metrics import class_accuracy, evaluate
from fastmeta.training.modes import looked_at

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage


def figures(stage: Stage) -> dict[str, Any]:
    """What a line of metrics says of the stage as it is now: test accuracy, nll, ece, and how the labels stand.

    With trajectory_every also accuracy on the clean rows, which cost a third of a step each: they have tuned the
    labels, so it is optimistic.
    """
    labels, of_labels = stage.method.labels, dict[str, Any]()
    if labels is not None:
        of_labels = label_figures(labels, stage.data.y_true, stage.data.train_size, stage.ranks)
    found: dict[str, Any] = tested(stage, stage.model)
    if stage.data.val is not None:
        found["val_accuracy"] = _evaluated(stage, stage.model, *stage.data.val)["test_accuracy"]
    kept = stage.recorder is not None and stage.data.meta_size
    return found | of_labels | (_of_clean_rows(stage) if kept else {})


def tested(stage: Stage, model: nn.Module) -> dict[str, float | None]:
    """Accuracy, nll and ece of `model` on the test set, nothing where there is none."""
    return {} if stage.data.test is None else _evaluated(stage, model, *stage.data.test)


def _evaluated(stage: Stage, model: nn.Module, source: Source, targets: Tensor) -> dict[str, float | None]:
    return evaluate(model, source, targets, **_how(stage))


def _how(stage: Stage) -> dict[str, Any]:
    size = max(512, stage.config.data.batch_size or 0)
    return {"batch_size": size, "autocast": stage.autocast, "ranks": stage.ranks}


def _of_clean_rows(stage: Stage) -> dict[str, Any]:
    data = stage.data
    rows = range(data.clean_start, data.clean_start + data.meta_size)
    with looked_at(stage.model, stage.device):  # a run with a trajectory is bitwise the one without
        whole, by_class = class_accuracy(
            *(stage.model, data.source, data.targets, rows, data.num_classes), **_how(stage)
        )
    return {"meta_accuracy": whole, "meta_accuracy_by_class": by_class}
