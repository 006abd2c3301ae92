"""The data sets of benchmarks/worth.py: ``load(name, seed)`` gives arrays that a network takes as they are.

The texts and CIFAR-10 are read from the folder in the environment variable FASTMETA_DATA (noisyag-news.npz,
cifar10-*.npz), Fashion-MNIST from FASTMETA_FASHION, by default where Debian's package dataset-fashion-mnist has it.
"""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta.data.noise import corrupt

FASHION = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True, eq=False)  # so that a cache takes it, by identity
class Set:
    """Training rows with given and true labels, a clean set that is no part of them, a test set. Labels are int64.

    The samples are float32 and standardised: tables by feature, images and texts by one mean and deviation (colour
    images by channel), over the training rows. `y_meta_given` are the labels that the clean rows had under the same
    noise.
    """

    name: str
    x_train: np.ndarray  # (N, d), or (N, channels, H, W) of images
    y_given: np.ndarray  # (N,)
    y_true: np.ndarray  # (N,)
    x_meta: np.ndarray
    y_meta: np.ndarray
    y_meta_given: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    epochs: int = 40
    texts: bool = False


@dataclass(frozen=True)
class _Rows:
    """All rows of a set before the clean ones leave: samples, labels as noise left them, and the truth."""

    x: np.ndarray
    given: np.ndarray
    true: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int


def load(name: str, seed: int) -> Set:
    """The set `name` of `SETS` or `MORE`; `seed` draws the split, the noise and the clean rows.

    Raises:
        KeyError: an unknown name.
        FileNotFoundError: files that are not where the environment says.
    """
    return {**SETS, **MORE}[name](name, seed)


def missing(name: str) -> str:
    """Why a set cannot be loaded here; empty where it can."""
    needs = {"news": "noisyag-news.npz", "weak": "noisyag-news.npz", "cifar": "cifar10-labels.npz"}
    for prefix, file in needs.items():
        if name.startswith(prefix) and not (Path(os.environ.get("FASTMETA_DATA", "/nonexistent")) / file).exists():
            return f"{file} is not in the folder of FASTMETA_DATA"
    if name.startswith("fashion") and not _fashion_folder().is_dir():
        return f"{_fashion_folder()} is no folder: Debian's package dataset-fashion-mnist, or FASTMETA_FASHION"
    return ""


# ---- small tables ----


def bundled(kind: str, noise: str, clean: int, test: float = 0.2) -> Callable[[str, int], Set]:
    def make(name: str, seed: int) -> Set:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{kind}")()
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(bunch.target))
        x, y = bunch.data[order], bunch.target[order].astype(np.int64)
        count, classes = int(test * len(y)), int(y.max()) + 1
        given = corrupt(y[count:], x[count:].astype(np.float32), classes, noise, rng)
        rows = _Rows(x[count:], given, y[count:], x[:count], y[:count], classes)
        return _finish(name, rows, _balanced(rows.true, clean, classes), by_feature=kind != "digits")

    return make


# ---- texts ----


def _data(file: str) -> Any:
    folder = os.environ.get("FASTMETA_DATA")
    if folder is None:
        raise FileNotFoundError(f"set FASTMETA_DATA to the folder that holds {file}")
    return np.load(Path(folder) / file)


@lru_cache(1)
def _texts() -> tuple[list[str], list[str], np.ndarray, np.ndarray, np.ndarray]:
    data = _data("noisyag-news.npz")
    train, test = (data[k].tobytes().decode().split("\n") for k in ("text_train", "text_test"))
    return train, test, *(data[k].astype(np.int64) for k in ("y_train", "y_true", "y_test"))


