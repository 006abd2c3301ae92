"""What a config says beside the name of a data set."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from fastmeta.data.errors import InputError

#: what options are about that one kind of data set alone follows
_ABOUT = {
    "root": "sets of torchvision",
    "download": "sets of torchvision",
    "label_column": "csv:PATH and parquet:PATH",
    "truth_column": "csv:PATH and parquet:PATH",
    "split_column": "csv:PATH and parquet:PATH",
    "image_size": "image files",
    "skip_corrupt": "image files",
}


@dataclass(frozen=True)
class Choice:
    seed: int = 0  # of a split that the scheme makes
    given: str = "y_train"  # where the labels to train on are
    truth: str = "y_true"  # where the right ones are
    root: str | None = None  # folder of a set in several files
    download: bool = False  # whether files that are not there may be fetched
    label_column: str | None = None  # of a table
    truth_column: str | None = None
    split_column: str | None = None
    image_size: int | None = None  # to which image files are brought
    skip_corrupt: bool = False  # whether image files that cannot be read are left out
    resident: str = "auto"  # whether image files are read into memory: auto, yes or no

    def refuse_arrays(self, why: str) -> None:
        """InputError where arrays of a file are named."""
        if (self.given, self.truth) != ("y_train", "y_true"):
            raise InputError(f"data.given and data.truth choose arrays of npz:PATH and npy:DIR; {why}")

    def refuse_others(self, spec: str, followed: frozenset[str]) -> None:
        """InputError where an option is given that the data set does not follow, but for the arrays of a file."""
        for field in fields(self):
            if field.name in _ABOUT and field.name not in followed and getattr(self, field.name) != field.default:
                raise InputError(
                    f"data.{field.name} is about {_ABOUT[field.name]}, and the data set is {spec}; leave it out"
                )


def given_path(form: str, argument: str) -> Path:
    """A shell leaves the tilde behind a colon to us."""
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # ~somebody who is not known here
        raise InputError(f"{form.partition(':')[0]}:{argument}: {error}; write the path out") from error
