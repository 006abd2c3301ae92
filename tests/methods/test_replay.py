"""replay: soft targets of a trajectory, as they moved or as they were at the end."""

import shutil
import signal

import numpy as np
import pytest
import torch

from fastmeta.data import EpochSampler, InputError
from fastmeta.training import DataConfig, Interrupted, OptimConfig, TrainConfig, load_run, train
from tests.support.methods import Net64, assert_same_weights, naive, stage_of, taken
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config
from tests.support.trajectories import plan

CUT = [("instance", 7), ("instance", 5), ("class", 5)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Run directories by the kind of their labels."""
    folder = tmp_path_factory.mktemp("recorded")
    for kind in ("instance", "class"):
        train(plan(folder / kind, f"{kind}_labels"), data=two_classes())
    train(plan(folder / "third", "instance_labels", epochs=6, trajectory_every=3), data=two_classes())
    return folder


def targets(path, step, steps, per_epoch, play, index, y):
    """Of a step that is taken, by the files alone."""
    read = lambda epoch: np.load(path / "trajectory" / f"epoch-{epoch:05d}.npy").astype(np.float64)  # noqa: E731
    if path.name == "class":
        rows = np.concatenate([read(epoch) for epoch in (1, 2, 3)])
        p = torch.from_numpy(rows[-1 if play == "static" else step * len(rows) // steps])[y[index]]
        return torch.stack([torch.where(y[index] == k, p, 1 - p) for k in (0, 1)], 1)
    epoch = steps // per_epoch if play == "static" else step // per_epoch + 1  # as many epochs as were recorded
    if path.name == "third":
        before, after = 3 * (epoch * 2 // 3), min(6, 3 * (epoch * 2 // 3) + 3)
        share = (2 * epoch - before) / 3
        return torch.from_numpy(read(before) + share * (read(after) - read(before)))[index]
    return torch.from_numpy(read(epoch))[index]


@pytest.mark.parametrize("play", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["instance", "class", "third"])
def test_steps_are_naive_ones(name, play, recorded, tmp_path):
    torch.manual_seed(0)
    model, T = Net64(), 2.5
    options = {"trajectory": str(recorded / name), "play": play, "temperature": T}
    changes = {"micro_batch": 6, "epochs": 2} if name == "class" else {}
    stage = stage_of(tmp_path / "run", "replay", model, options, **changes)
    seen = []
    for _ in range(stage.total):
        seen += taken(stage, 1)
        if stage.ends_epoch:
            stage.end_epoch()
    batches, y, number = seen, stage.context.targets, iter(range(stage.total))

    def loss(z, index):
        p = targets(recorded / name, next(number), stage.total, stage.steps_per_epoch, play, index, y) ** (1 / T)
        return -((p / p.sum(1, keepdim=True)) * z.log_softmax(1)).sum(1).mean()

    wanted = naive(model, batches, loss, stage.config.optim)
    assert_same_weights(stage.model, wanted, atol=1e-6 if name == "third" else 1e-12)  # a mean of two is float32


def test_all_rows_are_trained_on_where_the_data_bring_no_clean_set(recorded, tmp_path):
    data = two_classes(x_meta=None, y_meta=None)
    learned = train(plan(tmp_path / "learned", "instance_labels"), data=data).path
    changes = {"model": "mlp", "method": "replay", "options": {"trajectory": str(learned)}, "baselines": None}
    with pytest.raises(
        InputError, match=r"labels of 64 rows, and not of 16 of the 80 that are trained on, the first row"
    ):
        train(config(tmp_path / "run", **changes), data=data)
    run = train(config(tmp_path / "run", **changes, data=DataConfig(meta_fraction=0.2)), data=data)
    assert (run.summary["train_size"], run.summary["meta_size"]) == (64, 16)
    run = train(config(tmp_path / "all", **{**changes, "options": {"trajectory": str(recorded / "class")}}), data=data)
    assert (run.summary["train_size"], run.summary["meta_size"], run.summary["baselines"]) == (80, 0, {})
    assert load_run(run.path).summary == run.summary
    again = TrainConfig.read(run.path / "config.toml")
    assert (again.data.meta_fraction, again.data.meta_batch_size) == (0.0, None)


@pytest.mark.parametrize(
    ("name", "step"), [("class", 7), *(pytest.param(n, k, marks=pytest.mark.slow) for n, k in CUT)]
)
def test_a_run_resumes_bitwise_from_a_copy_of_what_it_began_with(name, step, recorded, tmp_path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    shutil.copytree(recorded / name, first)
    made = lambda path, source: config(  # noqa: E731
        path, method="replay", options={"trajectory": str(source)}, model="mlp", baselines="none", mixup=0.5
    )
    whole = train(made(tmp_path / "whole", first), data=two_classes())
    with pytest.raises(Interrupted):
        train(made(tmp_path / "run", first), data=two_classes(), listener=Kill(signal.SIGTERM, "replay", step))
    first.rename(moved)
    with pytest.raises(InputError, match=r"names method\.trajectory .*first, which is not here"):
        train(resume=tmp_path / "run", data=two_classes())
    other = made(tmp_path / "run", recorded / "third")
    with pytest.raises(InputError, match=r"third/trajectory/sums\.json is not the one that the run began with"):
        train(other, data=two_classes(), auto_resume=True)
    run = train(made(tmp_path / "run", moved), data=two_classes(), auto_resume=True)
    assert files(run.path) == files(whole.path)


def test_what_cannot_be_replayed_is_refused(recorded, tmp_path):
    def refused(message, data=None, **options):
        made = config(tmp_path / "run", method="replay", options=options, model="mlp", baselines="none")
        with pytest.raises(InputError, match=message):
            train(made, data=two_classes() if data is None else data)
        assert not (tmp_path / "run").exists()

    refused(r"method=replay needs method\.trajectory")
    refused("nowhere has no trajectory of labels", trajectory=str(tmp_path / "nowhere"))
    instance = {"trajectory": str(recorded / "instance")}
    names = ["bright", "dark"]
    refused(
        "classes in another order: class 0 is 'dark' there and 'bright' here",
        two_classes(class_names=names),
        **instance,
    )
    refused("is of other classes: 2 there and 3 here", two_classes(class_names=["dark", "bright", "dim"]), **instance)
    refused("is of other data", two_classes(seed=1), **instance)
    for options, message in (
        ({"trajectory": "a", "temperature": 0}, r"method\.temperature must be above 0"),
        ({"trajectory": "a", "play": "backwards"}, r"method\.play must be one of dynamic, static"),
    ):
        with pytest.raises(InputError, match=message):
            TrainConfig(method="replay", options=options)
    unfinished = tmp_path / "unfinished"
    with pytest.raises(Interrupted):
        train(
            plan(unfinished, "instance_labels"),
            data=two_classes(),
            listener=Kill(signal.SIGTERM, "instance_labels", 7),
        )
    refused("ends behind epoch 1 of 3; finish its run first", trajectory=str(unfinished))


def test_other_given_labels_are_refused(tmp_path):
    noisy = {"noise": "uniform_exact:0.2"}
    learned = train(plan(tmp_path / "learned", "instance_labels", **noisy), data=two_classes()).path
    made = {"method": "replay", "options": {"trajectory": str(learned)}, "model": "mlp", "baselines": "none"}
    with pytest.raises(InputError, match=r"belongs to other given labels: \d+ of 80 differ"):
        train(config(tmp_path / "run", **made, **noisy, seed=1), data=two_classes())
    train(config(tmp_path / "run", **made, **noisy), data=two_classes())


@pytest.mark.parametrize("options", [{"meta_fraction": 0}, {"meta_count": 0}])
def test_onehot_can_train_on_all_rows(options, tmp_path):
    data = two_classes(x_meta=None, y_meta=None)
    changes = {"model": "mlp", "baselines": "none", "epochs": 1, "optim": OptimConfig(lr=0.05)}
    held = DataConfig(**options)
    run = train(config(tmp_path / "run", method="onehot", data=held, **changes), data=data)
    assert (run.summary["train_size"], run.summary["meta_size"], run.summary["warnings"]) == (80, 0, [])
    digits = config(tmp_path / "digits", method="onehot", dataset="digits", data=held, **{**changes, "model": None})
    seen = 30 if "meta_fraction" in options else 0  # a share is of data without a clean set
    assert train(digits).summary["meta_size"] == seen
    for other, message in (
        ({"method": "instance_labels"}, "method=instance_labels needs clean rows, and data.meta_"),
        ({"method": "onehot", "finetune_steps": 5}, "finetune_steps=5 needs clean rows"),
        ({"method": "onehot", "baselines": "noisy,union"}, "baselines=union needs clean rows"),
    ):
        with pytest.raises(InputError, match=message):
            train(config(tmp_path / "refused", data=held, **{**changes, **other}), data=data)


def test_a_method_of_ones_own_that_asks_for_clean_rows_is_told_so():
    with pytest.raises(InputError, match="the method asks for clean rows, and none are held out"):
        EpochSampler(0, 4, seed=0, stream="meta-order", device=torch.device("cpu"))(0)
