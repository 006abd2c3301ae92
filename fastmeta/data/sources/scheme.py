"""What a config says beside the name of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from fastmeta.data.errors import InputError


@dataclass(frozen=True)
class Choice:
    seed: int = 0  # of a split that the scheme makes
    given: str = "y_train"  # where the labels to train on are
    truth: str = "y_true"  # where the right ones are
    root: str | None = None  # folder of a set in several files
    download: bool = False  # whether files that are not there may be fetched

    def refuse_arrays(self, why: str) -> None:
        """InputError where arrays of a file are named."""
        if (self.given, self.truth) != ("y_train", "y_true"):
            raise InputError(f"data.given and data.truth choose arrays of an npz file; {why}")

    def refuse_files(self, spec: str) -> None:
        """InputError where files of a set of torchvision are named."""
        if self.root is not None or self.download:
            name = "root" if self.root is not None else "download"
            raise InputError(f"data.{name} is about sets of torchvision, and the data set is {spec}; leave it out")
