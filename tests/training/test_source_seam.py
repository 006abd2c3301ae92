"""Sources of samples and noise that are plugged in from outside of the package; features, streams, and their resume."""

import signal
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.data import Dataset, InputError, Source
from fastmeta.training import DataConfig, Interrupted, LabelConfig, OptimConfig, TrainConfig
from tests.support.plugs import files
from tests.support.stopped import Kill
from tests.support.tables import Pairs, arrays, stream, table


def config(path, **changes):
    data = DataConfig(batch_size=16, **changes.pop("data", {}))
    defaults = {"epochs": 3, "threads": 1, "baselines": "union", "optim": OptimConfig(lr=0.05)}
    return TrainConfig(**{**defaults, **changes}, data=data, checkpoint_seconds=0, out=str(path))


OUTSIDE = """
import numpy as np, torch
from fastmeta.data import Dataset, Source
from tests.support.tables import arrays


class Halves(Source):
    '''Only half of each sample is kept; the other half is made by its row, and in training by the step.'''

    def __init__(self, x, y):
        self.half, self.targets, self.input_shape = x[:, :3] / 10.0 ** np.arange(3), y, (6,)
        self.asked = []

    def fetch(self, rows, step, device):
        assert rows.device.type == "cpu"
        self.asked.append(step)
        x = torch.from_numpy(self.half[rows.numpy()]).float()
        other = torch.sin(x * (1 + 0.01 * (step or 0)))
        return torch.cat([x, other], 1).to(device)

    def fingerprint(self):
        return str(float(self.half.sum()))


def make():
    a = arrays()
    return Dataset.from_sources("halves", *(Halves(a[f"x_{k}"], a[f"y_{k}"]) for k in ("train", "meta", "test")))


def bad():
    raise OSError("no disk")


def nothing():
    return 3
"""


def interrupted(made, path, at, **options):
    with pytest.raises(Interrupted):
        fastmeta.train(made(path), listener=Kill(signal.SIGTERM, *at), **options)


@pytest.mark.parametrize("method", ["instance_labels", "onehot"])
def test_features_train_and_resume_bitwise(method, tmp_path):
    np.savez(tmp_path / "table.npz", **arrays())
    made = lambda path: config(path, method=method, dataset=f"npz:{tmp_path}/table.npz", epochs=6)  # noqa: E731
    unbroken = fastmeta.train(made(tmp_path / "unbroken"))
    assert unbroken.summary["model"] == "mlp"
    assert unbroken.summary["input_shape"] == [6]
    assert unbroken.summary["test_accuracy_last"] > 0.6
    for at in ((method, 7), ("union", 8)):
        interrupted(made, tmp_path / f"{at}", at)
        fastmeta.train(resume=tmp_path / f"{at}")
        assert files(tmp_path / f"{at}") == files(unbroken.path)
    assert fastmeta.load_run(unbroken.path).summary == unbroken.summary
    from fastmeta.training.estimate import dry_run

    assert "96 samples (6,)" in dry_run(made(tmp_path / "not"))


def scaled(x, mean, std):
    return torch.from_numpy((x - mean) / std)


def test_features_are_standardised_by_the_training_rows_unless_told_not_to(tmp_path):
    from fastmeta.training.prepare import prepare

    a = arrays()
    for standardise in (True, False):
        prepared = prepare(config(tmp_path, data={"standardise": standardise}), data=a)
        source, test = prepared.data.source, prepared.data.test[0]
        rows = lambda s: s.network_input(torch.arange(len(s)), None, torch.device("cpu")).double()  # noqa: E731
        mean, std = a["x_train"].astype(float).mean(0), a["x_train"].astype(float).std(0)
        mean, std = (mean, std) if standardise else (0.0, 1.0)
        wanted = partial(scaled, mean=mean, std=std)
        every = np.concatenate([a["x_train"], a["x_meta"]]).astype(float)
        torch.testing.assert_close(rows(source), wanted(every).double(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rows(test), wanted(a["x_test"].astype(float)).double(), rtol=1e-4, atol=1e-4)


def test_features_of_any_shape_and_constant_columns(tmp_path):
    a = arrays()
    a = {k: v.reshape(len(v), 2, 3, 1) if k.startswith("x") else v for k, v in a.items()}
    for k in ("x_train", "x_meta", "x_test"):
        a[k][:, 0, 0] = 7.0
    run = fastmeta.train(config(tmp_path / "run", baselines="none", method="class_labels"), data=a)
    assert run.summary["input_shape"] == [2, 3, 1]
    assert run.summary["train_fit"] > 0.5


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"augment": "crop"}, "data.augment=crop is about images"),
        ({"augment": "crop_flip"}, "data.augment=crop_flip is about images"),
        ({"padding": 2}, "data.padding=2 is about images"),
        ({"pad_mode": "reflect"}, "data.pad_mode=reflect is about images"),
        ({"workers": 2}, "data.workers=2 is about data sets that are not held in memory"),
    ],
)
def test_options_of_images_are_refused_for_features_by_name(options, name, tmp_path):
    with pytest.raises(InputError, match=name):
        fastmeta.train(config(tmp_path / "run", data=options), data=arrays())
    assert not (tmp_path / "run").exists()


