"""An .npz file of any bytes is a data set or one line, and no more is allocated than it declares and has."""

import io
import os
import resource
import struct
import warnings
import zipfile

import numpy as np
import pytest

from fastmeta.data import Dataset, InputError, load_dataset
from fastmeta.data import npz_file as npz
from tests.support.arrays import arrays


def npy(array, *, version=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), version=version)
    return stream.getvalue()


def header(text, *, version=(1, 0), length=None):
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", size) + text


def declaring(descr="'|u1'", shape="(12, 5, 6, 3)", fortran=False):
    return header(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}".encode())


def archive(path, method=zipfile.ZIP_STORED, names=".npy", **contents):
    """An .npz file with these bytes or arrays beside or instead of good ones."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, value in {**arrays(), **contents}.items():
            if value is not None:
                file.writestr(name + names, value if isinstance(value, bytes) else npy(value))
    return path


def refused(path, message=""):
    """That it is refused in one line that names the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=message) as caught:
            load_dataset(f"npz:{path}")
    text = str(caught.value)
    assert text.isprintable()
    assert str(path) in text
    assert len(text) < 700
    return text


@pytest.fixture
def at(tmp_path):
    return tmp_path / "a.npz"


def same(a: Dataset, b: Dataset):
    pairs = ((a.train, b.train), (a.test, b.test))
    return all(np.array_equal(p.x, q.x) and np.array_equal(p.targets, q.targets) for p, q in pairs)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_what_numpy_can_write_is_read(at, method, version):
    given = arrays()
    turned = {
        **given,
        "x_train": np.asfortranarray(given["x_train"]),
        "y_train": given["y_train"].astype(">i4"),
        "y_test": given["y_test"].astype("u1")[:, None],
        "more": np.zeros(3),
        "class_names": np.array(["a", "ü", "c"], dtype=">U2"),
    }
    archive(at, method, **{k: npy(v, version=version) for k, v in turned.items()})
    data = load_dataset(f"npz:{at}")
    assert same(data, Dataset.from_arrays(given))
    assert data.train.x.flags.c_contiguous
    assert data.class_names == ("a", "ü", "c")


