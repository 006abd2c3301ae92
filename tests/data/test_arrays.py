"""Arrays as people have them: lists, tensors, images, columns, lazy mappings; what is none is named in one line."""

import collections
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from fastmeta.data import Dataset, InputError
from tests.support.arrays import X, arrays

BASE = arrays()
X_TRAIN, Y_TRAIN = BASE["x_train"], BASE["y_train"]


def refused(message, **changes):
    with pytest.raises(InputError, match=message) as caught:
        Dataset.from_arrays(arrays(**changes))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def images_of_pil(mode="RGB"):
    from PIL import Image

    return [Image.fromarray(x).convert(mode) for x in X_TRAIN]


@pytest.mark.parametrize(
    "images",
    [
        list(X_TRAIN),
        tuple(X_TRAIN),
        [torch.tensor(x) for x in X_TRAIN],
        torch.tensor(X_TRAIN),
        torch.tensor(X_TRAIN).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        np.asfortranarray(X_TRAIN),
        np.ma.masked_array(X_TRAIN),
        np.array([*X_TRAIN, None], dtype=object)[:-1],
        X_TRAIN.view(np.recarray),
        images_of_pil(),
    ],
    ids=lambda x: type(x).__name__,
)
def test_images_in_other_containers(images):
    assert np.array_equal(Dataset.from_arrays(arrays(x_train=images)).train.x, X_TRAIN)


@pytest.mark.parametrize(
    "labels",
    [
        Y_TRAIN.tolist(),
        tuple(Y_TRAIN),
        list(torch.tensor(Y_TRAIN)),
        torch.tensor(Y_TRAIN),
        torch.tensor(Y_TRAIN, dtype=torch.uint16),
        torch.tensor(Y_TRAIN)[:, None],
        Y_TRAIN.astype(object),
        np.array([np.int8(y) for y in Y_TRAIN], dtype=object),
        [np.array(y) for y in Y_TRAIN],
        [[y] for y in Y_TRAIN.tolist()],
        [np.array([y]) for y in Y_TRAIN],
        Y_TRAIN.astype(">u8"),
        collections.UserList(Y_TRAIN.tolist()),
        range(12),
    ],
    ids=lambda x: type(x).__name__,
)
def test_labels_in_other_containers(labels):
    expected = np.arange(12) if isinstance(labels, range) else Y_TRAIN
    data = Dataset.from_arrays(arrays(y_train=labels, meta_index=[1], y_true=labels))
    assert data.train.targets.dtype == np.int64
    assert np.array_equal(data.train.targets, expected)