def test_options_of_features_are_refused_for_images(tmp_path):
    with pytest.raises(InputError, match=r"data\.standardise=False is about features, and digits holds others"):
        fastmeta.train(config(tmp_path / "run", dataset="digits", data={"standardise": False}))


@pytest.mark.parametrize(
    "options", [{"given": "y"}, {"root": "x"}, {"image_size": 8}, {"skip_corrupt": True}, {"label_column": "a"}]
)
def test_options_on_how_a_data_set_is_read_are_refused_for_data_that_are_there(options, tmp_path):
    (name,) = options
    with pytest.raises(InputError, match=rf"data\.{name}=.* is about how a data set is read by its name, and the data"):
        fastmeta.train(config(tmp_path / "run", data=options), data=arrays())


def test_features_that_are_no_numbers_are_named():
    a = arrays()
    a["x_train"][5, 2] = np.nan
    a["x_train"][9, 0] = np.inf
    with pytest.raises(InputError, match=r"x_train holds nan in row 5 \(at \(5, 2\)\), in 2 row\(s\)"):
        Dataset.from_arrays(a)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["instance_labels", "onehot"])
def test_a_stream_trains_and_resumes_bitwise_with_any_number_of_workers(method, workers, tmp_path):
    made = lambda path, n=0: config(path, method=method, model="mlp", data={"workers": n})  # noqa: E731
    unbroken = fastmeta.train(made(tmp_path / "unbroken"), data=stream())
    state = torch.get_rng_state()
    interrupted(lambda path: made(path, workers), tmp_path / "run", (method, 7), data=stream())
    assert torch.equal(torch.get_rng_state(), state)
    fastmeta.train(resume=tmp_path / "run", data=stream())
    ours, theirs = files(tmp_path / "run"), files(unbroken.path)
    assert ours[1:2] == theirs[1:2]
    for name in ("model.safetensors", "labels.npz"):
        assert ours[0][name] == theirs[0][name]
    assert unbroken.summary["test_accuracy_last"] > 0.6


