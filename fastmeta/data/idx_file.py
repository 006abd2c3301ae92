"""Arrays of bytes in idx files, packed or not, as MNIST and its kin come: what a header declares is judged first."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from fastmeta._memory import free_memory, gibibytes
from fastmeta._text import reason
from fastmeta.data.errors import InputError

#: deflate makes at most 1,032 bytes of one
MOST_RATIO = 1032


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A uint8 array of that many dimensions; a name that ends in .gz is unpacked.

    Raises:
        InputError: no such file, another form, more or fewer bytes than it declares, or more than memory has.
    """
    packed = path.suffix == ".gz"
    head = 4 + 4 * dimensions
    try:
        size = path.stat().st_size
        with gzip.open(path) if packed else path.open("rb") as file:
            header = file.read(head)
            if len(header) < head or header[:4] != bytes((0, 0, 8, dimensions)):
                raise InputError(f"{path} is no idx file of bytes in {dimensions} dimension(s); get it anew")
            shape = tuple(int(v) for v in np.frombuffer(header, ">u4", offset=4))
            count, free = math.prod(shape), free_memory()
            if count > size * (MOST_RATIO if packed else 1):
                raise InputError(f"{path} declares {count:,} bytes and has fewer: it was cut; get it anew")
            if free is not None and count > free:
                raise InputError(f"{path} holds {gibibytes(count)}, and {gibibytes(free)} of memory are free")
            array = np.empty(count, np.uint8)
            rest, read = array.data, 0
            while read < count and (got := file.readinto(rest[read:])):
                read += got
            if read < count or file.read(1):
                state = "fewer: it was cut" if read < count else "more"
                raise InputError(f"{path} declares {count:,} bytes and has {state}; get it anew")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); get it anew") from error
    return array.reshape(shape)