@lru_cache(1)
def _news_features() -> tuple[np.ndarray, np.ndarray]:
    """TF-IDF of 20,000 words at most, 256 singular vectors, rows of length one."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, test, *_ = _texts()
    words = TfidfVectorizer(sublinear_tf=True, min_df=3, max_features=20000, stop_words="english").fit(train)
    svd = TruncatedSVD(256, random_state=0).fit(words.transform(train))
    x = [svd.transform(words.transform(t)) for t in (train, test)]
    return tuple(v / (np.linalg.norm(v, axis=1, keepdims=True) + 1e-6) for v in x)  # type: ignore[return-value]


def news(name: str, seed: int, clean: int = 100, count: int = 4000) -> Set:
    """So many of the 10,000 texts, some of them clean; people gave the labels."""
    (x, x_test), (_, _, given, true, y_test) = _news_features(), _texts()
    chosen = np.random.default_rng(seed).permutation(len(true))[:count]
    rows = _Rows(x[chosen], given[chosen], true[chosen], x_test, y_test, 4)
    # half of the deviation of other sets: that of the runs which these settings come from
    return _finish(name, rows, _balanced(rows.true, clean, 4), epochs=20, texts=True, scale=0.5)


#: World, Business and, thinned, Sci/Tech of the news
WEAK_CLASSES, WEAK_SHARES = (0, 2, 3), (0.475, 0.475, 0.05)
WEAK_ROWS, WEAK_CLEAN = 3000, 120


def _weak(words: int, wrong: float, balanced: bool) -> Callable[[str, int], Set]:
    """Few words of three classes, one of which is rare; the test set has the shares of the training set.

    `wrong` labels are those of people, of whose mistakes as many are kept as give this share.
    """

    def make(name: str, seed: int) -> Set:
        from sklearn.feature_extraction.text import TfidfVectorizer

        train, test, given, true, y_test = _texts()
        number = np.full(4, -1)
        number[list(WEAK_CLASSES)] = range(3)
        given, true, y_test = number[given], number[true], number[y_test]
        rng = np.random.default_rng(seed)
        usable = (given >= 0) & (true >= 0)
        # of the mistakes that people make in each class, the same part is kept everywhere
        rates = [(given != true)[usable & (true == c)].mean() for c in range(3)]
        part = wrong / np.dot(rates, WEAK_SHARES)
        chosen = []
        for c, share in enumerate(WEAK_SHARES):
            count = round(share * WEAK_ROWS)
            bad = round(count * part * rates[c])
            for is_wrong, some in ((True, bad), (False, count - bad)):
                chosen.append(
                    rng.permutation(np.flatnonzero(usable & (true == c) & ((given != true) == is_wrong)))[:some]
                )
        order = rng.permutation(np.concatenate(chosen))
        of_test = [
            rng.permutation(np.flatnonzero(y_test == c))[: round(s * WEAK_ROWS)] for c, s in enumerate(WEAK_SHARES)
        ]
        held = np.concatenate(of_test)
        vector = TfidfVectorizer(sublinear_tf=True, max_features=words, stop_words="english").fit(train)
        x, x_test = (vector.transform([t[i] for i in some]).toarray() for t, some in ((train, order), (test, held)))
        rows = _Rows(x, given[order], true[order], x_test, y_test[held], 3)
        clean = _balanced(rows.true, WEAK_CLEAN, 3) if balanced else np.arange(WEAK_CLEAN)
        return _finish(name, rows, clean, texts=True)

    return make


# ---- images ----


def _cifar(name: str, seed: int) -> Set:
    """3,000 images of CIFAR-10 with the worst of three human labels, 500 clean ones, 2,000 test images."""
    from PIL import Image

    labels = _data("cifar10-labels.npz")
    true, given, y_test = (labels[k].astype(np.int64) for k in ("y_train", "y_train_human_worst", "y_test"))
    rng = np.random.default_rng(seed)
    clean = rng.permutation(np.concatenate([rng.permutation(np.flatnonzero(true == c))[:50] for c in range(10)]))
    train = rng.permutation(np.setdiff1d(np.arange(len(true)), clean))[:3000]
    held = np.concatenate([rng.permutation(np.flatnonzero(y_test == c))[:200] for c in range(10)])

    def images(shard: str, first: int, rows: np.ndarray) -> np.ndarray:
        data = _data(f"cifar10-{shard}.npz")
        bytes_, offsets = data["webp"], data["offsets"]
        at = [slice(offsets[i], offsets[i + 1]) for i in (rows - first).tolist()]
        return np.stack([np.asarray(Image.open(io.BytesIO(bytes_[s].tobytes())).convert("RGB")) for s in at])

    rows = np.concatenate([clean, train])
    x = np.empty((len(rows), 32, 32, 3), np.uint8)
    for shard, first in (("train-0", 0), ("train-1", 25000)):
        inside = (rows >= first) & (rows < first + 25000)
        x[inside] = images(shard, first, rows[inside])
    x, x_test = (v.transpose(0, 3, 1, 2) for v in (x, images("test", 0, held)))
    every = _Rows(x, given[rows], true[rows], x_test, y_test[held], 10)
    return _finish(name, every, np.arange(len(clean)), epochs=24)


def _fashion_folder() -> Path:
    return Path(os.environ.get("FASTMETA_FASHION", FASHION))


@lru_cache(1)
def _fashion_arrays() -> list[np.ndarray]:
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    arrays = []
    for name, head in zip(names, (16, 8, 16, 8), strict=True):
        flat = np.frombuffer(gzip.decompress((_fashion_folder() / name).read_bytes()), np.uint8, offset=head)
        arrays.append(flat.reshape(-1, 784) if head == 16 else flat.astype(np.int64))
    return arrays


def _fashion(noise: str) -> Callable[[str, int], Set]:
    """4,000 images, two hundred of them clean, 4,000 test images."""

    def make(name: str, seed: int) -> Set:
        x, y, x_test, y_test = _fashion_arrays()
        rng = np.random.default_rng(seed)
        chosen, held = rng.permutation(len(y))[:4000], rng.permutation(len(y_test))[:4000]
        x, y = x[chosen], y[chosen]
        given = corrupt(y, x.reshape(-1, 28, 28, 1), 10, noise, rng)
        rows = _Rows(x, given, y, x_test[held], y_test[held], 10)
        return _finish(name, rows, _balanced(y, 200, 10))

    return make


# ---- what all share ----


def _balanced(true: np.ndarray, clean: int, classes: int) -> np.ndarray:
    """The first rows of each class, `clean` in all; rows are in random order."""
    return np.concatenate([np.flatnonzero(true == c)[: clean // classes] for c in range(classes)])


def _finish(
    name: str, rows: _Rows, clean: np.ndarray, *, by_feature: bool = False, scale: float = 1.0, **settings: Any
) -> Set:
    """The clean rows leave the training set, whose mean and deviation then standardise all."""
    train = np.setdiff1d(np.arange(len(rows.true)), clean)
    axes = (0,) if by_feature else (0, *range(2, rows.x.ndim)) if rows.x.ndim == 4 else None
    fit = rows.x[train].astype(np.float64)
    mean, deviation = fit.mean(axes, keepdims=True), fit.std(axes, keepdims=True)

    def standard(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray((x - mean) / np.where(deviation > 0, deviation, 1) * scale, dtype=np.float32)

    return Set(
        name,
        standard(rows.x[train]),
        rows.given[train],
        rows.true[train],
        standard(rows.x[clean]),
        rows.true[clean],
        rows.given[clean],
        standard(rows.x_test),
        rows.y_test,
        rows.num_classes,
        **settings,
    )


SETS: dict[str, Callable[[str, int], Set]] = {
    "digits-class-60": bundled("digits", "class:0.6", 30),
    "digits-uniform-80": bundled("digits", "uniform:0.8", 30),
    "digits-uniform-40": bundled("digits", "uniform:0.4", 30),
    "digits-pair-45": bundled("digits", "pair:0.45", 30),
    "cancer-uniform-70": bundled("breast_cancer", "uniform:0.7", 50),
    "wine-uniform-40": bundled("wine", "uniform:0.4", 18, test=1 / 3),
    "news": news,
    "weak-11-balanced": _weak(24, 0.11, True),
    "weak-11-drawn": _weak(24, 0.11, False),
    "weak-18-balanced": _weak(12, 0.18, True),
    "weak-18-drawn": _weak(12, 0.18, False),
    "fashion-pair-45": _fashion("pair:0.45"),
    "fashion-instance-40": _fashion("instance:0.4"),
    "cifar-worst": _cifar,
}
#: sets of benchmarks/methods.py alone
MORE = {"news-all": partial(news, count=10_000)}


if __name__ == "__main__":
    for each in SETS:
        if reason := missing(each):
            print(f"{each}: {reason}")
            continue
        one = load(each, 0)
        wrong, clean_wrong = (one.y_given != one.y_true).mean(), (one.y_meta_given != one.y_meta).mean()
        shape = "×".join(map(str, one.x_train.shape[1:]))
        print(
            f"{each:22} {len(one.y_true):5} train of {shape:9} {100 * wrong:4.1f}% wrong, {len(one.y_meta):3} clean "
            f"({100 * clean_wrong:4.1f}% had been wrong), {len(one.y_test):5} test, {one.num_classes} classes"
        )