class Drop(nn.Module):
    """Draws in every step, from torch's own generator."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("update", ["exact", "epoch"])
def test_workers_draw_nothing_from_the_run(update, tmp_path):
    """Not when the run begins, nor when it goes on or looks at all samples: dropout would see other numbers."""
    torch.manual_seed(0)
    model, labels = Drop(), LabelConfig(update=update)
    made = lambda path, n: config(path, data={"workers": n}, labels=labels, baselines="none")  # noqa: E731
    unbroken = fastmeta.train(made(tmp_path / "unbroken", 0), model=model, data=stream())
    kill = Kill(signal.SIGTERM, "instance_labels", 7)
    with pytest.raises(Interrupted):
        fastmeta.train(made(tmp_path / "run", 2), model=model, data=stream(), listener=kill)
    fastmeta.train(resume=tmp_path / "run", model=model, data=stream())
    ours, theirs = files(tmp_path / "run"), files(unbroken.path)
    for name in ("model.safetensors", "labels.npz"):
        assert ours[0][name] == theirs[0][name]


def test_a_stream_of_other_samples_is_no_resume(tmp_path):
    interrupted(lambda path: config(path, model="mlp"), tmp_path / "run", ("instance_labels", 7), data=stream())
    other = stream()
    other["train"].x = other["train"].x + 1
    with pytest.raises(InputError, match="the data are not those"):
        fastmeta.train(resume=tmp_path / "run", data=other)


def test_one_data_set_is_held_out_from_and_labels_may_come_from_its_samples(tmp_path):
    run = fastmeta.train(config(tmp_path / "run", model="mlp", baselines="none"), data=stream(targets=False)["train"])
    assert run.summary["meta_size"] == 18
    assert run.summary["test_size"] is None
    assert run.summary["dataset"] == "custom:arrays"


class Words(torch.utils.data.Dataset):
    """Samples that are dicts, as tokenizers give."""

    def __init__(self, count):
        self.y = np.arange(count) % 2

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        ids = torch.tensor([1, 2, 3, int(self.y[row])])
        return {"ids": ids, "mask": torch.ones(4)}, int(self.y[row])


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(4, 8), nn.Linear(8, 2)

    def forward(self, ids, mask):
        return self.head((self.embed(ids) * mask[..., None]).mean(1))


@pytest.mark.parametrize("method", ["instance_labels", "onehot"])
def test_samples_may_be_dicts_that_a_model_takes(method, tmp_path):
    torch.manual_seed(0)
    data = {"train": Words(64), "test": Words(20), "class_names": ["no", "yes"]}
    run = fastmeta.train(config(tmp_path / "run", method=method, baselines="none", epochs=6), data=data, model=Reader())
    assert run.summary["test_accuracy_last"] == 1
    assert run.summary["input_shape"] is None
    assert run.summary["class_names"] == ["no", "yes"]
    with pytest.raises(InputError, match="need a model of your own"):
        fastmeta.train(config(tmp_path / "other"), data=data)


class Broken(Pairs):
    def __getitem__(self, row):
        if row == 3:
            raise OSError("unreadable")
        return super().__getitem__(row)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: {"train": Broken(*table(), targets=False)}, "train: sample 3 cannot be read: OSError: unreadable"),
        (lambda: {"train": [(torch.zeros(2), 0.5)] * 4}, "the label of sample 0 must be a class number, got 0.5"),
        (lambda: {"train": [torch.zeros(2)] * 4}, r"must give \(x, y\), got Tensor for sample 0"),
        (lambda: {"train": stream()["train"], "tset": stream()["test"]}, "unknown part 'tset'"),
        (lambda: iter([1]), r"data must be a mapping of arrays, such as \{'x_train': .*, a map-style data set"),
        (lambda: pytest.importorskip("pandas").DataFrame({"a": [1.0, 2.0], "label": [0, 1]}), "got DataFrame$"),
        (lambda: {"train": [(torch.zeros(2), 0, 1)] * 4}, r"must give \(x, y\), got a tuple of 3 for sample 0"),
        (lambda: {"train": [(torch.zeros(2).double(), k) for k in (0, 1, 0, 1)]}, "the samples are torch.float64, its"),
        (lambda: [1, 2], r"data must be a mapping of arrays, such as \{'x_train': .*, a map-style data set"),
        (lambda: {**stream(), "meta_index": [1]}, "both 'meta' and 'meta_index'"),
        (lambda: {**stream(), "y_true": [1]}, r"y_true has shape \(1,\) for 96 training samples"),
    ],
)
def test_data_sets_that_cannot_be_used_are_refused(data, message, tmp_path):
    with pytest.raises(InputError, match=message):
        fastmeta.train(config(tmp_path / "run", model="mlp"), data=data())


def test_a_source_from_outside_trains_and_resumes_bitwise(plug, tmp_path):
    name = plug("source_from_outside", OUTSIDE)
    made = lambda path: config(path, dataset=f"{name}:make", model="mlp")  # noqa: E731
    unbroken = fastmeta.train(made(tmp_path / "unbroken"))
    assert unbroken.summary["dataset"] == f"{name}:make"
    assert unbroken.summary["test_accuracy_last"] > 0.6
    interrupted(made, tmp_path / "run", ("instance_labels", 7))
    with pytest.raises(InputError, match="names code and comes from a file"):
        fastmeta.train(resume=tmp_path / "run")
    fastmeta.train(resume=tmp_path / "run", trust_code=True)
    assert files(tmp_path / "run") == files(unbroken.path)
    assert fastmeta.load_run(unbroken.path).summary == unbroken.summary
    default = TrainConfig(dataset=f"{name}:make")
    from fastmeta.training.rundir.layout import new_directory

    assert str(new_directory(default)) == "runs/make-instance_labels-seed0"
    for factory, message in (("bad", "failed: OSError: no disk"), ("nothing", "got int"), ("gone", "has no 'gone'")):
        with pytest.raises(InputError, match=message):
            fastmeta.train(config(tmp_path / "bad", dataset=f"{name}:{factory}"))


NOISE = """
import numpy as np

