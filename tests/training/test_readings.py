"""Labels read off the table, off the network, and off both; canaries choose, and what they choose is handed out."""

import dataclasses
import io
import itertools
import os
import signal

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import average_precision_score

from fastmeta import load_run, train
from fastmeta.data import InputError
from fastmeta.report.result_table import result_table
from fastmeta.training import Interrupted, LabelConfig, TrainConfig, readings
from fastmeta.training.canaries import Canaries, chance_alone
from tests.support.canaries import config as of_canaries
from tests.support.canaries import many_clean, streams
from tests.support.runs import Warnings
from tests.support.stopped import assert_same

WAYS = ["table", "network", "product"]


def config(path, read="auto", update="exact", **changes):
    return of_canaries(path, update=update, labels={"read": read, **changes.pop("labels", {})}, **changes)


def npz(run):
    with np.load(run.path / "labels.npz") as file:
        return dict(file)


def by_hand(run, arrays, network=None):
    """Distributions (150, 3) of each reading."""
    x = arrays["x_train"].astype(np.float32)
    x = torch.from_numpy((x - x.mean(0)) / x.std(0))
    with torch.no_grad():
        log_q = (network or run.model)(x).double().log_softmax(1)
    p = run.labels.probs().double()
    return {"table": p, "network": log_q.exp(), "product": (p.log() + log_q).softmax(1)}


@pytest.mark.parametrize(("update", "steps"), [("exact", 0), ("exact", 5), ("posterior", 5)])
@pytest.mark.parametrize("read", WAYS)
def test_labels_are_handed_out_as_they_are_read(read, update, steps, tmp_path):
    arrays, off = many_clean(), {"canaries": "off"}
    run = train(
        config(tmp_path / "run", read, update, labels=off, finetune_steps=steps), data=arrays, listener=Warnings()
    )
    ways, given = by_hand(run, arrays, run.finetuned), torch.from_numpy(arrays["y_train"])
    p = ways[read]
    learned = p.argmax(1)
    if (update, read) == ("posterior", "table"):  # whose margin goes with the table
        own = p.gather(1, given[:, None])[:, 0]
        learned = torch.where(p.amax(1) >= 2 * own, learned, given)
    table, s = npz(run), run.summary
    assert np.array_equal(table["learned"], learned)
    assert np.allclose(table["probability"], p.gather(1, learned[:, None])[:, 0], atol=1e-5)
    assert np.allclose(table["given_probability"], p.gather(1, given[:, None])[:, 0], atol=1e-5)
    assert np.allclose(table["entropy"], torch.special.entr(p).sum(1), atol=1e-4)
    quality = (ways["table"] * ways["network"]).gather(1, given[:, None])[:, 0].sqrt()
    assert np.allclose(table["label_quality"], quality, atol=1e-5)
    wrong = table["given"] != table["true"]
    assert s["wrong_label_average_precision"] == pytest.approx(average_precision_score(wrong, -table["label_quality"]))
    assert s["labels_changed"] == (table["learned"] != table["given"]).sum()
    assert s["label_accuracy_final"] == (table["learned"] == arrays["y_true"]).mean()
    if read == "table" and not steps:
        assert s["reading"] is None
        return
    assert (s["reading"]["chosen"], s["reading"]["by"]) == (read, "asked")
    assert s["reading"]["network"] == ("finetuned" if steps else "model")
    assert list(s["reading"]["readings"]) == WAYS
    assert s["reading"]["readings"][read]["label_accuracy"] == s["label_accuracy_final"]
    assert s["reading"]["readings"][read]["wrong_label_average_precision"] == pytest.approx(
        average_precision_score(wrong, -table["given_probability"]), abs=1e-3
    )
    name = "fine-tuned network" if steps and read == "network" else read
    assert f"labels are read off the {name}, as asked" in repr(run)


def test_readings_differ_and_the_run_is_the_same(tmp_path):
    """But for labels.npz and what is told of it."""
    runs = [train(config(tmp_path / way, way), data=many_clean(), listener=Warnings()) for way in WAYS]
    assert len({npz(run)["learned"].tobytes() for run in runs}) == 3
    for name in ("model.safetensors", "labels.safetensors"):
        assert len({(run.path / name).read_bytes() for run in runs}) == 1