def test_larger_than_one_piece_prefixed_and_linked(at, tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_PIECE", 100)
    np.savez_compressed(at, **arrays())
    (tmp_path / "prefixed.npz").write_bytes(b"#!/bin/sh\n" * 100 + at.read_bytes())
    (tmp_path / "link.npz").symlink_to(at)
    with zipfile.ZipFile(tmp_path / "zip64.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, value in arrays().items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                entry.write(npy(value))
    archive(tmp_path / "bare.npz", names="")
    for name in ("a.npz", "prefixed.npz", "link.npz", "zip64.npz", "bare.npz"):
        assert same(load_dataset(f"npz:{tmp_path / name}"), Dataset.from_arrays(arrays())), name


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"x_train": b""}, "array 'x_train' cannot be read as .npz .it is no array"),
        ({"x_train": b"\x93NUMPY"}, "version"),
        ({"x_train": b"\x93NUMPY\x09\x00"}, "its header is of version 9.0"),
        ({"x_train": header(b"{", length=60_000)}, "its header has 60,000 characters"),
        ({"x_train": header(b"{", version=(2, 0), length=2**32 - 1)}, "its header has 4,294,967,295 characters"),
        ({"x_train": header(b"{", length=9_000)}, "its header ends early"),
        ({"x_train": header(b"{" * 9_000)}, "x_train"),
        ({"x_train": header(b"-" * 9_000)}, "x_train"),
        ({"x_train": header(b"(" * 90 + b")" * 90)}, "x_train"),
        ({"x_train": header(b"'\\400'+" * 500)}, "x_train"),
        ({"x_train": header(b"\xff\xfe", version=(3, 0))}, "x_train"),
        ({"x_train": header("{'é€': 1}".encode(), version=(3, 0))}, "x_train"),
        ({"x_train": header(b"__import__('os').abort()")}, "x_train"),
        ({"x_train": declaring(shape="(12, 5, 6, 4)")}, r"declares 1,440 bytes of data, its entry has 0"),
        ({"x_train": declaring() + b"x" * 2000}, "declares 1,080 bytes of data, its entry has 2,000"),
        ({"x_train": declaring(shape="(2**40,)")}, "x_train"),
        ({"x_train": declaring(shape=f"({2**40}, 8, 8)")}, r"declares 70,368,744,177,664 bytes"),
        ({"x_train": declaring(shape=f"({2**63}, {2**63}, {2**63})")}, r"declares 10\^30 or more bytes"),
        ({"x_train": declaring(shape="(" + "9" * 4000 + ", 8, 8)")}, r"declares 10\^30 or more bytes"),
        ({"x_train": declaring(shape="(" + "9" * 5000 + ", 8, 8)")}, "x_train"),
        ({"x_train": declaring(shape="(-1, 5, 6, 3)")}, "negative size"),
        ({"x_train": declaring(shape="(0, 5, 6, 3)")}, "none empty"),
        ({"x_train": declaring(shape="(" + "1," * 100 + ")") + b"x"}, "must be uint8 images"),
        ({"x_train": declaring("'|V1000000000'", "()")}, "declares 1,000,000,000 bytes"),
        ({"x_train": declaring("'<U536870911'", "()")}, "declares 2,147,483,644 bytes"),
        ({"x_train": declaring("'|O'", "(12,)")}, "Python objects"),
        ({"x_train": declaring("[('a', '|u1')]", "(1,)") + b"x"}, "it has fields"),
        ({"x_train": declaring("('|u1', (3,))", "(4,)") + b"x" * 12}, "it has fields"),
        ({"x_train": declaring("[('a', [('b', [])])]")}, "x_train"),
        ({"x_train": declaring("[]")}, "x_train"),
        ({"x_train": declaring("'q9'")}, "x_train"),
        ({"x_train": declaring("3")}, "x_train"),
        ({"y_train": np.zeros(12, "m8[s]")}, "integer dtype, got timedelta64"),
        ({"y_train": np.zeros(12, "M8[s]")}, "integer dtype, got datetime64"),
        ({"y_train": np.zeros(12, np.float16)}, "integer dtype, got float16"),
        ({"y_train": np.zeros(12, bool)}, "integer dtype, got bool"),
        ({"y_train": np.zeros(12, complex)}, "integer dtype, got complex128"),
        ({"y_train": np.array(3)}, r"got int64 of shape \(\)"),
        ({"y_train": np.array(list("abcabcabcabc"))}, "got <U1"),
        ({"y_train": np.array([0] * 11 + [2**64 - 1], np.uint64)}, "holds 18446744073709551615, which is no class"),
        ({"y_train": np.array([0] * 11 + [2**63], np.uint64)}, "holds 9223372036854775808, which is no class"),
        ({"y_train": np.array([object()] * 12)}, "Python objects"),
        ({"meta_index": np.arange(13)}, "meta_index names 13 rows, x_train has 12"),
        ({"meta_index": np.array([2**64 - 1], np.uint64)}, "meta_index holds 18446744073709551615"),
        ({"class_names": np.array(["a"] * 70_000)}, "class_names must be one name per class"),
        ({"class_names": np.array([0x7FFFFFFF] * 3, "u4").view("<U1")}, "class_names cannot be read"),
        ({"class_names": np.array(None)}, "Python objects"),
        ({"x_train": None}, "'x_train' is missing, found x_test, y_test, y_train"),
    ],
)
def test_arrays_that_are_none_are_named(at, contents, message):
    refused(archive(at, **contents), message)


def test_headers_of_python_2_are_read_without_a_word(at):
    text = declaring(shape="(12L, 5L, 6L, 3L)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset(f"npz:{archive(at, x_train=text + arrays()['x_train'].tobytes())}")
    assert same(data, Dataset.from_arrays(arrays()))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings_are_named(at, method):
    refused(
        archive(at, method), f"packed by method {method} of zip, only deflate is read; write it anew with np.savez|only"
    )


def patched(path, name, **changes):
    """Other values of fields in the entry's two headers: flags, method, packed, size."""
    content = bytearray(path.read_bytes())
    for signature, offset, at_name in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        start = 0
        while (start := content.find(signature, start)) >= 0:
            if content[start + at_name :].startswith(name.encode()):
                for field, value in changes.items():
                    at, width = {"flags": (0, 2), "method": (2, 2), "packed": (12, 4), "size": (16, 4)}[field]
                    place = start + offset + at
                    content[place : place + width] = value.to_bytes(width, "little")
            start += 4
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": 1}, "it is encrypted"),
        ({"flags": 0x40}, "x_train"),
        ({"flags": 0x20}, "x_train"),
        ({"method": 97}, "packed by method 97"),
        ({"method": 12}, "packed by method 12"),
        ({"size": 2**32 - 2}, r"cannot make 4,294,967,294 bytes of|declares|more than the file"),
        ({"packed": 2**32 - 2}, "more than the file"),
        ({"size": 3}, "x_train"),
        ({"packed": 3}, "x_train"),
    ],
)
def test_entries_that_lie(at, method, changes, message):
    refused(patched(archive(at, method), "x_train", **changes), message)


def test_an_array_twice(at):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own on the writing
        archive(at)
        with zipfile.ZipFile(at, "a") as file:
            file.writestr("y_train.npy", npy(np.zeros(12, int)))
    refused(at, "array 'y_train' cannot be read as .npz .it stands there 2 times")


