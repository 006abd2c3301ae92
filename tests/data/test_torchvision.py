"""Sets of torchvision from files that are there: in the raw form of each, made here."""

import dataclasses
import gzip
import inspect
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

import fastmeta
from fastmeta.data import InputError, load_dataset, split
from fastmeta.data.sources.of_torchvision import IDX, OTHERS

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array, head=None):
    shape = array.shape if head is None else head
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{len(shape)}I", *shape) + array.astype(np.uint8).tobytes()


def arrays(train=60, test=20, side=8):
    rng = np.random.default_rng(0)
    out = {}
    for part, count in (("train", train), ("t10k", test)):
        out[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, side, side))
        out[f"{part}-labels-idx1-ubyte"] = np.arange(count) % 10
    return out


def written(folder, packed, **changes):
    folder.mkdir(parents=True)
    for name, array in arrays().items():
        data = changes.get(name.split("-ubyte")[0].replace("-", "_"), idx(array))
        (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", "raw", "."])
def test_the_raw_files_are_found_where_torchvision_and_debian_have_them(tmp_path, packed, place):
    written(tmp_path / "root" / place, packed)
    data = load_dataset("torchvision:FashionMNIST", root=str(tmp_path / "root"))
    made = arrays()
    assert np.array_equal(data.train.x[..., 0], made["train-images-idx3-ubyte"])
    assert np.array_equal(data.test.targets, made["t10k-labels-idx1-ubyte"])
    assert data.class_names[:2] == ("T-shirt/top", "Trouser")
    assert data.num_classes == 10
    assert data.y_true is None


def test_torchvision_reads_the_same(tmp_path):
    """Its own class, of the same files unpacked."""
    written(tmp_path / "KMNIST" / "raw", packed=False)
    ours = load_dataset("torchvision:KMNIST", root=str(tmp_path))
    theirs = torchvision.datasets.KMNIST(str(tmp_path), train=True)
    assert np.array_equal(ours.train.x[..., 0], theirs.data.numpy())
    assert np.array_equal(ours.train.targets, theirs.targets.numpy())
    assert list(ours.class_names) == theirs.classes


def test_absent_files_are_named_with_their_folder_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetched = []
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", lambda self: fetched.append(self.root))
    with pytest.raises(InputError) as error:
        load_dataset("torchvision:FashionMNIST")
    text = str(error.value)
    assert str(tmp_path / "data") in text
    for part in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "--data.root", "--data.download"):
        assert part in text
    assert not fetched
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"cannot be downloaded to .*data: RuntimeError"):
        load_dataset("torchvision:FashionMNIST", download=True)  # which brings nothing here
    assert fetched == [str(tmp_path / "data")]


@pytest.mark.parametrize("number", [10, 100])
def test_short_names(number, tmp_path):
    texts = []
    for spec in (f"cifar{number}", f"torchvision:CIFAR{number}"):
        with pytest.raises(InputError) as error:
            load_dataset(spec, root=str(tmp_path))
        texts.append(str(error.value))
    assert texts[0] == texts[1]
    assert str(tmp_path) in texts[0]
    assert f"MD5 {getattr(torchvision.datasets, f'CIFAR{number}').filename} " in texts[0]


