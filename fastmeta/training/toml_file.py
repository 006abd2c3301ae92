"""A TOML file as editors of any system leave it, read within bounds."""

from __future__ import annotations

import codecs
import errno
import re
import tomllib
from pathlib import Path
from typing import Any

from fastmeta._text import printable
from fastmeta.data.errors import InputError

MOST_BYTES = 64 * 1024
#: a key of many parts: tomllib's time grows with the square of their number, to minutes in a file of that size
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:"[^"\n]*+"|'[^'\n]*+'|[\w-]++)[ \t]*+\.[ \t]*+){64}""")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file in UTF-8: line ends of any kind, a byte order mark and a last Ctrl-Z are no mistake.

    Raises:
        InputError: no such file, a larger one than MOST_BYTES, another encoding, no TOML; one line that says which.
    """
    try:
        content = _content(path.expanduser())
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}") from error
    except (ValueError, RuntimeError) as error:  # a name that no file can have, a home folder that is not known
        raise InputError(f"cannot read the config file {path}: {error}") from error
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} is no config file: it is larger than {MOST_BYTES:,} bytes")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)) or b"\0" in content[:4]:
        raise InputError(f"{path} is UTF-16 or UTF-32 text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise InputError(
            f"{path} is not valid TOML: byte {content[error.start]:#04x} in line {line} is no UTF-8; save it as UTF-8"
        ) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\x1a")
    if _LONG_KEY.search(text):
        raise InputError(f"{path} is not valid TOML for a config: a key has more than 64 parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{path} is not valid TOML: its values lie too deep in each other") from None
    except ValueError as error:  # also of an int or a date that Python cannot make
        raise InputError(f"{path} is not valid TOML: {printable(str(error), 300)}") from error


def _content(path: Path) -> bytes:
    """Bytes of a file, at most one too many; OSError for what may never end."""
    # a FIFO by name waits for its other end; one that the shell has opened for us, as for <(command), has it
    opened = path.parent in (Path("/dev/fd"), Path("/proc/self/fd")) or path == Path("/dev/stdin")
    if not opened and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder" if path.is_dir() else "it is no file but a pipe or a device")
    with open(path, "rb") as file:
        return file.read(MOST_BYTES + 1)


def _prune(values: dict[str, Any]) -> dict[str, Any]:
    kept = {k: _prune(v) if isinstance(v, dict) else v for k, v in values.items() if v is not None}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}
