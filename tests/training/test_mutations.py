"""Files of a run with bytes and values that nobody has foreseen: an InputError in one line, or the right run."""

import contextlib
import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch

from fastmeta import models, train
from fastmeta.data import InputError
from fastmeta.training import Interrupted, load_run
from fastmeta.training.rundir import checkpoint
from fastmeta.training.rundir.summary import summary_digest
from tests.support.runs import Warnings, two_classes
from tests.support.stopped import Kill, config

FILES = ("summary.json", "model.safetensors", "labels.safetensors", "labels.npz", "config.toml")
NUMBERS = (0, -1, 1, 2, 10**9, 5_000_000, 2**63, 10**400, 0.5, -0.5, 1e308)
TEXTS = ("", "x", "\x1b[2J", "\ud800", "a" * 10**5)
NESTED = ([], [[]], [None] * 3, [0, 0, 0], [2**40] * 3, {}, {"given": 0}, [{"given": 9, "learned": 0, "count": 1}])
PROBABLY_BAD = (None, True, False, *NUMBERS, *TEXTS, *NESTED)


@pytest.fixture
def finished(unbroken, tmp_path):
    path = tmp_path / "finished"
    shutil.copytree(unbroken, path)
    return path


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        train(config(path), data=two_classes(), listener=Kill(signal.SIGTERM, "union", 5))
    return path


@pytest.fixture
def stopped(stopped_once, tmp_path, monkeypatch):
    """Stopped in its second stage; what goes on from it takes no step."""
    monkeypatch.setattr("fastmeta.training.run.Session.run", lambda self: self)
    path = tmp_path / "stopped"
    shutil.copytree(stopped_once, path)
    return path


def mutated(content, rng):
    """Bytes flipped, cut, doubled, put in, swapped, or all replaced."""
    how, at = rng.randrange(8), rng.randrange(len(content))
    if how < 3:
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if how == 3:
        return content[:at]
    if how == 4:
        return content[:at] + rng.randbytes(rng.choice([1, 8, 100])) + content[at + rng.choice([0, 1, 8]) :]
    if how == 5:
        return content[at:] + content[:at]
    if how == 6:  # the sizes that a header begins with
        return rng.choice([b"\xff" * 8, b"\0" * 8, (2**40).to_bytes(8, "little")]) + content[8:]
    return rng.choice([b"", b"\0" * 64, b"[" * 10**5, b'{"a":' * 10**5, b"NaN", b"\xff\xfe", content * 2, b"1" * 5000])


def refused(read, *given, **options):
    """None where `read` gives something, else what it said."""
    try:
        read(*given, **options)
    except InputError as error:
        said = str(error)
    else:
        return None
    assert "\n" not in said
    assert len(said) < 1000
    return said


def timeless(summary):
    text = json.dumps(summary | {"seconds": 0})
    return json.loads(text, object_hook=lambda d: {k: v for k, v in d.items() if k != "seconds"})


@pytest.mark.parametrize("name", FILES)
def test_any_bytes_of_a_finished_run(name, finished):
    rng = random.Random(name)
    true = load_run(finished)
    whole = (finished / name).read_bytes()
    said = 0
    for _ in range(25):
        (finished / name).write_bytes(mutated(whole, rng))
        if refused(load_run, finished):
            said += 1
            continue
        run = load_run(finished)
        assert timeless(run.summary) == timeless(true.summary)
        assert torch.equal(run.labels.label_logits, true.labels.label_logits)
        assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), true.model.parameters(), strict=True))
    assert said > (10 if name == "config.toml" else 15)


def test_any_value_of_a_summary_that_is_signed(finished):
    """Every field, and fields of fields, lost or replaced by another value, and the digest put right."""
    true = json.loads((finished / "summary.json").read_text())
    fields = [(true, key) for key in true] + [(true["baselines"]["union"], key) for key in true["baselines"]["union"]]
    fields += [(true["baselines"], "union"), (true["files"], "labels.npz")]
    passed = []
    # every eighth value for a field, others for the next
    for number, (place, key) in enumerate(fields):
        for value in (..., *PROBABLY_BAD[number % 8 :: 8]):
            before = place.pop(key)
            if value is not ...:
                place[key] = value
            with contextlib.suppress(AttributeError, KeyError):  # refused before it is asked for
                true["digest"] = value if key == "digest" else summary_digest(true)
            (finished / "summary.json").write_text(json.dumps(true, default=str))
            if refused(load_run, finished) is None and value != before:
                passed.append((key, value))
            place.pop(key, None)
            place[key] = before
    taken = {key for key, _ in passed}
    assert not taken & {"schema", "num_classes", "input_shape", "class_names", "train_size", "model", "method", "seed"}
    assert "nll" in taken  # which may be any number


def test_a_summary_that_claims_much_takes_no_memory(finished, monkeypatch):
    """The weights' shapes are looked at before a network of the claimed size is made."""
    true = json.loads((finished / "summary.json").read_text())
    made = []
    build = models.build

    def watched(*given, **options):
        made.append(build(*given, **options))
        return made[-1]

    monkeypatch.setattr(models, "build", watched)
    for changes, message in (
        ({"num_classes": 5_000_000}, r"num_classes must be a whole number from 2 to 65536, got 5000000"),
        ({"num_classes": 60_000}, r"class_names has 2 names for num_classes 60000"),
        ({"num_classes": 60_000, "class_names": ["a"] * 60_000}, r"model.safetensors does not fit the ConvNet"),
        ({"input_shape": [2**20, 4, 4]}, r"model.safetensors does not fit the ConvNet"),
        ({"train_size": 10**12}, r"its tables are not those of 1,000,000,000,000 labels of 2 classes"),
    ):
        claimed = true | changes
        claimed["digest"] = summary_digest(claimed)
        (finished / "summary.json").write_text(json.dumps(claimed))
        with pytest.raises(InputError, match=message):
            load_run(finished)
    real = [model for model in made if not any(p.is_meta for p in model.parameters())]
    assert (len(made), len(real)) == (4, 1)  # of the claim that is about labels alone