def test_names_of_any_kind_are_left_alone(at):
    odd = ("/etc/x_train.npy", "../x_train.npy", "x_train.npy/", ".npy", "\x1b[31m.npy", "x_train.NPY", "é" * 100)
    with zipfile.ZipFile(at, "w") as file:
        for name in odd:
            file.writestr(name, b"never read")
        for name, value in arrays().items():
            file.writestr(f"{name}.npy", npy(value))
    assert same(load_dataset(f"npz:{at}"), Dataset.from_arrays(arrays()))
    with pytest.raises(InputError, match=r"no array 'none' for data\.given, found ") as caught:
        load_dataset(f"npz:{at}", given="none")
    assert str(caught.value).isprintable()


def test_very_many_entries(at, monkeypatch):
    monkeypatch.setattr(npz, "MOST_DIRECTORY", 2000)
    archive(at, **{f"a{i}": b"" for i in range(100)})
    refused(at, "its list of entries has more than 2,000 bytes")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    for name, message in (
        ("", "is a folder"),
        ("fifo", "is a pipe, a socket or a device"),
        ("loop", "cannot be opened .Too many levels"),
        ("gone", "does not exist"),
        ("x" * 300, "cannot be opened .File name too long"),
    ):
        refused(tmp_path / name if name else tmp_path, message)
    refused("/dev/zero", "is a pipe, a socket or a device")
    refused("~nobody-of-this-name/x", "home")


def test_every_flipped_bit_and_every_length(at, tmp_path):
    """The cyclic check of zip finds what hits the data, so that a set which loads is the right one."""
    whole = Dataset.from_arrays(arrays())
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = archive(at, method).read_bytes()
        rng = np.random.default_rng(0)
        flips = [
            (int(i), int(b)) for i, b in zip(rng.integers(0, len(content), 250), rng.integers(0, 8, 250), strict=True)
        ]
        damaged = [content[:i] + bytes([content[i] ^ 1 << b]) + content[i + 1 :] for i, b in flips]
        damaged += [content[:n] for n in range(0, len(content), max(1, len(content) // 60))]
        damaged += [content + b"\0" * 100, content[:100] + content, content + content]
        other = tmp_path / "b.npz"
        for bytes_ in damaged:
            other.write_bytes(bytes_)
            try:
                data = load_dataset(f"npz:{other}")
            except InputError as error:
                told = str(error)
                assert told.isprintable() and str(other) in told  # noqa: PT018
            else:  # a flip may hide an array by its name: the two that must be there are whole
                assert np.array_equal(data.train.x, whole.train.x)
                assert np.array_equal(data.train.targets, whole.train.targets)


def peak_of(call):
    import tracemalloc

    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x_train", "array 'x_train' .*it would unpack .* to 160.0 MiB, which no real data do"),
        ("y_train", "array 'y_train' .*it would unpack"),
        ("class_names", "array 'class_names' .*it would unpack"),
        ("nobody", None),
    ],
)
def test_a_bomb_is_not_unpacked(at, name, message):
    """Zeros: as images that fit, as labels of 12 images, as names, as an array that nobody asked for."""
    size = 160 * 2**20
    archive(at, zipfile.ZIP_DEFLATED, **{name: None})
    with zipfile.ZipFile(at, "a", zipfile.ZIP_DEFLATED) as file, file.open(f"{name}.npy", "w") as entry:
        for piece in [declaring(shape=f"({size // 64}, 8, 8)"), *[bytes(2**22)] * (size // 2**22)]:
            entry.write(piece)
    assert at.stat().st_size < 2**20
    if message is None:
        assert peak_of(lambda: load_dataset(f"npz:{at}")) < 8 * 2**20
    else:
        assert peak_of(lambda: refused(at, message)) < 8 * 2**20


def test_smaller_bombs_must_fit_the_images(at):
    """48 MiB of labels, told by their header alone."""
    archive(at, zipfile.ZIP_DEFLATED, y_train=np.zeros(6 * 2**20, np.int64))
    assert peak_of(lambda: refused(at, "y_train has 6291456 labels for the 12 images of x_train")) < 8 * 2**20


def test_arrays_that_do_not_fit_into_memory(at, monkeypatch):
    archive(at)
    monkeypatch.setattr(npz, "free_memory", lambda: 1000)
    refused(at, "holds 0.0 MiB of arrays, and 0.0 MiB of memory are free; unpack it .* npy:DIR")


def test_memory_that_is_known():
    from fastmeta._memory import free_memory

    free = free_memory()
    assert free is None or 2**20 < free < 2**50
    if free is not None and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        pid = os.fork()
        if not pid:  # a limit cannot be lifted again
            resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))
            os._exit(not (free_memory() or 0) < 2**40)
        assert os.waitpid(pid, 0)[1] == 0
