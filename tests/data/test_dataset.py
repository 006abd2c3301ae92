"""Arrays are checked once, where they enter; every message says what is wrong and how to mend it."""

import pickle

import numpy as np
import pytest
import torch

from fastmeta import train
from fastmeta._trust import trusting_pickles
from fastmeta.data import Dataset, InputError, as_dataset, load_dataset, split
from fastmeta.data.sources.digits import digits
from fastmeta.training import DataConfig, TrainConfig
from tests.support.arrays import X, arrays


def test_takes_over_what_is_right():
    data = Dataset.from_arrays(
        arrays(y_true=np.zeros(12, np.uint8), meta_index=[3, 1], class_names=list("abc"), more=1)
    )
    assert data.num_classes == 3
    assert data.class_names == ("a", "b", "c")
    assert data.y_true is not None
    assert data.y_true.dtype == np.int64
    assert data.meta_index is not None
    assert data.meta_index.tolist() == [3, 1]


def test_names_of_bytes_are_text():
    assert Dataset.from_arrays(arrays(class_names=np.array([b"cat", b"dog", b"\xff"]))).class_names == (
        "cat",
        "dog",
        "�",
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint64])
def test_labels_of_any_integer_dtype(dtype):
    data = Dataset.from_arrays(arrays(y_train=(np.arange(12) % 3).astype(dtype)))
    assert data.train.targets.dtype == np.int64
    assert data.train.targets.tolist() == [0, 1, 2] * 4


def test_grey_images_need_no_channel_axis_and_columns_of_labels_are_vectors():
    data = Dataset.from_arrays({"x_train": np.zeros((4, 5, 6), np.uint8), "y_train": np.array([[0], [1], [0], [1]])})
    assert data.train.x.shape == (4, 5, 6, 1)
    assert data.train.targets.shape == (4,)
    assert data.test is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None}, "array 'x_train' is missing, found x_test, y_test, y_train"),
        ({"y_test": None}, "'x_test' comes without 'y_test'"),
        ({"x_train": X.astype(np.float32)}, "x_test is uint8, x_train float32; .* bring all to one kind"),
        ({"x_train": X[:0]}, "none empty"),
        ({"x_train": X.transpose(0, 3, 1, 2)}, r"transpose\(0, 2, 3, 1\)"),
        (
            {"x_test": np.zeros((4, 7, 6, 3), np.uint8)},
            r"x_test has images of shape \(7, 6, 3\), x_train of \(5, 6, 3\)",
        ),
        ({"y_train": np.zeros(11, np.int64)}, "y_train has 11 labels for the 12 images"),
        ({"y_train": np.arange(12.0)}, r"integer dtype, got float64 .*convert with .astype\(np.int64\)$"),
        ({"y_train": np.array(list("abcabcabcabc"))}, r"got <U1 .* names, y = np\.unique\(y, return_inverse=True\)"),
        ({"y_train": np.eye(3)[np.arange(12) % 3]}, r"got float64 of shape \(12, 3\); .* take \.argmax\(1\)$"),
        ({"y_train": np.arange(12) < 6}, r"got bool .*convert with .astype\(np\.int64\)$"),
        ({"x_train": np.zeros(12)}, r"got float64 of shape \(12,\); one feature is a column, \[:, None\]$"),
        ({"x_train": np.full((12, 2), "a", object)}, "got object .* make numbers of columns of text"),
        ({"x_train": np.zeros((12, 2), int)}, r"got int64 .* numbers with \.astype\(np\.float32\)$"),
        ({"y_train": np.full(12, 2)}, r"one class only \(2\)"),
        ({"y_train": np.arange(12) % 3 - 1}, "y_train must start from 0, got -1 to 1; renumber"),
        ({"y_train": np.arange(12) * 10**9}, "at most 65,536 classes are possible, got 11,000,000,001"),
        ({"class_names": "abc"}, r"class_names must be one name per class \(C,\), got shape \(\)"),
        ({"class_names": ["a", "b"]}, r"must lie in 0\.\.1 \(2 class_names are given\), got 0 to 2"),
        ({"meta_index": [0, 12]}, r"must lie in 0\.\.11, .* got 0 to 12"),
        ({"meta_index": [4, 4]}, "names a row twice"),
        ({"meta_index": [0.5]}, "integer dtype"),
        ({"meta_index": np.arange(0)}, r"row numbers \(M >= 1,\) .* got int64 of shape \(0,\)"),
        ({"meta_index": np.arange(12) < 3}, r"got bool of shape \(12,\); pass np.flatnonzero"),
        ({"meta_index": [0], "x_meta": X, "y_meta": np.zeros(12, int)}, "both 'x_meta' and 'meta_index'"),
    ],
)
def test_says_what_is_wrong(changes, message):
    with pytest.raises(InputError, match=message):
        Dataset.from_arrays(arrays(**changes))