@pytest.mark.parametrize("best", WAYS)
def test_canaries_choose_and_report_on_what_is_chosen(best, tmp_path, monkeypatch):
    """Their choice is played here, and looked at in the tests below."""
    real, seen = Canaries.choose, {}

    def choose(self, learned):
        seen.update(learned)
        return best, real(self, learned)[1]

    monkeypatch.setattr(Canaries, "choose", choose)
    arrays = many_clean()
    run = train(config(tmp_path / "run", force=True), data=arrays, listener=Warnings())
    told, canaries = run.summary["reading"], run.summary["canaries"]
    assert (told["chosen"], told["by"], told["network"]) == (best, "canaries", "model")
    assert [len(seen[way]) for way in told["readings"]] == [80, 80, 80]
    for key in ("put_right", "spoiled"):
        assert told["readings"][best][key] == canaries[key]
    for way, figures in told["readings"].items():
        assert 0 <= figures["right_by_choosing"] <= 1
        assert (figures["chance"] is None) == (way == "table")
    assert canaries["right_after"] == told["readings"][best]["right_by_canaries"]
    assert np.array_equal(npz(run)["learned"], by_hand(run, arrays)[best].argmax(1))
    shares = [f"{way} {100 * told['readings'][way]['right_by_canaries']:.1f}%" for way in WAYS]
    line = f"labels are read off the {best}, which canaries choose; right by those that report: {', '.join(shares)}"
    assert line in repr(run)
    assert "read      labels by table" in repr(run)
    out = io.StringIO()
    Console(file=out, width=200).print(result_table(run.summary))
    assert line in out.getvalue()
    assert load_run(run.path).summary["reading"] == told


@pytest.mark.parametrize("read", WAYS)
def test_labels_are_held_back_by_the_reading_that_is_handed_out(read, tmp_path, monkeypatch):
    """Each reading is made the only one that is bad."""
    real = readings.read

    def read_badly(stage, *arguments):
        found = real(stage, *arguments)
        learned = found.of[read]["learned"]
        learned.copy_((stage.context.targets + 1) % 3)
        return found

    monkeypatch.setattr("fastmeta.training.run.read", read_badly)
    run = train(config(tmp_path / "run", read), data=many_clean(), listener=Warnings())
    table = npz(run)
    assert run.summary["labels_withheld"]
    assert np.array_equal(table["withheld"], (table["given"] + 1) % 3)
    assert np.array_equal(table["learned"], table["given"])
    another = "product" if read == "network" else "network"
    other = train(config(tmp_path / "other", another), data=many_clean(), listener=Warnings())
    told = other.summary["reading"]["readings"][read]
    assert told["right_by_canaries"] == run.summary["canaries"]["right_after"] < run.summary["canaries"]["right_before"]


def test_without_canaries_and_unasked_nothing_is_read_off_the_network(tmp_path):
    run = train(config(tmp_path / "run", labels={"canaries": "off"}), data=many_clean(), listener=Warnings())
    assert run.summary["reading"] is None
    assert "read " not in repr(run)
    assert "label_quality" in npz(run)
    assert "read =" not in (run.path / "config.toml").read_text()


def test_a_network_that_could_not_be_fine_tuned_is_read_as_it_is(tmp_path):
    arrays = many_clean()
    made = config(tmp_path / "run", "network", finetune_steps=3, finetune_lr=1e38)
    run = train(made, data=arrays, listener=Warnings())
    assert run.finetuned is None
    assert run.summary["reading"]["network"] == "model"
    assert run.summary["finetuned"]["labels"] == {}
    table, forced = npz(run), load_run(run.path, force=True)
    assert np.array_equal(table.get("withheld", table["learned"]), by_hand(forced, arrays)["network"].argmax(1))


def test_rows_without_a_softmax_keep_what_was_given(tmp_path):
    found = readings._read(torch.full((2, 3), torch.nan).double(), torch.tensor([2, 1]))
    assert found["learned"].tolist() == [2, 1]
    assert found["given_probability"].tolist() == found["probability"].tolist() == [1, 1]
    assert found["entropy"].tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["arrays", "streams"])
