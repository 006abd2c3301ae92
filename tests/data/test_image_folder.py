"""``folder:PATH``: where images lie, which are broken, how sizes become one; and torchvision's sets of image files."""

import json
import shutil

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from fastmeta.cli import main
from fastmeta.data import InputError, load_dataset, split

CLASSES = ("ant", "bee", "cat")


def picture(path, seed, size=(6, 8), mode="RGB"):
    """One image file; its pixels, (height, width, channels)."""
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels.reshape(*size, -1)


@pytest.fixture
def root(tmp_path):
    """Ten images of each class to train on, two to test, one clean."""
    for number, (part, count) in enumerate((("train", 10), ("test", 2), ("meta", 1))):
        for c, name in enumerate(CLASSES):
            for i in range(count):
                picture(tmp_path / "set" / part / name / f"{i:02}.png", 1000 * number + 10 * i + c)
    return tmp_path / "set"


def test_the_layout_of_image_folders(root):
    data = load_dataset(f"folder:{root}")
    theirs = torchvision.datasets.ImageFolder(str(root / "train"))
    assert data.class_names == tuple(theirs.classes) == CLASSES
    assert np.array_equal(data.train.targets, theirs.targets)
    assert np.array_equal(data.train.x, np.stack([np.asarray(image) for image, _ in theirs]))
    assert data.train.x.dtype == np.uint8
    assert [len(data.train), len(data.test), len(data.meta)] == [30, 6, 3]
    assert data.row_names[0] == "train/ant/00.png"
    assert split(data).notes == ()


def test_without_parts_all_images_are_train(root):
    data = load_dataset(f"folder:{root / 'train'}")
    assert (len(data.train), data.test, data.meta) == (30, None, None)
    assert np.array_equal(data.train.x, load_dataset(f"folder:{root}").train.x)


def test_grey_images_stay_grey_and_hidden_files_are_none(root, tmp_path):
    for c in "ab":
        pixels = picture(tmp_path / f"grey/{c}/0.pgm", 0, mode="L")
        picture(tmp_path / f"grey/{c}/1.jpg", 1, mode="L")
        (tmp_path / f"grey/{c}/.hidden.png").write_bytes(b"x")
        (tmp_path / f"grey/{c}/readme.txt").write_text("x")
    data = load_dataset(f"folder:{tmp_path / 'grey'}")
    assert data.train.x.shape == (4, 6, 8, 1)
    assert np.array_equal(data.train.x[0], pixels)
    picture(tmp_path / "grey/a/2.png", 2)
    assert load_dataset(f"folder:{tmp_path / 'grey'}").train.x.shape == (5, 6, 8, 3)


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no image"])
def test_broken_images_are_named_counted_and_left_out_if_asked(root, spoil):
    for name in ("bee/03.png", "cat/07.png"):
        path = root / "train" / name
        path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(
        InputError, match=r"2 of 30 images cannot be read, the first is train/bee/03\.png .*skip-corrupt"
    ):
        load_dataset(f"folder:{root}")
    data = load_dataset(f"folder:{root}", skip_corrupt=True)
    assert len(data.train) == len(data.row_names) == 28
    assert not {"train/bee/03.png", "train/cat/07.png"} & set(data.row_names)
    assert np.bincount(data.train.targets).tolist() == [10, 9, 9]
    (note,) = split(data).notes
    assert "2 of 30 images cannot be read and are left out: train/bee/03.png, train/cat/07.png" in note


def test_images_of_several_sizes_are_brought_to_one(root):
    wide = picture(root / "train/ant/20.png", 5, size=(8, 24))
    with pytest.raises(InputError, match=r"sizes, train/ant/00.png has 8×6 pixels and train/ant/20.png has 24×8"):
        load_dataset(f"folder:{root}")
    data = load_dataset(f"folder:{root}", image_size=8)
    assert data.train.x.shape == (31, 8, 8, 3)
    assert np.array_equal(data.train.x[data.row_names.index("train/ant/20.png")], wide[:, 8:16])
    assert load_dataset(f"folder:{root}", image_size=5).test.x.shape == (6, 5, 5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: shutil.rmtree(r), "set does not exist; folder:PATH wants PATH/train/CLASS/IMAGE"),
        (lambda r: shutil.rmtree(r / "train"), "has test/ and no train/|has meta/ and no train/"),
        (
            lambda r: picture(r / "test/dog/0.png", 0),
            "test has a class 'dog' that train has not: ant, bee, cat; all",
        ),
        (lambda r: [shutil.rmtree(r / "train" / c) for c in CLASSES[1:]], r"train holds one class only \(ant\)"),
        (lambda r: [p.unlink() for p in (r / "meta").rglob("*.png")], "meta holds no image"),
        (lambda r: Image.fromarray(np.zeros((6, 8), np.uint16)).save(r / "train/ant/x.png"), "more than 8 bits"),
    ],
)
def test_a_folder_that_is_no_set(root, change, message):
    change(root)
    with pytest.raises(InputError, match=message):
        load_dataset(f"folder:{root}")


