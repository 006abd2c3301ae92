"""Files of a limited size: the same run, whole at any moment, refused where a part is not what it was."""

import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from fastmeta import load_run, train
from fastmeta.data import InputError
from fastmeta.training import Interrupted, TrainConfig, TrainingError
from fastmeta.training.rundir import checkpoint, run_labels
from fastmeta.training.rundir.shards import is_shard
from tests.support.disk import Disk
from tests.support.runs import two_classes
from tests.support.stopped import Kill, assert_same
from tests.support.stopped import config as stopped_config

LIMIT = 0.1


def config(path, **changes):
    return stopped_config(
        path, **{"max_shard_mb": LIMIT, "epochs": 2, "model": "small_conv", "baselines": "none", **changes}
    )


@pytest.fixture(autouse=True)
def plain_figures(monkeypatch):
    monkeypatch.setattr("fastmeta.report.write_figures", lambda *_: None)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmeta.report.write_figures", lambda *_: None)
        return train(config(tmp_path_factory.mktemp("runs") / "unbroken"), data=two_classes()).path


def stopped(path, step=7, **changes):
    with pytest.raises(Interrupted):
        train(config(path, **changes), data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", step))
    return path


def shards(index):
    return sorted(p for p in index.parent.iterdir() if is_shard(index, p.name))


def tensors():
    g = torch.Generator().manual_seed(0)
    made = {
        "rows": torch.randn(1000, 70, generator=g),
        "wide": torch.randn(2, 60_000, generator=g),  # whose rows are larger than a file
        "zeros": torch.zeros(200_000, dtype=torch.uint8),  # whose pieces are alike
        "truth": torch.tensor(True),
        "none": torch.zeros(0, 5),
        "double": torch.randn(3, 3, generator=g, dtype=torch.float64),
        "half": torch.randn(100_000, generator=g).bfloat16(),
        "turned": torch.randn(40, 50, generator=g).t(),
        "größe": torch.arange(30_000),
    }
    return made | {"copy": made["rows"].clone()}


@pytest.mark.parametrize("limit", [0.1, 0.5])
def test_what_is_divided_comes_back_bit_by_bit(limit, tmp_path):
    path, values = tmp_path / "state.safetensors", {"step": 3, "name": "größe"}
    for content in (tensors(), {k: v + v for k, v in tensors().items()}, tensors()):  # over what was there
        checkpoint.write(path, content, values, limit)
        there = list(tmp_path.iterdir())
        assert {path, *shards(path)} == set(there)
        assert len(there) > 2
        assert max(p.stat().st_size for p in there) <= limit * 10**6
        found, told = checkpoint.unpack(path)
        assert told == values
        assert found.keys() == content.keys()
        for name, t in content.items():
            assert (found[name].dtype, found[name].shape) == (t.dtype, t.shape)
            assert torch.equal(found[name], t), name
        assert checkpoint.header(path) == ({k: tuple(t.shape) for k, t in content.items()}, values)
    stored = sum(p.stat().st_size for p in there)
    assert stored < sum(t.nbytes for t in content.values())  # the copy is written once
    written = {p.name: p.read_bytes() for p in there}
    checkpoint.write(path, tensors(), values, limit)
    assert written == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    checkpoint.write(path, tensors(), values)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == checkpoint.pack(tensors(), values)


def test_a_run_is_the_same_in_small_files(unbroken, tmp_path):
    """Stopped, moved elsewhere and gone on with, beside one that was not divided."""
    path = stopped(tmp_path / "run")
    for file in path.rglob("*.safetensors"):
        assert file.stat().st_size <= LIMIT * 10**6
    assert len(shards(path / "checkpoint" / "state.safetensors")) > 2
    moved = path.rename(tmp_path / "moved")
    run = train(resume=moved, data=two_classes())
    assert_same(moved, unbroken)
    assert len(shards(moved / "model.safetensors")) > 1
    assert shards(moved / "checkpoint" / "state.safetensors") == []  # with its stage it is small again
    whole = train(config(tmp_path / "whole", max_shard_mb=None), data=two_classes())
    assert shards(whole.path / "model.safetensors") == []
    assert whole.summary["labels_changed"] == run.summary["labels_changed"]
    again = load_run(moved)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert torch.equal(whole.labels.probs(), again.labels.probs())
    assert run_labels(moved).row.tolist() == run_labels(whole.path).row.tolist()
    name = str(moved)
    student = config(tmp_path / "student", method="distill", options={"teacher": name}, model="mlp")
    assert train(student, data=two_classes()).summary["method"] == "distill"


@pytest.mark.slow
def test_how_large_files_are_may_change_on_the_way(unbroken, tmp_path):
    path = stopped(tmp_path / "run", max_shard_mb=None)
    state = path / "checkpoint" / "state.safetensors"
    assert shards(state) == []
    listener = Kill(signal.SIGTERM, "instance_labels", 8)
    with pytest.raises(Interrupted):
        train(config(path), data=two_classes(), auto_resume=True, listener=listener)
    assert shards(state)
    train(config(path, max_shard_mb=None), data=two_classes(), auto_resume=True)
    assert shards(state) == shards(path / "model.safetensors") == []
    assert torch.equal(load_run(path).labels.probs(), load_run(unbroken).labels.probs())


def killed(at, path):
    child = os.fork()
    if not child:
        try:
            with pytest.MonkeyPatch.context() as patch:
                Disk(patch, path, at)
                train(config(path), data=two_classes(), auto_resume=True)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def die_and_go_on(times, path, unbroken):
    for at in times:
        assert killed(at, path)
        if (path / "config.toml").exists():
            checkpoint.load(path / "checkpoint" / "state.safetensors")
    train(config(path), data=two_classes(), auto_resume=True)
    assert_same(path, unbroken)
    names = {p.relative_to(unbroken) for p in unbroken.rglob("*") if p.is_file()}
    assert {p.relative_to(path) for p in path.rglob("*") if p.is_file()} == names


def test_a_process_that_dies_among_its_files(unbroken, tmp_path):
    die_and_go_on((30, 120), tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(7))
def test_a_process_that_dies_among_its_files_anywhere(first, unbroken, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, tmp_path / "count")
        train(config(tmp_path / "count"), data=two_classes())
    for at in range(1 + first, disk.count + 1, 7):
        die_and_go_on((at,), tmp_path / str(at), unbroken)


def test_a_disk_that_is_full_leaves_the_old_state_and_no_files_of_the_new(tmp_path):
    path = stopped(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (path / "checkpoint").iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, path, at=12, error=28)
        with pytest.raises(TrainingError, match="No space left on device; mend that and go on with"):
            train(resume=path, data=two_classes())
    assert before == {p.name: p.read_bytes() for p in (path / "checkpoint").iterdir()}


def bit(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "bit": (bit, "its part {} has changed since it was written"),
    "cut": (lambda file: os.truncate(file, 99), "its part {} has changed since it was written"),
    "gone": (os.unlink, "its part {}: No such file or directory"),
    "folder": (lambda file: (file.unlink(), file.mkdir()), "its part {}: "),
    "another": (lambda file: shutil.copy(shards(file.parent / "state.safetensors")[0], file), "{} has changed"),
}


QUICK = ("bit", "gone", "another")


@pytest.mark.parametrize("how", [h if h in QUICK else pytest.param(h, marks=pytest.mark.slow) for h in DAMAGE])
def test_a_part_that_is_not_what_it_was_is_refused(how, tmp_path):
    path = stopped(tmp_path / "run")
    file = shards(path / "checkpoint" / "state.safetensors")[1]
    damage, message = DAMAGE[how]
    damage(file)
    with pytest.raises(InputError, match=message.format(file.name)) as said:
        train(resume=path, data=two_classes())
    assert "\n" not in str(said.value)
    assert "begin the run anew" in str(said.value)


def test_a_part_of_a_result_that_is_not_what_it_was_is_refused(unbroken, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(unbroken, path)
    file = shards(path / "model.safetensors")[0]
    content = file.read_bytes()
    bit(file)
    with pytest.raises(InputError, match=rf"model.safetensors cannot be read \(its part {file.name} has changed"):
        load_run(path)
    file.write_bytes(content)
    (path / "summary.json").unlink()
    shutil.copy(file, kept := tmp_path / "kept")
    file.unlink()
    with pytest.raises(InputError, match=f"its part {file.name}: No such file") as said:
        train(resume=path, data=two_classes())
    assert "\n" not in str(said.value)
    shutil.copy(kept, file)
    assert train(resume=path, data=two_classes()).summary == load_run(unbroken).summary


@pytest.mark.parametrize(
    "index",
    [
        {"files": [["../../etc/passwd", 3]], "split": {}, "same": {}},
        {"files": [["0" * 32]], "split": {}, "same": {}},
        {"files": [["0" * 32, 10**15]], "split": {}, "same": {}},
        {"files": [], "split": {"a": [-1]}, "same": {}},
        {"files": [], "split": {}, "same": {"a": "b"}},
        {"files": {}, "split": {}, "same": {}},
        {},
        None,
    ],
)
def test_an_index_of_anybodys_is_read_as_data(index, tmp_path):
    from json import dumps

    from safetensors.torch import save

    path = tmp_path / "state.safetensors"
    path.write_bytes(save({}, {"fastmeta": dumps({"digest": "0", "values": {}, "shards": index})}))
    with pytest.raises(ValueError, match=r"index|files|part|memory"):
        checkpoint.unpack(path)


def test_limits_that_cannot_be(tmp_path):
    for wrong in (0, 0.01, -1, float("inf"), float("nan"), "15"):
        with pytest.raises(InputError, match="max_shard_mb must"):
            TrainConfig(max_shard_mb=wrong)
    assert "max_shard_mb" not in TrainConfig().to_mapping()
    made = replace(config(tmp_path / "run"), model="mlp")
    with pytest.MonkeyPatch.context() as patch:  # as of a state of hundreds of MB
        patch.setattr(checkpoint, "MB", 2**17)
        with pytest.raises(InputError, match=r"max_shard_mb=0.1 makes [\d,]+ files, and the index .* take .* or more"):
            train(made, data=two_classes())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("least", "steps"), [(0.0, [0, 1, 2, 3, 4, 5]), (30.0, [0, 5])])
def test_a_long_epoch_is_saved_on_its_way(least, steps, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmeta.training.run.LEAST_WITHIN", least)
    saved, save = [], checkpoint.save

    def watched(path, tensors, values, limit):
        saved.append(values["stage"])
        save(path, tensors, values, limit)

    monkeypatch.setattr(checkpoint, "save", watched)
    train(config(tmp_path / "run", epochs=1, max_shard_mb=None), data=two_classes())
    assert [stage["step"] for stage in saved if stage] == steps
