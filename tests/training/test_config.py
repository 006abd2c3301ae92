"""One tree of dataclasses: the same in Python, TOML and flags, and each wrong value is named."""

import codecs
import dataclasses
import enum
import os
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

import fastmeta
from fastmeta.data import InputError, load_dataset, split
from fastmeta.training import DataConfig, LabelConfig, OptimConfig, TrainConfig
from fastmeta.training.presets import preset_noise, preset_threads, resolve
from fastmeta.training.schedule import lr_at, lr_share


def test_toml_round_trip(tmp_path):
    config = TrainConfig(
        dataset="npz:a b.npz",
        noise="uniform:0.25",
        epochs=3,
        optim=OptimConfig(lr=0.5, milestones=(0.25, 0.5)),
        compile="trace",
        approx="every:4",
        micro_batch=5,
        labels=LabelConfig(label_lr=1 / 3),
        data=DataConfig(augment="crop"),
    )
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert TrainConfig.read(path) == config


def test_numbers_may_be_whole_in_toml():
    assert TrainConfig.from_mapping({"optim": {"lr": 1, "milestones": [0, 1]}}).optim.lr == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], r"a config is a table of values, got \[1\]"),
        ({1: 3}, "unknown key '1'; known are"),
        ({"epoch": 3}, "unknown key 'epoch'; did you mean epochs?"),
        ({"optim": {"learning_rate": 3}}, "unknown key 'optim.learning_rate'; known are name, lr, momentum"),
        ({"optim": 3}, r"optim must be a table \[optim\], got 3"),
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"optim": {"lr": "fast"}}, "optim.lr must be a number, got 'fast'"),
        ({"optim": {"milestones": 0.5}}, "optim.milestones must be a list, got 0.5"),
        ({"optim": {"schedule": "cosin"}}, "optim.schedule must be one of cosine, .* did you mean cosine?"),
        ({"optim": {"milestones": [2]}}, r"optim.milestones must be in \[0, 1\], got 2"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"optim": {"lr": float("nan")}}, "optim.lr must be above 0 and finite, got nan"),
        ({"optim": {"lr": 1e300}}, "optim.lr must be above 0 and at most 3.4e38, as float32 is, got 1e.300"),
        ({"optim": {"weight_decay": 1e300}}, "optim.weight_decay must be .* at most 3.4e38"),
        ({"labels": {"label_lr": 1e300}}, "labels.label_lr must be .* at most 3.4e38"),
        ({"labels": {"lookahead": 1e300}}, "labels.lookahead must be sgd, optimizer or a learning rate"),
        ({"optim": {"momentum": 1.0}}, r"optim.momentum must be in \[0, 1\), got 1.0"),
        ({"labels": {"lookahead": "adam"}}, "labels.lookahead must be sgd, optimizer or a learning rate"),
        ({"labels": {"target_prob": 1.0}}, "strictly between 0 and 1 for instance_labels"),
        ({"data": {"meta_fraction": 1.0}}, r"data.meta_fraction must be in \[0, 1\), got 1"),
        ({"method": "onehott"}, "method must be one of .* did you mean onehot?"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": "cuda:²"}, "device must be auto, cpu, cuda or cuda:N"),
        ({"threads": 1_000_000}, r"threads must be in \[1, 1024\]"),
        ({"model": ""}, "model is empty; leave it out"),
        ({"optim": {"weight_decay": float("inf")}}, "optim.weight_decay must be at least 0 and finite, got inf"),
        ({"dataset": "cifar"}, "dataset must be digits, npz:PATH, .*torchvision:NAME, .* or package"),
        ({"compile": "on"}, "compile must be one of off, trace, full, got 'on'"),
        ({"micro_batch": 0}, "micro_batch must be at least 1, got 0"),
        ({"precision": "fp16"}, "precision must be one of fp32, tf32, bf16, got 'fp16'"),
        ({"approx": "every"}, "approx must be none, delayed, every:K, last:L or difference .* got 'every'"),
        ({"method": "onehot", "compile": "full"}, "compile=full is about steps that learn labels, and method=onehot"),
        ({"method": "onehot", "approx": "last:1"}, "approx=last:1 is about steps that learn labels"),
        ({"baselines": "noisy,dirty"}, "baselines must be all, none, or some of noisy,union,clean"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(InputError, match=message) as caught:
        TrainConfig.from_mapping(values, source="here")
    assert str(caught.value).count("here: ") == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(epochs="3"), "epochs must be a whole number, got '3'"),
        (lambda: TrainConfig(epochs=1.5), "epochs must be a whole number, got 1.5"),
        (lambda: TrainConfig(dataset=None), "dataset must be a text in quotes, got None"),
        (lambda: TrainConfig(optim={"lr": 1.0}), "optim must be of type OptimConfig, got {'lr': 1.0}"),
        (lambda: OptimConfig(milestones=0.5), "optim.milestones must be a list, got 0.5"),
        (lambda: LabelConfig(label_lr="high"), "labels.label_lr must be a number or search, got 'high'"),
        (lambda: DataConfig(augment="mixup"), "data.augment must be one of none, crop, crop_flip, got 'mixup'"),
    ],
)
def test_wrong_types_in_python_are_named_too(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_types_that_are_as_good(tmp_path):
    optim = OptimConfig(lr=1, milestones=[0.5])
    assert TrainConfig(out=tmp_path, optim=optim) == TrainConfig(out=str(tmp_path), optim=optim)
    assert (repr(optim.lr), optim.milestones) == ("1.0", (0.5,))


def test_files_that_are_missing_or_no_toml(tmp_path):
    with pytest.raises(InputError, match="cannot read the config file"):
        TrainConfig.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("epochs = ")
    with pytest.raises(InputError, match="is not valid TOML"):
        TrainConfig.read(tmp_path / "bad.toml")


@pytest.fixture(scope="module")
def digit_splits():
    return split(load_dataset("digits"), noise="uniform:0.4")


def test_resolution_leaves_nothing_open_and_repeats_to_itself(digit_splits):
    resolved = resolve(TrainConfig(), digit_splits)
    assert set(TrainConfig().to_mapping()) < set(resolved.to_mapping())
    assert resolve(resolved, digit_splits) == resolved
    assert TrainConfig.from_mapping(resolved.to_mapping()) == resolved
    assert resolved.baseline_names() == ("noisy", "union", "clean")


def test_label_lr_of_the_digits_adapts_to_rate_and_batch(digit_splits):
    def of_labels(method, lr, batch_size, **labels):
        config = TrainConfig(
            method=method,
            optim=OptimConfig(lr=lr),
            data=DataConfig(batch_size=batch_size),
            labels=LabelConfig(**labels),
        )
        return resolve(config, digit_splits).labels

    label_lr = lambda *args: of_labels("instance_labels", *args).label_lr  # noqa: E731
    assert label_lr(0.1, 64) == pytest.approx(2 * label_lr(0.2, 64))
    assert label_lr(0.1, 64) == pytest.approx(0.5 * label_lr(0.1, 128))
    assert of_labels("instance_labels", 0.1, 64).warmup_epochs == 0
    assert of_labels("onehot", 0.1, 64).label_lr is None
    smoothing = of_labels("class_labels", 0.1, 64)
    usual = fastmeta.ClassLabels(torch.tensor([0]), 2).default_label_lr(0.1, 64, 30)
    assert (smoothing.label_lr, smoothing.label_step, smoothing.warmup_epochs) == (usual, None, 0)
    # labels that are told how far to go have no rate, and wait
    for method in ("class_labels", "instance_labels"):
        labels = of_labels(method, 0.1, 64, label_step=0.2)
        assert (labels.label_lr, labels.label_step, labels.warmup_epochs) == (None, 0.2, 3)
        assert labels.rate_name == "labels.label_step"
        assert of_labels(method, 0.1, 64, label_step=0.2, warmup_epochs=0).warmup_epochs == 0


def test_only_the_digits_are_corrupted_unasked():
    assert preset_noise(TrainConfig()) == "uniform:0.8"
    assert preset_noise(TrainConfig(dataset="npz:x.npz")) == "none"
    assert preset_noise(TrainConfig(noise="none")) == "none"
    assert (preset_threads(TrainConfig()), preset_threads(TrainConfig(dataset="npz:x.npz"))) == (1, None)


def test_padding_must_fit_the_image(digit_splits):
    with pytest.raises(InputError, match=r"data\.padding must be smaller than the image, got 8 for 8×8"):
        resolve(TrainConfig(data=DataConfig(augment="crop", padding=8)), digit_splits)


def test_schedules_are_those_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(()))
    total = 20
    for optim, scheduler in (
        (OptimConfig(lr=0.3), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total)),
        (
            OptimConfig(lr=0.3, schedule="step", gamma=0.2),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 15], gamma=0.2),
        ),
        (OptimConfig(lr=0.3, schedule="constant"), lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ):
        optimizer = torch.optim.SGD([parameter], lr=0.3)
        reference = scheduler(optimizer)
        for step in range(total):
            assert lr_at(optim, step, total) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            reference.step()


