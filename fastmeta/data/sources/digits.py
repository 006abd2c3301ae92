"""``digits``: the handwritten digits that scikit-learn carries."""

from __future__ import annotations

import numpy as np

from fastmeta.data.dataset import Dataset
from fastmeta.data.seeds import numpy_generator
from fastmeta.data.sources.scheme import Choice

FORM = "digits"
HELP = "the handwritten digits that scikit-learn carries"

DIGITS_TEST = 397
DIGITS_META_PER_CLASS = 3


def read(argument: str, choice: Choice) -> Dataset:
    choice.refuse_arrays("the digits have none to choose")
    return digits(choice.seed)


def digits(seed: int = 0) -> Dataset:
    """1,797 handwritten digits, 8x8 grey: 397 test, 30 clean meta (3 per class), 1,370 train, split by `seed`.

    The images are those of the UCI optical recognition set in scikit-learn, 17 grey levels, here spread over 0..240.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * 15).astype(np.uint8)[..., None]
    targets = bunch.target.astype(np.int64)
    order = numpy_generator(seed, "digits").permutation(len(targets))
    test, rest = order[:DIGITS_TEST], order[DIGITS_TEST:]
    # positions in `rest`, which becomes x_train
    meta = np.concatenate([np.flatnonzero(targets[rest] == c)[:DIGITS_META_PER_CLASS] for c in range(10)])
    return Dataset.from_arrays(
        {
            "x_train": images[rest],
            "y_train": targets[rest],
            "y_true": targets[rest],
            "meta_index": meta,
            "x_test": images[test],
            "y_test": targets[test],
        },
        name="digits",
    )