class Column:
    """As pandas hands its nullable integers and its categories over."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=object)


class Missing:
    def __repr__(self):
        return "<NA>"

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


def test_columns_of_pandas():
    data = Dataset.from_arrays(arrays(y_train=Column(Y_TRAIN.tolist())))
    assert np.array_equal(data.train.targets, Y_TRAIN)
    for given in (Column, list):
        refused(r"y_train\[3\] must be a class number, got <NA>", y_train=given([0, 1, 2, Missing(), *[0] * 8]))
    refused(
        r"y_train\[0\] must be a class number, got 'cat'; number them: names, y = np\.unique",
        y_train=Column(["cat", "dog"] * 6),
    )
    refused(r"y_train\[11\] must be a class number, got True", y_train=Column([0, 1, 2] * 3 + [0, 1, True]))
    refused(r"y_train\[1\] must be a class number, got 1.0", y_train=Column([0, 1.0] * 6))


def test_pandas_itself():
    pandas = pytest.importorskip("pandas")
    for dtype in ("int8", "Int64", "UInt16", "category", "object"):
        data = Dataset.from_arrays(arrays(y_train=pandas.Series(Y_TRAIN, index=np.arange(12)[::-1]).astype(dtype)))
        assert np.array_equal(data.train.targets, Y_TRAIN), dtype
    assert np.array_equal(Dataset.from_arrays(arrays(y_train=pandas.DataFrame({"y": Y_TRAIN}))).train.targets, Y_TRAIN)
    for names in (pandas.Series(list("abc")), pandas.Index(list("abc")), pandas.Categorical(list("abc"))):
        assert Dataset.from_arrays(arrays(class_names=names)).class_names == ("a", "b", "c")
    column = pandas.Series([0, 1, None] * 4, dtype="Int64")
    refused("y_train", y_train=column)  # a float column with NaN, to NumPy
    refused("y_train", y_train=pandas.Categorical(["cat", "dog"] * 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_train": [*X_TRAIN[:7], X_TRAIN[7][:3], *X_TRAIN[8:]]},
            r"x_train\[7\] is uint8 of shape \(3, 6, 3\), .*\[0\]",
        ),
        ({"x_train": [*X_TRAIN[:7], X_TRAIN[7] / 255]}, r"x_train\[7\] is float64 of shape"),
        ({"x_train": [*X_TRAIN[:7], X_TRAIN[7][..., 0]]}, r"x_train\[7\] is uint8 of shape \(5, 6\)"),
        ({"x_train": [*X_TRAIN[:7], None]}, r"x_train\[7\] is object of shape \(\)"),
        ({"x_train": [*X_TRAIN[:7], "cat.png"]}, r"x_train\[7\] is <U7 of shape \(\)"),
        ({"x_train": [torch.zeros(5, 6, 3, dtype=torch.uint8), torch.zeros(4, 6, 3)]}, r"x_train\[1\] is float32"),
        (
            {"x_train": np.array([*X_TRAIN[:2], X_TRAIN[2][:3]], dtype=object)},
            r"x_train\[2\] is uint8 of shape \(3, 6, 3\)",
        ),
        ({"x_train": X.tolist()}, "must be uint8 images .* got int64"),
        (
            {"x_train": [*X.tolist()[:2], [[1], [2, 3]]]},
            r"x_train\[2\]\[1\] is int64 of shape \(2,\), .*\[0\] is int64",
        ),
        ({"x_train": images_of_pil("P")}, r"x_train\[0\] is an image of PIL with a palette"),
        ({"x_train": images_of_pil("RGBA")[:2] + images_of_pil()[2:]}, r"x_train\[2\] is uint8 of shape \(5, 6, 3\)"),
        ({"x_train": torch.tensor(X_TRAIN).float().requires_grad_()}, "x_train float32; .* bring all to one kind"),
        ({"x_train": torch.empty(12, 5, 6, 3, dtype=torch.uint8, device="meta")}, "x_train cannot be made an array"),
        ({"x_train": torch.zeros(12, 5, 6, 3, dtype=torch.bfloat16)}, "x_train cannot be made an array"),
        ({"x_train": torch.zeros(12, 5).to_sparse()}, "x_train cannot be made an array"),
        ({"x_train": np.ma.masked_equal(X, 0)}, r"x_train has masked entries, the first at \(0, 0, 0, 0\)"),
        ({"y_train": np.ma.masked_equal(Y_TRAIN, 1)}, r"y_train has masked entries, the first at \(1,\)"),
        ({"x_train": "images"}, "must be uint8 images .* got <U6"),
        ({"x_train": iter(X_TRAIN)}, r"must be uint8 images .* got object of shape \(\)"),
        ({"x_train": {}}, "must be uint8 images"),
        ({"x_train": []}, "none empty|must be uint8"),
        ({"y_train": [0, 1, [2, 3]] * 4}, r"y_train\[2\] is int64 of shape \(2,\)"),
        ({"y_train": [0, 1, 10**30] * 4}, "y_train holds 1000000000000000000000000000000"),
        ({"y_train": [0, 1, -(10**30)] * 4}, "y_train holds -1000000000000000000000000000000"),
        ({"y_train": [0, 1, 10**5000] * 4}, r"y_train holds an int of 16610 bits"),
        ({"y_train": [0, 1, None] * 4}, r"y_train\[2\] must be a class number, got None"),
        ({"y_train": torch.arange(12.0)}, r"got float32 of shape \(12,\)"),
        ({"y_train": torch.arange(12) > 3}, r"got bool of shape \(12,\)"),
        ({"y_train": np.array(3)}, r"got int64 of shape \(\)"),
        ({"y_train": np.zeros((12, 3), int)}, r"got int64 of shape \(12, 3\)"),
        ({"y_train": np.zeros(12, [("a", int)])}, "integer dtype, got"),
        ({"meta_index": np.array([2**64 - 1], np.uint64)}, "meta_index holds 18446744073709551615"),
        ({"meta_index": np.arange(100)}, "meta_index names 100 rows, x_train has 12"),
        ({"class_names": [["a"], ["b"], ["c"]]}, r"one name per class \(C,\), got \['a'\] at 0"),
        ({"class_names": np.zeros((3, 1))}, r"one name per class \(C,\), got shape \(3, 1\)"),
        ({"class_names": {"a": 0}}, "one name per class"),
        ({"class_names": 3}, "one name per class"),
        ({"class_names": np.array([0x7FFFFFFF] * 3, "u4").view("<U1")}, "class_names cannot be read"),
    ],
)
def test_what_is_no_array_is_named(changes, message):
    refused(message, **changes)


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise OSError("\x1b[31mdisk gone\nmore")

    def __str__(self):
        raise RuntimeError("no text")


def test_what_raises_when_it_is_read():
    refused(r"x_train cannot be made an array \(OSError: \\x1b\[31mdisk gone\); pass one of NumPy", x_train=Broken())
    refused("class_names cannot be read .RuntimeError: no text", class_names=["a", "b", Broken()])


class Lazy(Mapping):
    """As of a file that is read when it is asked."""

    def __init__(self, fail, error=None):
        self.fail, self.error = fail, error

    def __getitem__(self, key):
        if key == self.fail:
            raise self.error
        return BASE[key]

    def __iter__(self):
        if self.fail == "iter":
            raise self.error
        return iter(BASE)

    def __len__(self):
        return len(BASE)

    def __contains__(self, key):
        if self.fail == "contains":
            raise self.error
        return key in BASE or self.fail == key


def test_mappings_that_are_read_when_asked():
    assert np.array_equal(Dataset.from_arrays(Lazy(None)).train.x, X_TRAIN)
    for fail in ("x_train", "y_test", "class_names", "contains"):
        for error in (OSError("truncated file\nmore"), KeyError("no such key")):
            with pytest.raises(InputError, match=r"^arrays: \w+ cannot be read \((OSError|KeyError): ") as caught:
                Dataset.from_arrays(Lazy(fail, error))
            assert str(caught.value).isprintable()
    assert Dataset.from_arrays(collections.defaultdict(list, BASE)).class_names == ("0", "1", "2")
    with pytest.raises(InputError, match="'x_train' is missing, found 1, None, y"):
        Dataset.from_arrays({1: 2, None: 3, "y": 4})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "a", ""], ("a", "a", "")),
        ([b"cat", "dog", b"\xff"], ("cat", "dog", "�")),
        ([1, None, 2.5], ("1", "None", "2.5")),
        (["x" * 10**6, "\ud800", "\x1b[31m\n"], ("x" * 10**6, "\ud800", "\x1b[31m\n")),
        (np.array(["a", "b", "c"], dtype=object), ("a", "b", "c")),
        (torch.arange(3), ("0", "1", "2")),
        ((np.str_("a"), "b", "c\0"), ("a", "b", "c\0")),
    ],
    ids=range(7),
)
def test_class_names_of_any_kind(names, expected):
    made = Dataset.from_arrays(arrays(class_names=names)).class_names
    assert made == expected
    assert set(map(type, made)) == {str}