def test_labels_of_features_are_of_samples():
    with pytest.raises(InputError, match=r"y_train has 3 labels for the 4 samples of x_train$"):
        Dataset.from_arrays({"x_train": np.zeros((4, 2)), "y_train": np.arange(3)})


def test_arrays_that_look_like_others_are_named(tmp_path):
    """A clean set under another name would be left out without a word, and noisy rows be trusted in its place."""
    beside = {"x_clean": X, "y_clean": np.zeros(12), "ytest": [0], "human": np.arange(12) % 3, "comment": "x", 3: 4}
    data = Dataset.from_arrays(arrays() | beside)
    assert data.unused == ("x_clean", "y_clean", "ytest")
    note = (
        "arrays: x_clean, y_clean, ytest are not used; a clean set is x_meta and y_meta, a test set x_test and y_test"
    )
    assert note in split(data).notes
    del beside[3]
    np.savez(tmp_path / "set.npz", **arrays(), **beside)
    read = lambda **choice: load_dataset(f"npz:{tmp_path / 'set.npz'}", **choice).unused  # noqa: E731
    assert read() == data.unused
    assert read(given="human") == data.unused
    assert Dataset.from_arrays(arrays()).unused == ()


def test_npz_round_trip_with_other_label_arrays(tmp_path):
    path = tmp_path / "set.npz"
    human = (np.arange(12) + 1) % 3
    np.savez(path, **arrays(human=human))
    data = load_dataset(f"npz:{path}", given="human", truth="y_train")
    assert data.train.targets.tolist() == human.tolist()
    assert data.y_true is not None
    assert data.y_true.tolist() == (np.arange(12) % 3).tolist()
    with pytest.raises(InputError, match=r"no array 'robots' for data.given, found .*human"):
        load_dataset(f"npz:{path}", given="robots")


def test_files_that_are_missing_or_broken(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_dataset(f"npz:{tmp_path}/none.npz")
    with pytest.raises(InputError, match="is a folder"):
        load_dataset(f"npz:{tmp_path}")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        load_dataset(f"npz:{tmp_path}/text.npz")
    whole = tmp_path / "whole.npz"
    np.savez(whole, **arrays())
    (tmp_path / "half.npz").write_bytes(whole.read_bytes()[:800])
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        load_dataset(f"npz:{tmp_path}/half.npz")
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(InputError, match="a single array"):
        load_dataset(f"npz:{tmp_path}/one.npy")
    np.savez(tmp_path / "pickle.npz", x_train=X, y_train=np.array([object()] * 12))
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        load_dataset(f"npz:{tmp_path}/pickle.npz")
    with pytest.raises(
        InputError, match=r"dataset must be digits, npz:PATH, .*torchvision:NAME, .* or .*factory, got 'cifar'"
    ):
        load_dataset("cifar")
    with pytest.raises(InputError, match=r"is named by a text, .*, got 3"):
        load_dataset(3)


def test_digits_are_those_of_scikit_learn_three_clean_ones_per_class():
    data = digits(seed=0)
    assert data.meta_index is not None
    assert data.test is not None
    assert (len(data.test), len(data.meta_index), len(data.train.x) - len(data.meta_index)) == (397, 30, 1370)
    assert np.bincount(data.train.targets[data.meta_index]).tolist() == [3] * 10
    from sklearn.datasets import load_digits

    source = load_digits()
    ours = np.concatenate([data.train.x, data.test.x])[..., 0]
    key = {image.tobytes(): target for image, target in zip(source.images, source.target, strict=True)}
    labels = np.concatenate([data.train.targets, data.test.targets])
    assert all(key[(x / 15).tobytes()] == y for x, y in zip(ours, labels, strict=True))
    assert np.array_equal(digits(seed=0).train.x, data.train.x)
    assert not np.array_equal(digits(seed=1).train.x, data.train.x)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, labels, classes=None, x=None):
        self.pairs = [(torch.zeros(2) if x is None else x[i], y) for i, y in enumerate(labels)]
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (Pairs([0, 1], ["b", "a"]), "class 0 is 'b' in meta and 'a' in train; number the classes of all parts alike"),
        (Pairs([0, 1], ["a", "b", "c"]), "meta has 3 classes, train 2"),
    ],
)
def test_parts_that_call_their_classes_otherwise(meta, message):
    train = Pairs([0, 1] * 5, ["a", "b"])
    with pytest.raises(InputError, match=message):
        as_dataset({"train": train, "meta": meta})
    assert as_dataset({"train": train, "meta": Pairs([0, 1])}).class_names == ("a", "b")
    assert as_dataset({"train": train, "meta": meta, "class_names": list("abc")}).num_classes == 3


