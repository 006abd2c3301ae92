"""What the header of an array of NumPy's format says, and files that may hold one: judged before anything is read."""

from __future__ import annotations

import io
import math
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fastmeta.data.errors import InputError

MAGIC = b"\x93NUMPY"
#: characters of an array's header, as numpy.load has it
MOST_HEADER = 10_000


@dataclass(frozen=True)
class Declared:
    """What an array's header says of it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    header_bytes: int

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def short(number: int) -> str:
    """For messages: a header may declare numbers of thousands of digits."""
    return f"{number:,}" if number < 10**30 else "10^30 or more"


def open_regular(path: Path, wanted: str, of_folder: str = "") -> IO[bytes]:
    """InputError for what is no regular file: a FIFO would never open, a device never end. `wanted` ends its line."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {wanted}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); {wanted}") from error
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{path} cannot be opened ({error}); {wanted}") from error
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        folder = stat.S_ISDIR(mode)
        what = "is a folder" if folder else "is a pipe, a socket or a device"
        raise InputError(f"{path} {what}; {wanted}{of_folder if folder else ''}")
    return os.fdopen(file, "rb")


def read_header(content: IO[bytes]) -> Declared:
    """From where `content` stands. ValueError, or whatever Python's parser raises, for what is no array of numbers."""
    start = content.read(len(MAGIC) + 2)
    if start[: len(MAGIC)] != MAGIC:
        raise ValueError("it is no array")
    version = tuple(start[len(MAGIC) :])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its header is of version {'.'.join(map(str, version))}, known are 1.0, 2.0 and 3.0")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(content.read(width), "little")
    if length > MOST_HEADER:
        raise ValueError(f"its header has {length:,} characters, more than {MOST_HEADER:,}")
    text = content.read(length)
    if len(text) < length:
        raise ValueError("its header ends early")
    if version == (3, 0):  # for which numpy has no public reader; it differs from 2.0 by its encoding
        text = text.decode().encode("latin-1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on headers of Python 2, on escapes that a literal should not have
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(
            io.BytesIO(len(text).to_bytes(4, "little") + text), max_header_size=MOST_HEADER
        )
    if any(size < 0 for size in shape):
        raise ValueError("its header declares a negative size")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which would have to be unpickled; convert it to numbers or texts")
    if dtype.names is not None or dtype.subdtype is not None:
        raise ValueError("it has fields; take one of them as the array")
    return Declared(tuple(map(int, shape)), dtype, fortran_order, len(start) + width + length)
