"""One tree of dataclasses: the same in Python, TOML and flags, and each wrong value is named."""

import pytest
import torch

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
        ({"epoch": 3}, "unknown key 'epoch'; did you mean epochs?"),
        ({"optim": {"learning_rate": 3}}, "unknown key 'optim.learning_rate'; known are lr, momentum"),
        ({"optim": 3}, r"optim must be a table \[optim\], got 3"),
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"optim": {"lr": "fast"}}, "optim.lr must be a number, got 'fast'"),
        ({"optim": {"milestones": 0.5}}, "optim.milestones must be a list, got 0.5"),
        ({"optim": {"schedule": "cosin"}}, "optim.schedule must be one of cosine, .* did you mean cosine?"),
        ({"optim": {"milestones": [2]}}, r"optim.milestones must be in \[0, 1\], got 2"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"optim": {"lr": float("nan")}}, "optim.lr must be above 0 and finite, got nan"),
        ({"optim": {"momentum": 1.0}}, r"optim.momentum must be in \[0, 1\), got 1.0"),
        ({"labels": {"lookahead": "adam"}}, "labels.lookahead must be sgd, optimizer or a learning rate"),
        ({"labels": {"target_prob": 1.0}}, "strictly between 0 and 1 for instance_labels"),
        ({"data": {"meta_fraction": 0.0}}, "data.meta_fraction must lie strictly"),
        ({"method": "onehott"}, "method must be one of .* did you mean onehot?"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": "cuda:²"}, "device must be auto, cpu, cuda or cuda:N"),
        ({"threads": 1_000_000}, r"threads must be in \[1, 1024\]"),
        ({"model": ""}, "model is empty; leave it out"),
        ({"optim": {"weight_decay": float("inf")}}, "optim.weight_decay must be at least 0 and finite, got inf"),
        ({"dataset": "cifar"}, "dataset must be digits or npz:PATH"),
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
        (lambda: LabelConfig(label_lr="high"), "labels.label_lr must be a number, got 'high'"),
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


def test_label_lr_adapts_to_rate_and_batch(digit_splits):
    def label_lr(method, lr, batch_size):
        config = TrainConfig(method=method, optim=OptimConfig(lr=lr), data=DataConfig(batch_size=batch_size))
        return resolve(config, digit_splits).labels.label_lr

    for method in ("instance_labels", "class_labels"):
        assert label_lr(method, 0.1, 64) == pytest.approx(2 * label_lr(method, 0.2, 64))
        assert label_lr(method, 0.1, 64) == pytest.approx(0.5 * label_lr(method, 0.1, 128))
    assert label_lr("onehot", 0.1, 64) is None


def test_only_the_digits_are_corrupted_unasked():
    assert preset_noise(TrainConfig()) == "uniform:0.4"
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
