"""Images that are read from their files as they are needed give the runs that images in memory give, bit by bit."""

import json
import signal
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import fastmeta
from fastmeta.cli import main
from fastmeta.data import InputError, Pool, Settings, load_dataset, split
from fastmeta.data.image_stream import ImageStream
from fastmeta.training import DataConfig, Interrupted, LabelConfig, OptimConfig, TrainConfig
from tests.support.plugs import files
from tests.support.stopped import Kill
from tests.support.tables import arrays

CPU = torch.device("cpu")
FREE = "fastmeta.data.pictures.free_memory"


def folder(root, parts=(("train", 24), ("test", 6), ("meta", 4)), size=(8, 6), mode="RGB"):
    """Bright and dark images; a file in eight lies with the wrong class, and one is broken."""
    rng = np.random.default_rng(0)
    for part, count in parts:
        for i in range(count):
            wrong = part == "train" and i % 8 == 0
            for c, name in enumerate(("dark", "bright")):
                pixels = rng.integers(0, 150, (*size, 3)).astype(np.uint8) + np.uint8(100 * (c != wrong))
                path = root / part / name / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).convert(mode).save(path)
    (root / "train/dark/05.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("images"))


def config(root, path, resident, **changes):
    of_data = {"augment": "crop_flip", "padding": 1, "batch_size": 16, "skip_corrupt": True, "meta_batch_size": 8}
    data = DataConfig(**{**of_data, **changes.pop("data", {})}, resident=resident)
    defaults = {"epochs": 3, "threads": 1, "model": "small_conv", "baselines": "union", "optim": OptimConfig(lr=0.05)}
    return TrainConfig(
        **{**defaults, **changes}, dataset=f"folder:{root}", data=data, checkpoint_seconds=0, out=str(path)
    )


def weights(path):
    found = files(path)
    return {k: v for k, v in found[0].items() if k != "config.toml"}, found[1]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_batches_are_those_of_images_in_memory(pad_mode, mode, tmp_path):
    place = folder(tmp_path, mode=mode)
    settings = Settings(seed=3, augment="crop_flip", padding=3, pad_mode=pad_mode)
    made = []
    for resident in ("yes", "no"):
        parts = split(load_dataset(f"folder:{place}", skip_corrupt=True, resident=resident))
        made.append((parts, Pool.of(parts, CPU, settings)))
    (a, ours), (b, theirs) = made
    assert a.fingerprint() == b.fingerprint()
    assert type(a.train.source) is not type(b.train.source)
    assert b.overlap == 0
    rows = torch.tensor([3, 50, 0, 17, 48, 17])
    for step in (0, 1, 2**31 + 5, None):
        at = None if step is None else torch.tensor(step)
        x, y = ours.source.network_input(rows, at, CPU), theirs.source.network_input(rows, step, CPU)
        assert torch.equal(x, y)
        assert x.stride() == y.stride()
    x, y = (p.test[0].network_input(torch.arange(12), None, CPU) for p in (ours, theirs))
    assert torch.equal(x, y)
    assert len({float(ours.source.network_input(rows, torch.tensor(s), CPU).sum()) for s in range(9)}) > 1


EXACT = {"labels": LabelConfig(update="exact")}


@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        pytest.param(0, {}, marks=pytest.mark.slow),
        pytest.param(2, {}, marks=pytest.mark.slow),
        pytest.param(0, EXACT, marks=pytest.mark.slow),
        (2, EXACT),
        (0, {"method": "onehot"}),
        pytest.param(2, {"method": "onehot"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_that_of_images_in_memory_and_goes_on_bitwise(workers, changes, root, tmp_path):
    unbroken = fastmeta.train(config(root, tmp_path / "memory", "yes", finetune_steps=3, **changes))
    made = config(root, tmp_path / "run", "no", finetune_steps=3, data={"workers": workers}, **changes)
    with pytest.raises(Interrupted):
        fastmeta.train(made, listener=Kill(signal.SIGTERM, made.method, 4))
    run = fastmeta.train(resume=tmp_path / "run")
    assert weights(run.path) == weights(unbroken.path)
    assert run.summary["train_size"] == 47


def test_what_does_not_fit_is_read_as_it_is_needed_and_that_is_said(root, monkeypatch, capsys):
    line = ["train", "--dataset", f"folder:{root}", "--data.skip-corrupt", "--model", "mlp", "--dry-run"]
    assert main(line) == 0
    assert "as they are needed" not in capsys.readouterr().out
    taken, load = 68 * 8 * 6 * 3, partial(load_dataset, f"folder:{root}", skip_corrupt=True)
    held = load()
    monkeypatch.setattr(FREE, lambda: 4 * taken)
    assert load().notes == held.notes
    monkeypatch.setattr(FREE, lambda: 4 * taken - 1)
    assert main(line) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "68 images of 6×8 pixels take 0.0 MiB, more than a quarter of the 0.0 MiB of memory that are free" in out
    assert "--data.workers N" in out
    read = load()
    assert isinstance(read.train, ImageStream)
    assert np.array_equal(held.train.x, np.asarray(read.train.x))
    for part in (3, -1, slice(2, 9, 3), [4, 1, 4], np.arange(47) % 5 == 0, slice(0, 0)):  # as noise may ask for them
        assert np.array_equal(held.train.x[part], read.train.x[part])
    with pytest.raises(IndexError):
        read.train.x[47]
    # and noise that looks at the images is the same
    labels = [split(d, noise="instance:0.3").train.y for d in (held, read)]
    assert np.array_equal(*labels)
    assert (labels[0] != held.train.targets[: len(labels[0])]).any()
    monkeypatch.setattr(FREE, lambda: 2 * taken - 1)
    with pytest.raises(InputError, match=r"0.0 MiB twice, and .*\(--data\.resident no\)"):
        load(resident="yes")


def test_a_run_that_began_in_memory_goes_on_without_it(root, tmp_path, monkeypatch):
    unbroken = fastmeta.train(config(root, tmp_path / "unbroken", "auto", baselines="none", epochs=2))
    with pytest.raises(Interrupted):
        fastmeta.train(
            config(root, tmp_path / "run", "auto", baselines="none", epochs=2),
            listener=Kill(signal.SIGTERM, "instance_labels", 2),
        )
    monkeypatch.setattr(FREE, lambda: 1000)
    fastmeta.train(resume=tmp_path / "run")
    assert files(tmp_path / "run")[:2] == files(unbroken.path)[:2]  # the line is a warning in the summary


@pytest.mark.slow
def test_canaries_and_their_pilot(tmp_path):
    place = folder(tmp_path / "set", (("train", 20), ("meta", 30)))
    made = {}
    for resident in ("yes", "no"):
        labels = LabelConfig(canaries="20")
        made[resident] = fastmeta.train(config(place, tmp_path / resident, resident, labels=labels, baselines="none"))
    assert made["no"].summary["canaries"] is not None
    assert weights(made["yes"].path) == weights(made["no"].path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_lost_on_the_way_is_named(workers, tmp_path):
    place = folder(tmp_path / "set")

    class Lose(Kill):
        def step(self, stage):
            if stage.step == 1:
                (place / "train/bright/07.png").write_bytes(b"gone")

    made = config(place, tmp_path / "run", "no", data={"workers": workers}, baselines="none")
    with pytest.raises(InputError, match=r"train/bright/07\.png cannot be read any more"):
        fastmeta.train(made, listener=Lose(signal.SIGTERM, "", 0))


@pytest.mark.parametrize("kind", ["images", pytest.param("features", marks=pytest.mark.slow)])
def test_arrays_that_do_not_fit_on_the_device_stay_on_the_host(kind, tmp_path, monkeypatch):
    data = arrays()
    if kind == "images":
        rng = np.random.default_rng(0)
        data |= {k: rng.integers(0, 256, (len(data[k]), 8, 8, 3)).astype(np.uint8) for k in data if k[:2] == "x_"}
    made = lambda name, resident="auto": TrainConfig(  # noqa: E731
        model="mlp",
        epochs=2,
        threads=1,
        baselines="none",
        data=DataConfig(batch_size=16, resident=resident),
        out=str(tmp_path / name),
    )
    unbroken = fastmeta.train(made("device"), data=data)
    fastmeta.train(made("host", "no"), data=data)
    monkeypatch.setattr("fastmeta.data.pool.free_on", lambda device: 1000)
    fastmeta.train(made("short"), data=data)
    from fastmeta.training.prepare import prepare

    assert any("they stay on the host, and batches are sent" in note for note in prepare(made("x"), data=data).notes)
    for name in ("host", "short"):
        assert weights(tmp_path / name) == weights(unbroken.path)
    with pytest.raises(InputError, match=r"data\.workers=2 is about data sets that are not held in memory"):
        fastmeta.train(TrainConfig(data=DataConfig(workers=2), out=str(tmp_path / "w")), data=data)


def test_summary_and_samples_of_a_streamed_run(root, tmp_path):
    run = fastmeta.train(config(root, tmp_path / "run", "no", baselines="none", epochs=1))
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["input_shape"] == [3, 8, 6]
    from fastmeta.report import write_report

    assert "data:image/png" in write_report(run.path).read_text()
