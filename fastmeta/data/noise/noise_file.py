"""A file of labels with noise: what was done to which data, so that others can train on the same."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.noise.corrupt import noisy
from fastmeta.data.seeds import numpy_generator

SUFFIXES = (".npz", ".json")


@dataclass(frozen=True)
class NoiseFile:
    """Labels (N,) of a whole training set, in its order, and how they were made."""

    labels: np.ndarray  # (N,) int64
    given: np.ndarray  # (N,) int64, before
    kind: str
    seed: int
    data_hash: str
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, data: Dataset, noise: str, seed: int) -> NoiseFile:
        """Noise on all training rows of `data`. InputError as :func:`noisy` raises it."""
        given = np.asarray(data.train.targets, np.int64)
        labels = noisy(data, np.arange(len(given)), noise, numpy_generator(seed, "noise"))
        return cls(labels, given, noise, seed, data.train.fingerprint(), data.class_names)

    @staticmethod
    def check_path(path: Path) -> None:
        """InputError where a name does not say in which form the file is written."""
        if path.suffix not in SUFFIXES:
            raise InputError(f"a file of noise ends in {' or '.join(SUFFIXES)}, got {path}")

    def packed(self, suffix: str) -> bytes:
        """The content of a file of this suffix."""
        beside = {"kind": self.kind, "seed": self.seed, "data_hash": self.data_hash}
        rate = float((self.labels != self.given).mean())
        if suffix == ".json":
            arrays = {"labels": self.labels.tolist(), "given": self.given.tolist()}
            return json.dumps({**arrays, "rate": rate, **beside, "class_names": self.class_names}).encode()
        content = io.BytesIO()
        names = np.array(self.class_names)
        np.savez(content, labels=self.labels, given=self.given, rate=rate, class_names=names, **beside)  # type: ignore[arg-type]
        return content.getvalue()