def test_stopped_while_labels_are_read(kind, tmp_path, monkeypatch):
    data = many_clean if kind == "arrays" else streams
    whole = train(config(tmp_path / "whole", "product"), data=data(), listener=Warnings())
    real = readings._by_network

    def stopping(*arguments):
        for part in real(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            yield part

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(readings, "_by_network", stopping)
        with pytest.raises(Interrupted, match="in instance_labels while labels were read; saved in"):
            train(config(path, "product"), data=data(), listener=Warnings())
    train(resume=path, data=data(), listener=Warnings())
    assert_same(path, whole.path)


# -- the choice ----------------------------------------------------------------------------------------------


def canaries(weight=None):
    """20 with a wrong label and 20 with the right one, of which the first ten of each choose; half of all are wrong."""
    given = np.r_[np.ones(20, int), np.zeros(20, int)]
    chooses = np.tile(np.r_[np.ones(10, bool), np.zeros(10, bool)], 2)
    return Canaries(np.zeros(40, int), given, np.ones(40) if weight is None else weight, chooses, 0.5, "drawn")


def classes(right):
    """Of which those in `right` have their right class."""
    return np.where(np.isin(np.arange(40), right), 0, 1)


def test_a_reading_is_taken_where_it_is_better_by_more_than_chance():
    ours, table = canaries(), list(range(20, 40))

    def choose(**others):
        return ours.choose({"table": classes(table)} | {k: classes(v) for k, v in others.items()})

    # all of m canaries are won: 2^-m by chance, doubled because there are two others
    for count, best in ((5, "table"), (6, "network")):
        name, told = choose(network=[*table, *range(count)], product=table)
        assert name == best
        assert told["network"]["chance"] == 0.5**count
        assert told["network"]["right_by_choosing"] == pytest.approx(0.5 + 0.05 * count)
        assert (told["table"]["chance"], told["product"]["chance"]) == (None, 1.0)
    # those that report have no say
    assert choose(network=[*table, *range(10, 20)], product=table)[0] == "table"
    # nor has what is lost alike
    assert choose(network=[*table[6:], *range(6)], product=table)[0] == "table"
    # nor has what is worth too little: wrong labels are one of two hundred
    rare = dataclasses.replace(ours, wrong_rate=0.005)
    far = {"table": classes(table), "network": classes([*table, *range(9)])}
    assert rare.choose(far)[0] == "table"
    assert dataclasses.replace(ours, wrong_rate=0.006).choose(far)[0] == "network"
    # the better one of two
    assert choose(network=[*table, *range(6)], product=[*table, *range(8)])[0] == "product"
    assert choose(network=[*table, *range(8)], product=[*table, *range(8)])[0] == "network"
    assert choose(network=[], product=[])[0] == "table"


def test_chance_is_that_of_signs_drawn_at_random():
    rng = np.random.default_rng(0)
    for size in (1, 5, 9):
        d = rng.normal(0.3, 1.0, size)
        sums = [np.abs(d) @ signs for signs in itertools.product([-1, 1], repeat=size)]
        assert chance_alone(d) == pytest.approx(np.mean(np.array(sums) >= d.sum() - 1e-12))
    d = rng.normal(0.3, 1.0, 60)
    sums = rng.choice([-1.0, 1.0], (20000, 60)) @ np.abs(d)
    assert chance_alone(d) == pytest.approx((sums >= d.sum()).mean(), abs=0.01)
    assert chance_alone(np.zeros(7)) == 1


# -- the option ----------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_refused():
    with pytest.raises(InputError, match=r"labels\.read=network is about labels that are learned, and method=onehot"):
        TrainConfig(method="onehot", labels=LabelConfig(read="network"))
    with pytest.raises(InputError, match=r"labels\.read must be one of auto, table, network, product, got 'tables'"):
        LabelConfig(read="tables")


def test_the_file_and_the_command_line_have_it(tmp_path, capsys):
    from fastmeta.cli.train import main

    made = TrainConfig(labels=LabelConfig(read="product"))
    assert TrainConfig.from_mapping(made.to_mapping()) == made
    assert "read" not in TrainConfig().to_mapping()["labels"]
    path = tmp_path / "data.npz"
    np.savez(path, **many_clean())
    flags = [
        "--dataset",
        f"npz:{path}",
        "--model",
        "mlp",
        "--epochs",
        "2",
        "--threads",
        "1",
        "--labels.read",
        "network",
    ]
    assert main([*flags, "--dry-run"]) == 0
    assert "s to read labels off the network" in " ".join(capsys.readouterr().out.split())
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert "labels are read off the network, as asked" in " ".join(capsys.readouterr().out.split())
    assert main([*flags[:-2], "--out", str(tmp_path / "run"), "--auto-resume"]) == 2
    assert "labels.read was 'network', is None now" in " ".join(capsys.readouterr().err.split())
