"""Attacks that are known, made by code, and how they are changed at random."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np


def good_arrays() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 1), dtype=np.uint8)
    return {"x_train": x, "y_train": np.arange(6) % 3, "x_test": x[:2], "y_test": np.array([0, 1])}


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as file:
        warnings.simplefilter("ignore")  # on names that stand twice
        for name, content in entries.items():
            file.writestr(name, content)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


_HEADERS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 2, 3, 1)}",
    "{'descr': '|u1', 'fortran_order': True, 'shape': (6, 2, 3, 1)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (6L, 2L, 3L, 1L)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 2, 3, 1)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-6, -2, 3, 1)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 2, 3, 1)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1, " * 70 + ")}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 4000 + ",)}",
    "{'descr': '|u1', 'fortran_order': 1, 'shape': 6}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (6,)}",
    "{'descr': '<U268435456', 'fortran_order': False, 'shape': ()}",
    "{'descr': '|V2147483647', 'fortran_order': False, 'shape': (6,)}",
    "{'descr': ('|u1', (2, 3, 1)), 'fortran_order': False, 'shape': (6,)}",
    "{'descr': [('a', '|u1', (6,)), ('a', '<f8')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': [('a', [('b', [('c', '|O')])])], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': '<M8[3000000000s]', 'fortran_order': False, 'shape': (6,)}",
    "{'descr': 'u1,u1', 'fortran_order': False, 'shape': (6,)}",
    "{'descr': None, 'fortran_order': None, 'shape': None}",
    "{" * 90 + "}" * 90,
    "-" * 9000 + "1",
    "(" * 9000,
    "__import__('os').abort()",
    "{**{}}",
    "'\\400' '\\N{NOPE}'",
)


def npy_files() -> Iterator[bytes]:
    data = good_arrays()["x_train"].tobytes()
    yield npy(good_arrays()["x_train"])
    for text in _HEADERS:
        for version in (1, 2, 3):
            size = struct.pack("<H" if version == 1 else "<I", len(text))
            yield b"\x93NUMPY" + bytes((version, 0)) + size + text.encode() + data
    yield b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)
    yield from (b"", b"\x93NUMPY", b"\x93NUMPY\x09\x09", b"\x80\x04\x95")


npy_folder_files = npy_files


def npz_files() -> Iterator[bytes]:
    good = {f"{name}.npy": npy(array) for name, array in good_arrays().items()}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield archive(good, method)
    stored, deflated = archive(good), archive(good, zipfile.ZIP_DEFLATED)
    for content in (stored, deflated):
        yield from (content[: len(content) // 2], content + b"\0" * 99, b"#!" * 50 + content, content + content)
        for flag in (0x1, 0x8, 0x20, 0x40):  # encrypted, sizes behind, patched, strongly encrypted
            damaged = bytearray(content)
            for found in re.finditer(b"PK\x01\x02|PK\x03\x04", content):
                damaged[found.start() + (8 if found[0] == b"PK\x01\x02" else 6)] |= flag
            yield bytes(damaged)
    odd = ("x_train.npy/", "/etc/x_train.npy", "..\\x_train.npy", "x_train", "é\x1b.npy", ".npy")
    yield archive({**good, **dict.fromkeys(odd, b"")})
    names = {"class_names.npy": npy(np.array([0x7FFFFFFF, 0xD800, 0x1B], "u4").view("<U1"))}
    yield archive({**good, **names})
    yield archive({f"a{i}.npy": b"" for i in range(200)})
    yield from (b"", b"PK\x05\x06" + bytes(18), b"PK\x05\x06" + b"\xff" * 18, npy(good_arrays()["x_train"]))
    end = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, 2**62, 2**62)
    yield end + b"PK\x06\x07" + struct.pack("<IQI", 0, 0, 1) + b"PK\x05\x06" + b"\xff" * 16 + bytes(2)


_TOML = """dataset = "npz:a.npz"
noise = "uniform:0.25"
epochs = 3
seed = 7
[optim]
lr = 0.5
milestones = [0.25, 5e-1]
nesterov = true
schedule = 'step'
[labels]
label_lr = 1.0
lookahead = "0.1"
[data]
batch_size = 32
augment = "crop"
"""


def toml_files() -> Iterator[bytes]:
    yield from (_TOML.encode(code) for code in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"))
    yield from (_TOML.replace("\n", end).encode() for end in ("\r\n", "\r", "\n\r"))
    yield from (_TOML.encode() + end for end in (b"\x1a", b"\0", b"\xe9", b"\xed\xa0\x80"))
    yield from (b"[" * 9999, b"a=" + b"[" * 9999, b"a=" + b"{a=" * 5000, b"a." * 9999 + b"a=1", b"'" * 9999)
    for number in (b"9" * 9999, b"0x" + b"f" * 9999, b"-1", b"1e5", b"inf", b"nan", b"1_0", b"1979-05-27T07:32:00Z"):
        yield from (b"epochs = " + number, b"[optim]\nlr = " + number, b"[optim]\nmilestones = [" + number)
    yield from (b'model = "\\u0000"', b'model = "\\ud800"', b'out = "\\U0010ffff\\u001b"', b"dataset = '''\nnpz:\n'''")
    yield from (b"[[optim]]\n" * 99, b"[optim]\n" * 2, b"optim.lr = 1\noptim.lr = 2", b"a = {b = 1, b = 2}")
    yield from (b"'' = 1", b"", b'"' * 9999)


#: what a value of JSON is replaced by
_VALUES: tuple[Any, ...] = (None, True, -1, 0, 5_000_000, 2**63, 10**400, 1e308, "", "\x1b[31m", "../x", [], {}, [[]])


def summary_files(summary: dict[str, Any]) -> Iterator[bytes]:
    """Of a run's summary, without the digest that would end the look at most of them."""
    plain = {key: value for key, value in summary.items() if key != "digest"}
    text = json.dumps(plain)
    yield from (json.dumps(summary).encode(), text.encode(), text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode())
    for key in plain:
        yield json.dumps({k: v for k, v in plain.items() if k != key}).encode()
        yield from (json.dumps({**plain, key: value}).encode() for value in _VALUES)
    yield from (b"", b"null", b"[]", b"{}", b"[" * 99_999, b'{"a":' * 99_999, b"9" * 9999, b"NaN", b'"\\ud800"', b"\0")
    yield text.replace('"epochs": 1', '"epochs": 1, "epochs": 2').encode()


_TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\x1b",
        b"PK\x01\x02",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"\x93NUMPY",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
    ),
    *b"'descr' 'shape' |O <f8 u1 ( ) [ ] { } ' = . , - nan inf null true 1e999 optim. [labels] epochs".split(),
    *(b"\n", b"\r", b'"', b'"""', b"\\u0000", b"\\ud800"),
)
_NUMBERS = (*b"0 -1 255 65536 2147483648 4294967295 9223372036854775808 0.5".split(), b"9" * 40)


def changed(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """`content` after a few random changes, some of them pieces of `other`."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(content))
        end = min(len(content), at + draw.choice((1, 2, 4, 30, 300)))
        kind = draw.randrange(8)
        if kind == 0 and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        elif kind == 1:
            content = content[:at] + content[end:]
        elif kind == 2:
            content = content[:at] + content[at:end] * draw.choice((2, 3, 50)) + content[end:]
        elif kind == 3:
            content = content[:at] + draw.choice(_TOKENS) + content[at:]
        elif kind == 4:
            content = content[:at] + other[draw.randint(0, len(other)) :]
        elif kind == 5 and (numbers := list(re.finditer(rb"[0-9]+", content))):
            found = draw.choice(numbers)
            content = content[: found.start()] + draw.choice(_NUMBERS) + content[found.end() :]
        elif kind == 6:
            content = content[:at] + draw.randbytes(end - at) + content[end:]
        elif kind == 7:
            width = draw.choice((1, 2, 4, 8))
            value = draw.choice((0, 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1))
            content = content[:at] + value.to_bytes(width, "little") + content[at + width :]
    return content
