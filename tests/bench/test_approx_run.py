"""`fastmeta bench approx` at a tiny size: what is compared with what, and the file that it writes."""

import json
import math

import pytest
import torch

from fastmeta.bench import approx_run as approx
from fastmeta.bench.approx_distance import ShortTraining
from fastmeta.bench.step_problem import StepConfig
from fastmeta.cli.bench import main

STEP = StepConfig(model="mlp", batch=4, meta_batch=6, classes=3, samples=40, input_shape=(5,), lr=0.05)
SIZES = {"models": "mlp", "batch": 4, "meta-batch": 6, "classes": 3, "samples": 40, "input-shape": 5, "rounds": 2}
FLAGS = [f"--{name}={value}" for name, value in {**SIZES, "threads": 1}.items()]


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def training():
    return ShortTraining(STEP)


@pytest.fixture(scope="module")
def distances(training):
    start = [p.detach().clone() for p in training.model.parameters()]
    found = training.distances(["delayed", "every:3", "last:1", "last:3", "difference", "every:1"], [0, 2])
    moved = [not torch.equal(a, b) for a, b in zip(start, training.model.parameters(), strict=True)]
    assert training.step.steps == 2  # comparing takes no step of the training's own
    assert all(moved)
    return found


def test_what_is_exact_is_at_no_distance(distances):
    """All three layers of the network are the whole of it, and one step in one is every step."""
    for name in ("last:3", "every:1"):
        for d in distances[name]:
            assert (d.cosine, d.length) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))


def test_what_is_approximate_is_near(distances):
    assert [d.step for d in distances["delayed"]] == [0, 2]
    for name in ("delayed", "every:3", "last:1", "difference"):
        for d in distances[name]:
            assert 0.1 < d.cosine < 1 - 1e-9, name
    for d in distances["difference"]:
        assert d.cosine > 0.999
        assert d.length == pytest.approx(1, abs=1e-2)


def test_every_moves_one_batch_in_k(distances):
    """What it moves is a part of what the exact steps move, so cosine and length are the same share."""
    for d in distances["every:3"]:
        assert d.cosine == pytest.approx(d.length, rel=1e-4)
        assert d.length < 1


def test_the_short_training_has_wrong_labels_that_it_knows(training):
    classes = training.labels.targets.bincount(minlength=3)
    assert int(classes.sum()) == 40
    gap = training.x_meta[training.y_meta == 0].mean(0) - training.x_meta[training.y_meta == 1].mean(0)
    assert float(gap.norm()) > 2


def test_json_and_table(tmp_path, capsys):
    path = tmp_path / "approx.json"
    assert main(["approx", *FLAGS, "--moments", "0", "2", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    for word in ("x exact", "x plain", "step 2", "every:4", "label movement", "u = (z(theta + e g)"):
        assert word in text
    assert max(map(len, text.replace(str(tmp_path), "").splitlines())) <= 80
    document = json.loads(path.read_text())
    assert document["kind"] == "approx"
    assert document["environment"]["torch"] == torch.__version__
    (result,) = document["models"]
    rows = {r["approx"]: r for r in result["rows"]}
    assert list(rows) == ["exact", "delayed", "every:4", "last:1", "difference"]
    assert rows["exact"]["distances"] == []
    assert rows["exact"]["to_exact"] == 1
    # a plain step is 3 forwards less the first layer's input gradient; every:4 is one exact step and three of those
    assert rows["delayed"]["forwards"] < rows["exact"]["forwards"]
    assert rows["every:4"]["forwards"] < rows["exact"]["forwards"] / 2
    for row in list(rows.values())[1:]:
        assert [d["step"] for d in row["distances"]] == [0, 2]
        assert all(math.isfinite(d["cosine"]) for d in row["distances"])
        assert row["equation"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--approximations", "sometimes"], "approx must be None"),
        (["--moments", "-1"], "moments must be numbers of steps >= 0"),
        (["--samples", "8"], "samples must be at least 16"),
        (["--models", "nonsense"], "unknown model 'nonsense'"),
    ],
)
def test_mistakes_are_one_line(flags, message, capsys):
    assert main(["approx", *FLAGS, *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_batches_go_by_the_model():
    config = approx.ApproxConfig()
    assert [(s.batch, s.meta_batch) for s in map(config.of, config.models)] == [(32, 64), (128, 256)]


def test_help_reads(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["approx", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--models", "--approximations", "--moments", "--json"):
        assert flag in text