def test_strict_json(finished):
    text = (finished / "summary.json").read_text()
    for content, message in (
        (text.replace('"seed": 0', '"seed": 0, "seed": 0'), "a name stands twice"),
        (text.replace('"nll": ', '"nll": NaN, "x": '), "NaN is no number"),
        (text.replace('"nll": ', '"nll": 1e999, "x": '), "1e999 is too large"),
        (text.replace('"noise": "', '"noise": "\\udcff'), "differ"),
        ("[" * 10**6, "too deep"),
        ('{"a":' * 10**6, "too deep"),
    ):
        (finished / "summary.json").write_text(content)
        with pytest.raises(InputError, match=message):
            load_run(finished)
    with open(finished / "summary.json", "wb") as file:
        file.truncate(2**40)  # of nothing: it takes no place on the disk
    with pytest.raises(InputError, match="it has 1,099,511,627,776 bytes, expected at most 33,554,432"):
        load_run(finished)


@pytest.mark.parametrize("name", ["model.safetensors", "labels.safetensors", "checkpoint/state.safetensors"])
def test_weights_larger_than_memory(name, finished, stopped):
    """A sparse file takes no place on the disk, and a terabyte of memory if it were believed."""
    for path, read in ((finished, load_run), (stopped, lambda p: train(resume=p, data=two_classes()))):
        header = json.dumps({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}).encode()
        with open(path / name, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 2**40)
        if path == finished and name.startswith("checkpoint"):
            continue  # a finished run needs it no more
        with pytest.raises(InputError, match=r"bytes of memory are free|has changed since"):
            read(path)


@pytest.mark.parametrize("name", ["checkpoint/state.safetensors", "metrics.jsonl", "config.toml", *FILES[1:4]])
def test_any_bytes_of_a_stopped_run(name, stopped):
    rng = random.Random(name)
    whole = (stopped / name).read_bytes()
    metrics = (stopped / "metrics.jsonl").read_bytes()
    for _ in range(12):
        content = mutated(whole, rng)
        (stopped / name).write_bytes(content)
        if refused(train, resume=stopped, data=two_classes(), listener=Warnings()) is None:
            # what goes on has all that it had
            assert name == "config.toml" or content.startswith(whole)
            assert (stopped / "metrics.jsonl").read_bytes() == metrics
        (stopped / "metrics.jsonl").write_bytes(metrics)
    (stopped / name).write_bytes(whole)
    assert refused(train, resume=stopped, data=two_classes(), listener=Warnings()) is None


def test_a_checkpoint_that_somebody_made_by_hand(stopped):
    """Its digest is right, its values are not."""
    file = stopped / "checkpoint" / "state.safetensors"
    tensors, values = checkpoint.unpack(file)
    tensors = {k: v.clone() for k, v in tensors.items()}
    for key in values:
        for value in (..., {"a": {"b": []}}):
            changed = {k: v for k, v in values.items() if k != key} | ({} if value is ... else {key: value})
            file.write_bytes(checkpoint.pack(tensors, changed))
            message = refused(train, resume=stopped, data=two_classes(), listener=Warnings())
            assert message, (key, value)
    for key in values["stage"].keys() - {"trajectory"}:  # which runs of before have not
        changed = {**values, "stage": {k: v for k, v in values["stage"].items() if k != key}}
        file.write_bytes(checkpoint.pack(tensors, changed))
        assert refused(train, resume=stopped, data=two_classes(), listener=Warnings()), key
    parts = values["stage"]["parts"]
    for key in parts:
        for value in (..., [], "text"):
            changed = {k: v for k, v in parts.items() if k != key} | ({} if value is ... else {key: value})
            file.write_bytes(checkpoint.pack(tensors, {**values, "stage": {**values["stage"], "parts": changed}}))
            assert refused(train, resume=stopped, data=two_classes(), listener=Warnings()), (key, value)
    for key in ("parts/model/state.linear.weight", "parts/model/state.features.1.running_mean", "totals", "rng/cpu"):
        assert key in tensors
        for other in ({}, {key: torch.zeros(7, 5)}):
            file.write_bytes(checkpoint.pack({k: v for k, v in tensors.items() if k != key} | other, values))
            assert refused(train, resume=stopped, data=two_classes(), listener=Warnings()), (key, other)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "loop"])
@pytest.mark.parametrize(
    "name", ["config.toml", "summary.json", "metrics.jsonl", "checkpoint/state.safetensors", *FILES[1:4]]
)
def test_no_regular_file(kind, name, finished, stopped):
    """Nothing waits for the other end of a FIFO, or reads a device to its end."""
    for path, read in ((finished, load_run), (stopped, lambda p: train(resume=p, data=two_classes()))):
        file = path / name
        file.unlink(missing_ok=True)
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to("/dev/zero" if kind == "device" else file)
        message = refused(read, path)
        if path == finished:
            needless = name in ("metrics.jsonl", "checkpoint/state.safetensors")
            assert (message is None) == (needless or (name == "labels.npz" and kind == "none"))
        else:
            assert message is not None or name == "summary.json"


def test_no_pickle(finished, tmp_path):
    """Neither in arrays nor as weights."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    np.savez(finished / "labels.npz", given=np.array([Evil()], object))
    torch.save({"a": Evil()}, finished / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load_run(finished)
    assert not (tmp_path / "evil").exists()
