"""The images that a run's labels are of, read anew by the name of its data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmeta.data import InputError, load_dataset
from fastmeta.paper.reading.learned_run import LearnedRun
from fastmeta.training.prepare import CHOSEN


def pictures(run: LearnedRun, positions: Sequence[int]) -> list[np.ndarray | None]:
    """uint8 images (H, W) or (H, W, 3) of these training rows, the brightest pixel of grey ones at 255.

    None for each where the samples are no images, or are not there any more.
    """
    config = run.config
    missing: list[np.ndarray | None] = [None] * len(positions)
    chosen = {name: getattr(config.data, name) for name in CHOSEN}
    seed = config.seed if config.data.split_seed is None else config.data.split_seed
    try:
        x = load_dataset(config.dataset, seed=seed, **{**chosen, "resident": "no", "download": False}).train.x
    except InputError:
        return missing
    if getattr(x, "dtype", None) != np.uint8 or len(x.shape) != 4 or x.shape[3] not in (1, 3):
        return missing
    if int(run.rows.max()) >= len(x):
        return missing
    found = [np.asarray(x[int(run.rows[at])]) for at in positions]
    if x.shape[3] == 3:
        return [*found]
    # of few levels, such as the digits' 16, all would be black
    brightest = max(1, *(int(image.max()) for image in found))
    return [(image[..., 0].astype(np.uint16) * 255 // brightest).astype(np.uint8) for image in found]
