"""What is fuzzed: each target reads bytes as one kind of file, and may raise an InputError in one line, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta import train
from fastmeta._text import printable
from fastmeta.data import InputError, load_dataset
from fastmeta.training import TrainConfig, load_run
from tests.support.fuzz import corpus
from tests.support.fuzz.corpus import archive, good_arrays, npy

#: longer messages would hide what they say
LONGEST = 2000


class Targets:
    """Readers by name, with a folder to put the bytes in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._good = {f"{name}.npy": npy(array) for name, array in good_arrays().items()}
        self._run: Path | None = None
        self._summary: dict[str, Any] = {}

    @property
    def by_name(self) -> dict[str, Callable[[bytes], object]]:
        return {
            "npz": self.npz,
            "npy": self.npy,
            "npy_folder": self.npy_folder,
            "toml": self.toml,
            "summary": self.summary,
        }

    def npz(self, content: bytes) -> object:
        path = self.folder / "set.npz"
        path.write_bytes(content)
        return load_dataset(f"npz:{path}")

    def npy(self, content: bytes) -> object:
        """An array whose checksum is right, so that its header and data are looked at."""
        return self.npz(archive({**self._good, "x_train.npy": content}))

    def npy_folder(self, content: bytes) -> object:
        """The same as a file by itself, all of which is read."""
        place = self.folder / "set"
        place.mkdir(exist_ok=True)
        for name, array in (self._good | {"x_train.npy": content}).items():
            (place / name).write_bytes(array)
        return load_dataset(f"npy:{place}").train.x[:]

    def toml(self, content: bytes) -> object:
        path = self.folder / "config.toml"
        path.write_bytes(content)
        config = TrainConfig.read(path)
        assert TrainConfig.from_mapping(config.to_mapping()) == config
        return config

    def summary(self, content: bytes) -> object:
        (self.run / "summary.json").write_bytes(content)
        return load_run(self.run)

    @property
    def run(self) -> Path:
        """A finished run, whose summary.json is replaced."""
        if self._run is None:
            config = TrainConfig(model="mlp", epochs=1, baselines="none", threads=1, out=str(self.folder / "run"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = good_arrays() | {"meta_index": [0, 1, 2]}
                run = train(config, data=data | {"y_train": np.array([0, 1, 2, 0, 1, 2])})
            self._run, self._summary = run.path, run.summary
        return self._run

    def seeds(self, name: str) -> list[bytes]:
        """The corpus of a target."""
        if name == "summary":
            return list(corpus.summary_files(self._summary)) if self.run else []
        return list(getattr(corpus, f"{name}_files")())


def judge(target: Callable[[bytes], object], content: bytes) -> bool:
    """Whether the bytes are taken; AssertionError for a message that is no good one. All else passes through."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said beside the message
        try:
            target(content)
        except InputError as error:
            told = str(error)
            if printable(told) != told or not told or len(told) > LONGEST:
                raise AssertionError(f"no good line: {told!r}") from error
            return False
    return True