def test_share_of_the_summed_rate():
    for schedule in ("cosine", "step", "constant"):
        optim = OptimConfig(lr=0.3, schedule=schedule)
        assert lr_share(optim, 0, 100) == 0
        assert lr_share(optim, 100, 100) == pytest.approx(1)
        rates = [lr_at(optim, i, 2560) for i in range(2560)]
        assert lr_share(optim, 768, 2560) == pytest.approx(sum(rates[:768]) / sum(rates), abs=3e-3)


INTEGERS = [getattr(np, f"{u}int{bits}") for u in ("", "u") for bits in (8, 16, 32, 64)]
WHOLE = [kind(3) for kind in INTEGERS] + [np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)]
HALF = [np.float16(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5), np.array(0.5), torch.tensor(0.5)]
HALF += [torch.tensor(0.5, dtype=torch.bfloat16), torch.nn.Parameter(torch.tensor(0.5)), Fraction(1, 2), Decimal("0.5")]
FIELDS = [
    (part, f, get_type_hints(part)[f.name])
    for part in (TrainConfig, OptimConfig, LabelConfig, DataConfig)
    for f in dataclasses.fields(part)
]


#: what a value is about, where it is refused without
BESIDE = {"watch_every": {"approx": "last:1"}}


def of_type(kind):
    optional = {kind, type(None)}
    return [(part, field.name) for part, field, hint in FIELDS if hint == kind or optional <= {*get_args(hint)}]


