"""How the given labels are wrong, found out by a short run before canaries get wrong labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastmeta.data import derived_seed
from fastmeta.losses import ClassLabels
from fastmeta.posterior import FOLDS, LabelPosterior
from fastmeta.training.config import TrainConfig
from fastmeta.training.samples import read_rows

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage

#: of the epochs of a run
_SHARE = 0.1
#: clean steps of each copy, and bounds of their batches
STEPS, LEAST_BATCH, MOST_BATCH = 30, 64, 512


def pilot_epochs(config: TrainConfig) -> int:
    """As many as labels wait for where they move between epochs, else a tenth of the run."""
    warmup = None if config.labels.update == "exact" else config.labels.warmup_epochs
    return max(1, round(_SHARE * (config.epochs or 0)) if warmup is None else warmup)


def noise_of(stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """T (C, C), T[y, k] = P(given k | right y), and the shares (C,) of the right classes in the training set.

    By :class:`fastmeta.LabelPosterior` from the model of a pilot, and from all clean rows, canaries too.
    """
    data, config = stage.data, stage.config

    def clean(rows: Tensor) -> Any:
        return read_rows(data, rows + data.train_size)

    # clean steps cost no more than the pilot, as long as their batches are no smaller than a few rows of each class
    most = stage.total * stage.sampler.batch_size // (FOLDS * STEPS)
    look = LabelPosterior(
        stage.model,
        ClassLabels(stage.context.targets, data.num_classes),  # which hold no table
        steps=STEPS,
        batch_size=min(max(most, LEAST_BATCH), MOST_BATCH),
        seed=derived_seed(config.seed, "clean rows of a pilot"),
        micro_batch=config.micro_batch,
    )
    with stage.autocast():
        found = look.estimate(stage.samples().train, (clean, data.targets[data.train_size :]))
    return found.transition.cpu().numpy(), found.probs.double().mean(0).cpu().numpy()
