"""Our own methods in benchmarks/worth.py, by the package's trainer."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from worth_rivals import BATCH, DECAY, LR, MOMENTUM, Method, Result, network, soft_start, tested
from worth_sets import Set

import fastmeta
from fastmeta.training import DataConfig, LabelConfig, OptimConfig


def arrays(data: Set) -> dict[str, Any]:
    """As :func:`fastmeta.train` takes them."""
    return {
        "x_train": data.x_train,
        "y_train": data.y_given,
        "y_true": data.y_true,
        "x_meta": data.x_meta,
        "y_meta": data.y_meta,
        "x_test": data.x_test,
        "y_test": data.y_test,
    }


def config_of(data: Set, seed: int, *, split_seed: int | None = None, **more: Any) -> fastmeta.TrainConfig:
    """A run on the network and schedule of the rivals; `more` is what else it has."""
    return fastmeta.TrainConfig(
        model=None,
        epochs=data.epochs,
        seed=seed,
        threads=1,
        baselines="none",
        optim=OptimConfig(lr=LR, momentum=MOMENTUM, weight_decay=DECAY),
        data=DataConfig(batch_size=BATCH, standardise=False, split_seed=split_seed),
        **more,
    )


def by_trainer(changes: Callable[[Set], dict[str, Any]] = lambda data: {}) -> Method:
    """A run of the trainer on the network and schedule of the rivals; `changes` says what else of the TrainConfig."""

    def run(data: Set, seed: int) -> Result:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the health of labels, which the figures tell
            config = config_of(data, seed, split_seed=seed, out=f"{folder}/run", **changes(data))
            done = fastmeta.train(config, model=network(data, seed), data=arrays(data))
            with np.load(f"{folder}/run/labels.npz") as table:  # as they are handed out: by their margin, or withheld
                labels, doubted = table["learned"], 1 - table["label_quality"].astype(np.float64)
        seconds = time.process_time() - began
        test, by_class = tested(data, done.model)
        return Result(test, labels, doubted, seconds, by_class)

    return run


#: per-sample labels by exact steps, as `--labels.update exact` has them by default
EXACT = by_trainer(
    lambda data: {
        "method": "instance_labels",
        "labels": LabelConfig(update="exact", target_prob=soft_start(data.num_classes)),
    }
)

#: the same start, moved once an epoch along steps on the clean rows, as `--labels.update epoch` has it by default
EPOCH = by_trainer(
    lambda data: {
        "method": "instance_labels",
        "labels": LabelConfig(update="epoch", target_prob=soft_start(data.num_classes)),
    }
)

#: what a user gets who sets nothing but the network and its schedule
DEFAULT = by_trainer()

#: THE PLACE for another method of ours: a function (Set, seed) -> Result under a name. `DEFAULT` follows the package's
#: defaults by itself.
OURS: dict[str, Method] = {"exact": EXACT, "epoch": EPOCH, "default": DEFAULT}