@pytest.mark.parametrize(("part", "name"), of_type(int), ids=lambda x: getattr(x, "__name__", x))
def test_every_count_takes_the_integers_of_numpy_and_torch(part, name):
    for value in WHOLE:
        beside = BESIDE.get(name, {})
        made = part(**{name: value}, **beside)
        assert made == part(**{name: 3}, **beside)
        assert type(getattr(made, name)) is int
    for wrong in (
        True,
        np.bool_(True),
        torch.tensor(True),
        "3",
        3.0,
        np.float64(3),
        [3],
        np.array([3]),
        2**63,
        10**5000,
    ):
        with pytest.raises(InputError, match=rf"{name} must be .*, got ") as caught:
            part(**{name: wrong})
        assert len(str(caught.value)) < 200


# 0.5 is below the least margin
RATES = [(part, name) for part, name in of_type(float) if name != "margin"]


@pytest.mark.parametrize(("part", "name"), RATES, ids=lambda x: getattr(x, "__name__", x))
def test_every_rate_takes_the_numbers_of_numpy_and_torch(part, name):
    for value in HALF:
        made = part(**{name: value})
        assert made == part(**{name: 0.5})
        assert type(getattr(made, name)) is float
    for wrong in (True, np.bool_(True), torch.tensor(True), "0.5", 0.5j, [0.5], np.array([0.5]), float("nan")):
        with pytest.raises(InputError, match=rf"{name} must .*, got "):
            part(**{name: wrong})
    if name != "checkpoint_seconds":  # which may be never
        with pytest.raises(InputError, match=rf"{name} must .*, got inf"):
            part(**{name: 10**400})