def test_what_is_missing_of_other_sets_is_named(tmp_path):
    for name, parts in {
        "CIFAR10": ("data_batch_1", "test_batch", "cifar-10-batches-py"),
        "SVHN": ("train_32x32.mat", "test_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        "MNIST": ("train-images-idx3-ubyte.gz f68b3c2dcbeaaa9fbdd348bbdeb94873",),
        "EuroSAT": ("those of torchvision.datasets.EuroSAT",),
    }.items():
        with pytest.raises(InputError) as error:
            load_dataset(f"torchvision:{name}", root=str(tmp_path))
        assert all(part in str(error.value) for part in (str(tmp_path), *parts))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no idx file"),
        (b"\0\0\x08\x01" + b"\0\0\0\x05" * 3, "is no idx file of bytes in 3 dim"),
        (b"\0\0\x0d\x03" + b"\0\0\0\x05" * 3, "is no idx file"),
        (idx(np.zeros((60, 8, 8)))[:-1], "has fewer: it was cut"),
        (idx(np.zeros((60, 8, 8))) + b"\0", "has more"),
        (idx(np.zeros((1, 8, 8)), (2**32 - 1,) * 3), "declares .* bytes and has fewer"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, packed, content, message):
    written(tmp_path / "root", packed, train_images_idx3=content)
    with pytest.raises(InputError, match=rf"train-images-idx3-ubyte.*{message}"):
        load_dataset("torchvision:MNIST", root=str(tmp_path / "root"))


def test_a_packed_file_that_was_cut_or_is_none(tmp_path):
    folder = written(tmp_path / "root", True)
    name = folder / "train-images-idx3-ubyte.gz"
    whole = name.read_bytes()
    for content in (whole[:-20], b"text", whole[:40] + bytes(40) + whole[80:]):
        name.write_bytes(content)
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz"):
            load_dataset("torchvision:MNIST", root=str(folder))


def test_cifar_in_its_own_form(tmp_path, monkeypatch):
    """Channels come first in its files, and last in ours."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images[name] = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        content = {"data": images[name].reshape(4, -1), "labels": [0, 1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(InputError, match="torchvision:CIFAR10"):  # whose MD5 is another
        load_dataset("torchvision:CIFAR10", root=str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load_dataset("torchvision:CIFAR10", root=str(tmp_path))
    assert data.train.x.shape == (20, 32, 32, 3)
    assert np.array_equal(data.train.x[:4].transpose(0, 3, 1, 2), images["data_batch_1"])
    assert data.class_names == tuple("abcdefghij")


@pytest.mark.parametrize("name", [*OTHERS, *IDX])
def test_every_set_is_one_of_torchvision(name):
    takes = inspect.signature(getattr(torchvision.datasets, name)).parameters
    assert {"root", "download", OTHERS.get(name, ("train",))[0]} <= set(takes)


def test_a_file_beyond_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    written(tmp_path / "root", True)
    monkeypatch.setattr("fastmeta.data.idx_file.free_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"holds 0\.0 MiB, and 0\.0 MiB of memory are free"):
        load_dataset("torchvision:MNIST", root=str(tmp_path / "root"))


def test_sets_that_hold_their_images_channels_first(monkeypatch):
    class SVHN(torchvision.datasets.VisionDataset):
        def __init__(self, root, split="train"):
            count = 10 if split == "train" else 4
            self.data = np.arange(count * 3 * 16, dtype=np.uint8).reshape(count, 3, 4, 4)
            self.labels = np.arange(count) % 2

    monkeypatch.setattr(torchvision.datasets, "SVHN", SVHN)
    data = load_dataset("torchvision:SVHN")
    assert data.train.x.shape == (10, 4, 4, 3)
    assert data.train.x[0, 0, 1].tolist() == [1, 17, 33]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:Fashion", "MNIST, FashionMNIST, .* USPS, got 'Fashion'; build another one in a factory"),
        ("torchvision:VisionDataset", "got 'VisionDataset'"),
        ("torchvision:EMNIST", "got 'EMNIST'"),
        ("torchvision:", "dataset must be digits"),
        ("torchvision", "dataset must be digits"),
    ],
)
def test_names_that_stand_for_no_set(spec, message):
    with pytest.raises(InputError, match=message):
        load_dataset(spec)


def test_options_that_are_about_other_data():
    for options, name in (({"root": "x"}, "data.root"), ({"download": True}, "data.download")):
        for spec in ("digits", "npz:x.npz", "tests.support.runs:two_classes"):
            with pytest.raises(InputError, match=f"{name} is about sets of torchvision"):
                load_dataset(spec, **options)
    with pytest.raises(InputError, match=r"data\.given and data\.truth .* FashionMNIST has none"):
        load_dataset("torchvision:FashionMNIST", given="human")


def test_a_run_finds_its_files_again_from_another_folder(tmp_path, monkeypatch):
    written(tmp_path / "data", packed=True)
    monkeypatch.chdir(tmp_path)
    config = fastmeta.TrainConfig(
        dataset="torchvision:FashionMNIST",
        noise="pair:0.4",
        model="mlp",
        epochs=1,
        threads=1,
        out="run",
        data=fastmeta.training.DataConfig(download=True),
    )
    assert fastmeta.train(config).summary["noise"] == "pair:0.4"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = fastmeta.TrainConfig.read(tmp_path / "run" / "config.toml")
    assert again.data.root == str(tmp_path / "data")
    assert not again.data.download  # which only the user can ask for
    assert fastmeta.train(dataclasses.replace(again, out="new")).summary["train_size"] == 50


def test_debians_package():
    if not DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data = load_dataset("torchvision:FashionMNIST", root=str(DEBIAN))
    assert (data.train.x.shape, data.test.x.shape) == ((60000, 28, 28, 1), (10000, 28, 28, 1))
    assert np.bincount(data.train.targets).tolist() == [6000] * 10
    assert split(data, noise="pair:0.45").noise_rate == pytest.approx(0.45, abs=0.01)
