"""Data with enough clean rows for canaries."""

import numpy as np

from fastmeta.training import DataConfig, LabelConfig, OptimConfig, TrainConfig
from tests.support.tables import Pairs

CLASSES, EPOCHS = 3, 4


def config(path, method="instance_labels", update="exact", **changes):
    rates = {"label_lr": 300.0} if update == "exact" else {"steps": 2}
    start = {} if update == "posterior" else {"target_prob": 0.6}
    labels = LabelConfig(update=update, **{**start, **rates, **changes.pop("labels", {})})
    return TrainConfig(
        method=method,
        epochs=EPOCHS,
        threads=1,
        model="mlp",
        out=str(path),
        labels=labels,
        optim=OptimConfig(lr=0.05),
        data=DataConfig(batch_size=25, meta_batch_size=30),
        checkpoint_seconds=0,
        **{"baselines": "none", **changes},
    )


def many_clean(seed=0, count=150, clean=210, rate=0.3, **changes):
    """Three classes of 6 features, a share of the given labels one class too high."""
    rng = np.random.default_rng(seed)

    def part(size):
        y = np.arange(size) % CLASSES
        return rng.normal(0, 0.7, (size, 6)) + 2 * np.eye(CLASSES, 6)[y], y

    (x_train, y_true), (x_meta, y_meta), (x_test, y_test) = part(count), part(clean), part(30)
    arrays = {
        "x_train": x_train,
        "y_train": np.where(rng.random(count) < rate, (y_true + 1) % CLASSES, y_true),
        "y_true": y_true,
        "x_meta": x_meta,
        "y_meta": y_meta,
        "x_test": x_test,
        "y_test": y_test,
    }
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


def before(seed=1, clean=210, rate=0.3):
    """What the labels of these clean rows were before somebody checked them."""
    y = np.arange(clean) % CLASSES
    return np.where(np.random.default_rng(seed).random(clean) < rate, (y + 1) % CLASSES, y)


def streams(**changes):
    """The same as map-style data sets of (x, y)."""
    arrays = many_clean(**changes)

    def pairs(part):
        x = (arrays[f"x_{part}"] * 10.0 ** np.arange(6)).astype(np.float32)
        return Pairs(x, arrays[f"y_{part}"])

    return {part: pairs(part) for part in ("train", "meta", "test")} | {"y_true": arrays["y_true"]}