def test_truth_values_texts_and_rows_of_others():
    for value in (np.bool_(True), np.array(True), torch.tensor(True)):
        assert OptimConfig(nesterov=value).nesterov is True
    for wrong in (1, "true", np.int64(1), torch.tensor(1), None):
        with pytest.raises(InputError, match=r"optim\.nesterov must be true or false, got"):
            OptimConfig(nesterov=wrong)
    for row in ([0.25, 0.5], np.array([0.25, 0.5], np.float32), torch.tensor([0.25, 0.5]), (np.float16(0.25), 0.5)):
        milestones = OptimConfig(milestones=row).milestones
        assert milestones == (0.25, 0.5)
        assert set(map(type, milestones)) == {float}
    for wrong in ("0.5", {0.5}, np.array(0.5), np.array([[0.5]]), {"a": 1}, None, [True], np.array([True]), [[0.5]]):
        with pytest.raises(InputError, match=r"optim\.milestones must"):
            OptimConfig(milestones=wrong)

    class Word(str, enum.Enum):  # noqa: UP042 # its str() is not its text
        STEP = "step"

    for word in (np.str_("step"), Word.STEP):
        assert type(OptimConfig(schedule=word).schedule) is str
        assert OptimConfig(schedule=word) == OptimConfig(schedule="step")
    for wrong in (b"step", 3, ["step"], np.array(["step", "cosine"]), torch.zeros(2), None):
        with pytest.raises(InputError, match=r"optim\.schedule must be one of"):
            OptimConfig(schedule=wrong)
    config = TrainConfig(out=Path("x"), dataset=np.str_("npz:a.npz"), model=np.str_("mlp"))
    assert {type(v) for v in (config.out, config.dataset, config.model)} == {str}
    assert LabelConfig(lookahead=0.5) == LabelConfig(lookahead=np.float32(0.5)) == LabelConfig(lookahead="0.5")
    with pytest.raises(InputError, match=r"labels\.lookahead must be"):
        LabelConfig(lookahead=True)


def test_numbers_of_others_survive_the_file(tmp_path):
    config = TrainConfig(
        epochs=np.int32(3),
        seed=torch.tensor(7),
        optim=OptimConfig(lr=np.float32(0.1), milestones=np.array([0.25], np.float32), nesterov=np.bool_(True)),
        labels=LabelConfig(label_lr=torch.tensor(0.1), lookahead=np.float64(0.1)),
        data=DataConfig(batch_size=np.uint8(32), augment=np.str_("crop")),
    )
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert TrainConfig.read(path) == config


@pytest.mark.parametrize("name", ["dataset", "model", "device", "out", "noise", "approx"])
def test_texts_that_no_file_could_keep(name):
    for text in ("npz:\0", "npz:" + "x" * 10**6):
        with pytest.raises(InputError, match=f"{name} must ") as caught:
            TrainConfig(**{name: text})
        assert len(str(caught.value)) < 300
    if name == "out":
        assert TrainConfig(out="\udcff").out == "\udcff"  # no file tells its name
    else:
        with pytest.raises(InputError, match=rf"{name} is no valid UTF-8, .* got 'npz:\\udcff'$"):
            TrainConfig(**{name: "npz:\udcff"})