@pytest.mark.parametrize("part", ["meta", "test"])
def test_parts_that_know_more_classes_than_train(part):
    arrays = {"x_train": np.zeros((8, 2), "f4"), "y_train": np.arange(8) % 4}
    arrays |= {f"x_{part}": np.ones((6, 2), "f4"), f"y_{part}": np.arange(6)}
    with pytest.raises(InputError, match=f"y_{part} knows 6 classes, y_train 4; number the classes of all parts alike"):
        Dataset.from_arrays(arrays)
    assert Dataset.from_arrays({**arrays, "class_names": list("abcdef")}).num_classes == 6


@pytest.mark.parametrize("mark", [-100, 255])
@pytest.mark.parametrize("key", ["y_train", "y_meta", "y_test"])
def test_marks_of_what_has_no_label(mark, key):
    y = {k: np.arange(8) % 4 for k in ("y_train", "y_meta", "y_test")}
    y[key][[2, 5]] = mark
    x = {k.replace("y", "x"): np.full((8, 2), i, "f4") for i, k in enumerate(y)}
    why = f"{key} holds {mark} in 2 row\\(s\\), the first is row 2; {mark} marks what has no label"
    for names in ({}, {"class_names": list("abcd")}):
        with pytest.raises(InputError, match=why):
            Dataset.from_arrays({**x, **y, **names})


def test_256_classes_have_one_of_number_255():
    y = np.arange(512) % 256
    assert Dataset.from_arrays({"x_train": np.zeros((512, 1), "f4"), "y_train": y}).num_classes == 256


@pytest.mark.parametrize("workers", [0, 1])
def test_nan_in_a_data_set_that_is_read_as_needed(workers, tmp_path):
    x = torch.randn(20, 2)
    x[7, 1] = float("nan")
    data = {"train": Pairs([0, 1] * 10, None, x), "meta": Pairs([0, 1])}
    config = TrainConfig(
        model="mlp", epochs=1, baselines="none", data=DataConfig(workers=workers), out=str(tmp_path / "run")
    )
    with pytest.raises(InputError, match="sample 7 holds NaN; fill such numbers, or drop the sample"):
        train(config, data=data)


def test_a_pickle_of_arrays_is_refused_unless_it_is_trusted(tmp_path):
    arrays = {"x_train": np.zeros((8, 2), "f4"), "human": np.arange(8) % 4}
    path = tmp_path / "a.npz"
    path.write_bytes(pickle.dumps(arrays))
    with pytest.raises(InputError, match=r"it is a pickle, which would run code of whoever wrote it.*--trust-pickle"):
        load_dataset(f"npz:{path}", given="human")
    with trusting_pickles():
        assert load_dataset(f"npz:{path}", given="human").train.targets.tolist() == [0, 1, 2, 3] * 2