def dark(targets, x, num_classes, rate, generator):
    '''The first feature decides whose label may be wrong.'''
    assert x.shape[0] == len(targets) and num_classes == 3
    hit = (x[:, 0] > np.median(x[:, 0])) & (generator.random(len(targets)) < rate)
    return np.where(hit, (targets + 1) % num_classes, targets)

def few(targets, x, num_classes, rate, generator):
    return targets[:3]

def far(targets, x, num_classes, rate, generator):
    return targets + 3

def fails(targets, x, num_classes, rate, generator):
    return targets[x]
"""


def test_noise_from_outside_sees_the_samples(plug, tmp_path):
    name = plug("noise_from_outside", NOISE)
    a = arrays()
    del a["y_true"]
    made = lambda path, kind="dark:0.5": config(path, noise=f"{name}:{kind}", baselines="none")  # noqa: E731
    unbroken = fastmeta.train(made(tmp_path / "unbroken"), data=a)
    assert 0.1 < unbroken.summary["noise_rate"] < 0.4
    assert unbroken.summary["noise"] == f"{name}:dark:0.5"
    with np.load(unbroken.path / "labels.npz") as t:
        wrong = t["given"] != t["true"]
    first = a["x_train"][:, 0]
    assert first[wrong].min() > np.median(first)
    interrupted(made, tmp_path / "run", ("instance_labels", 7), data=a)
    fastmeta.train(resume=tmp_path / "run", data=a, trust_code=True)
    assert files(tmp_path / "run") == files(unbroken.path)
    bad = {
        "few": r"must return class numbers \(96,\)",
        "far": "must return classes in 0..2, got 3 to 5",
        "fails": "failed",
    }
    for kind, message in {**bad, "gone": "has no 'gone'", "dark:2": "unknown noise"}.items():
        with pytest.raises(InputError, match=message):
            fastmeta.train(made(tmp_path / "bad", kind), data=a)
    assert name in sys.modules
    (tmp_path / "run.toml").write_text(f'noise = "{name}:dark:0.5"\n')
    sys.modules.pop(name)
    with pytest.raises(InputError, match="names code and comes from a file"):
        fastmeta.train(TrainConfig.read(tmp_path / "run.toml"), data=a)
    assert name not in sys.modules


def test_noise_sees_a_stream_one_by_one(plug, tmp_path):
    name = plug(
        "noise_of_streams", "def first(t, x, c, rate, g):\n    return (t + [x[i][0] > 0 for i in range(len(x))]) % c\n"
    )
    data = stream()
    del data["y_true"]
    run = fastmeta.train(config(tmp_path / "run", model="mlp", noise=f"{name}:first", baselines="none"), data=data)
    assert run.summary["noise_rate"] > 0


def test_parts_of_two_kinds_are_joined(tmp_path):
    class Plain(Source):
        def __init__(self, x, y):
            self.x_, self.targets, self.input_shape = torch.from_numpy(x), y, x.shape[1:]

        def fetch(self, rows, step, device):
            return self.x_[rows].to(device)

        def fingerprint(self):
            return "fixed"

    x, y = table(features=6)
    scaled = Plain(x / 10.0 ** np.arange(6, dtype=np.float32), y)
    data = {"train": scaled, "meta": stream(noise=False)["meta"], "test": stream(noise=False)["test"]}
    run = fastmeta.train(config(tmp_path / "run", model="mlp"), data=data)
    assert run.summary["test_accuracy_last"] > 0.6
    assert run.summary["baselines"]["union"]["test_accuracy_last"] > 0.6