def test_what_looks_like_a_sample_and_is_none_is_told(root):
    (root / "train/ant/a.HEIC").write_bytes(b"x")
    picture(root / "train/loose.png", 0)
    (root / "val").mkdir()
    of_others, of_files = load_dataset(f"folder:{root}").notes
    assert "val beside train/ is not used; parts are train/, meta/ and test/" in of_others
    assert "in train/ are left out, 1 of .heic, 1 that lie in no folder of a class" in of_files


def test_a_link_to_nothing_is_a_broken_image_and_circles_end(root):
    (root / "train/ant/up").symlink_to("..")
    assert len(load_dataset(f"folder:{root}").train) == 30
    for name in ("nowhere.png", "itself.png"):
        link = root / "train/bee" / name
        link.symlink_to("nothing.png" if name == "nowhere.png" else link)
        with pytest.raises(InputError, match=f"1 of 31 images cannot be read, the first is train/bee/{name}"):
            load_dataset(f"folder:{root}")
        link.unlink()


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "P", "1", "L"])
def test_images_of_other_modes_among_coloured_ones(mode, root):
    suffix = "tif" if mode == "CMYK" else "gif" if mode == "P" else "png"
    image = Image.fromarray(np.full((6, 8, 3), 255, np.uint8)).convert(mode)
    image.save(root / f"train/ant/99.{suffix}", **({"save_all": True, "append_images": [image]} if mode == "P" else {}))
    data = load_dataset(f"folder:{root}")
    assert (data.train.x[data.row_names.index(f"train/ant/99.{suffix}")] == 255).all()


def test_an_empty_class_is_told(root):
    for path in (root / "train/cat").iterdir():
        path.unlink()
    assert "train has no image of 1 of 3 classes: cat" in split(load_dataset(f"folder:{root}")).notes[0]


def test_too_many_for_memory_if_they_must_be_there(root, monkeypatch):
    monkeypatch.setattr("fastmeta.data.pictures.free_memory", lambda: 5000)
    with pytest.raises(InputError, match=r"39 images of 8×6 pixels take .*\(--data.image-size\)"):
        load_dataset(f"folder:{root}", resident="yes")


def test_a_run_of_image_files(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["train", "--dataset", "folder:set", "--model", "mlp", "--epochs", "1", "--out", "run"]
    assert main([*line, "--noise", "uniform_exact:0.4", "--data.image-size", "4"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["train_size"], summary["meta_size"], summary["test_size"]) == (30, 3, 6)
    assert summary["noise_rate"] == 0.4
    assert summary["input_shape"] == [3, 4, 4]
    assert summary["dataset"] == f"folder:{root}"


def test_sets_of_torchvision_that_open_files(monkeypatch):
    class GTSRB(torchvision.datasets.VisionDataset):
        def __init__(self, root, split="train"):
            self.count = {"train": 8, "test": 4}[split]

        def __len__(self):
            return self.count

        def __getitem__(self, i):
            return Image.fromarray(np.full((4 + i % 2, 4, 3), i, np.uint8)), i % 2

    monkeypatch.setattr(torchvision.datasets, "GTSRB", GTSRB)
    with pytest.raises(InputError, match="several sizes, image 0 of train has 4×4 pixels and image 1 of train has 4×5"):
        load_dataset("torchvision:GTSRB")
    data = load_dataset("torchvision:GTSRB", image_size=4)
    assert data.train.x.shape == (8, 4, 4, 3)
    assert data.train.x[:, 0, 0, 0].tolist() == list(range(8))
    assert data.test.targets.tolist() == [0, 1, 0, 1]
    read = load_dataset("torchvision:GTSRB", image_size=4, resident="no")
    assert type(read.train) is not type(data.train)
    assert np.array_equal(read.train.x, data.train.x)
    assert read.train.targets.tolist() == data.train.targets.tolist()
    assert read.train.fingerprint() == data.train.fingerprint()