TEXT = 'epochs = 7\nnoise = "none"\n[optim]\nlr = 0.5\n# é\n'


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.encode() + b"\x1a",
        codecs.BOM_UTF8 + TEXT.replace("\n", "\r\n").encode() + b"\x1a",
        TEXT.rstrip().encode(),
        TEXT.replace(" = ", "\t=\t").encode(),
        b"\n\n" + TEXT.encode() + b"\n" * 20,
    ],
)
def test_what_editors_leave_in_a_file_is_no_mistake(content, tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    assert TrainConfig.read(path) == TrainConfig(epochs=7, noise="none", optim=OptimConfig(lr=0.5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "is UTF-16 or UTF-32 text; save it as UTF-8"),
        (TEXT.encode("utf-16-le"), "is UTF-16 or UTF-32 text"),
        (TEXT.encode("utf-16-be"), "is UTF-16 or UTF-32 text"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "is UTF-16 or UTF-32 text"),
        (TEXT.encode("utf-32"), "is UTF-16 or UTF-32 text"),
        (TEXT.encode("latin-1"), r"is not valid TOML: byte 0xe9 in line 5 is no UTF-8; save it as UTF-8"),
        (b"epochs = 3\0\n", "is not valid TOML"),
        (b"[" * 50_000, "is not valid TOML"),
        (b"a = " + b"[" * 50_000, "values lie too deep"),
        (b"a = " + b"{a=" * 10_000, "values lie too deep"),
        (b"a." * 30_000 + b"a = 1", "a key has more than 64 parts"),
        (b"[" + b"'a' . " * 10_000 + b"a]", "a key has more than 64 parts"),
        (b"a" * 60_000 + b" = 1", "unknown key 'aaaa"),
        (b"x" * 70_000, "is no config file: it is larger than 65,536 bytes"),
        (b"epochs = " + b"9" * 10_000, "is not valid TOML: Exceeds the limit"),
        (b"epochs = 0x" + b"f" * 10_000, r"epochs must be a whole number below 2\^63, got an int of 40000 bits"),
        (b"epochs = 9223372036854775808", r"epochs must be a whole number below 2\^63, got 9223372036854775808"),
        (b"[optim]\nlr = 0x" + b"f" * 10_000, "optim.lr must be above 0 and finite, got inf"),
        (b"[optim]\nlr = 1e999", "optim.lr must be above 0 and finite, got inf"),
        (b"[optim]\nlr = nan", "optim.lr must be above 0 and finite, got nan"),
        (b"epochs = 2020-01-01", r"epochs must be a whole number, got datetime.date\(2020, 1, 1\)"),
        (b"epochs = 2020-02-31", "is not valid TOML"),
        (b"epochs = 1\nepochs = 2", "is not valid TOML"),
        (b"[optim]\n[optim]", "is not valid TOML"),
        (b"[[optim]]\nlr = 1", r"optim must be a table \[optim\], got \[{'lr': 1}\]"),
        (b"[optim.lr]\na = 1", "optim.lr must be a number, got {'a': 1}"),
        (b"epochs = [[[[1]]]]", "epochs must be a whole number, got"),
        (b'model = "\\ud800"', "is not valid TOML"),
        (b'model = "\\u0000"', r"model must not hold a NUL, got '\\x00'"),
        (b"'' = 1", "unknown key ''"),
    ],
    ids=lambda x: repr(x)[:30].replace("\\x00", "0") if isinstance(x, bytes) else "",
)
def test_files_of_any_bytes_are_one_line(content, message, tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    began = time.perf_counter()
    with pytest.raises(InputError, match=message) as caught:
        TrainConfig.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert time.perf_counter() - began < 5


def test_config_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path, message in (
        (tmp_path, "it is a folder"),
        (tmp_path / "fifo", "it is no file but a pipe or a device"),
        (Path("/dev/zero"), "it is no file but a pipe or a device"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "\ud800", "surrogates not allowed"),
        (tmp_path / "a\0b", "null byte"),
        (tmp_path / "none", "No such file"),
        (Path("~nobody-of-this-name/x"), "home"),
    ):
        with pytest.raises(InputError, match=f"cannot read the config file .*{message}") as caught:
            TrainConfig.read(path)
        assert "\n" not in str(caught.value)


def test_a_config_from_a_pipe_of_the_shell(tmp_path):
    """As in `--config <(sed … config.toml)`."""
    read, write = os.pipe()
    os.write(write, b"epochs = 9")
    os.close(write)
    try:
        assert TrainConfig.read(f"/dev/fd/{read}").epochs == 9
    finally:
        os.close(read)


def test_the_digits_take_exact_steps_unless_others_are_asked_for(digit_splits):
    def update(**options):
        return resolve(TrainConfig(labels=LabelConfig(**options)), digit_splits).labels.update

    assert update() == update(target_prob=0.6) == update(label_step=0.1) == update(warmup_epochs=2) == "exact"
    assert update(update="posterior") == update(mix=0.5) == "posterior"
