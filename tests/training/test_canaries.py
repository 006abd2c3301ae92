"""Canaries: what they say is true as often as it claims, they are nobody's rows, and runs with them go on bitwise."""

import json
import signal

import numpy as np
import pytest
import torch
from scipy.stats import binom

from fastmeta import InstanceLabels, load_run, train
from fastmeta.data import InputError, Splits, as_dataset, split
from fastmeta.training import Interrupted, LabelConfig, TrainConfig
from fastmeta.training.canaries import Canaries, Fate, Share
from fastmeta.training.kept_labels import KeptLabels
from fastmeta.training.listener import Listener
from tests.support.canaries import before, config, many_clean, streams
from tests.support.runs import Warnings
from tests.support.stopped import Kill, assert_same

# -- what they say -------------------------------------------------------------------------------------------

T = np.array([[0.9, 0.1, 0.0, 0.0], [0.0, 0.6, 0.4, 0.0], [0.2, 0.2, 0.5, 0.1], [0.0, 0.0, 0.05, 0.95]])
SHARES = np.array([0.4, 0.3, 0.2, 0.1])
PUT_RIGHT, SPOILED = np.array([0.9, 0.5, 0.7, 0.2]), np.array([0.02, 0.1, 0.05, 0.2])


def rows(rng, y):
    """Given labels under T, and what a method would make of them, class by class."""
    given = (T[y].cumsum(1) < rng.random(len(y))[:, None]).sum(1)
    return given, moved(rng, y, given)


def moved(rng, y, given):
    hit = rng.random(len(y)) < np.where(given != y, PUT_RIGHT[y], SPOILED[y])
    return np.where(given != y, np.where(hit, y, given), np.where(hit, (y + 1) % 4, y))


def truth(y, given, learned):
    return (learned == y)[given != y].mean(), (learned != y)[given == y].mean(), (learned == y).mean()


@pytest.mark.parametrize("origin", ["before", "drawn"])
@pytest.mark.parametrize("balanced", [True, False])
def test_intervals_hold_the_truth_as_often_as_they_say(origin, balanced):
    """Under noise that goes by the class; the clean set is balanced, or drawn as the training set is."""
    covered, after = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y = rng.choice(4, 3000, p=SHARES)
        given, learned = rows(rng, y)
        clean = np.arange(400) % 4 if balanced else rng.choice(4, 400, p=SHARES)
        arrays = {"x_train": rng.normal(size=(3000, 1)), "y_train": given, "x_meta": rng.normal(size=(400, 1))}
        arrays |= {"y_meta": clean} | ({"y_meta_given": rows(rng, clean)[0]} if origin == "before" else {})
        parts = split(as_dataset(arrays), seed=seed, canaries="auto")
        canaries = Canaries.known(parts, seed) or Canaries.drawn(parts.canaries.y, T, SHARES, seed)
        assert canaries.origin == origin
        fate = canaries.fate(moved(rng, canaries.right, canaries.given))
        put_right, spoiled, right = truth(y, given, learned)
        covered.append([s.low <= t <= s.high for s, t in ((fate.put_right, put_right), (fate.spoiled, spoiled))])
        after.append(fate.after - right)
    assert np.mean(covered, axis=0) == pytest.approx([0.97, 0.97], abs=0.04)
    # no bias: a mean of 100 with a deviation of some 0.08 each
    assert abs(np.mean(after)) < 0.02


def test_an_interval_is_that_of_clopper_and_pearson():
    right = np.zeros(40, int)
    canaries = Canaries(
        right, np.r_[np.ones(20, int), np.zeros(20, int)], np.ones(40), np.zeros(40, bool), 0.3, "drawn"
    )
    fate = canaries.fate(np.r_[np.zeros(12, int), np.ones(8, int), np.zeros(20, int)])
    assert fate.put_right.rate == 0.6
    assert binom.sf(11, 20, fate.put_right.low) == pytest.approx(0.025)
    assert binom.cdf(12, 20, fate.put_right.high) == pytest.approx(0.025)
    assert (fate.spoiled.rate, fate.spoiled.low) == (0, 0)
    assert fate.spoiled.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert (fate.before, fate.after) == (0.7, pytest.approx(0.7 + 0.3 * 0.6))


def test_wrong_labels_are_drawn_as_noise_falls():
    right = np.repeat(np.arange(4), 5000)
    canaries = Canaries.drawn(right, T, SHARES, 0)
    wrong = canaries.given != right
    assert 0.33 < wrong.mean() <= 0.5
    where = np.bincount(canaries.given[wrong & (right == 2)], minlength=4)
    assert where / where.sum() == pytest.approx([0.4, 0.4, 0, 0.2], abs=0.03)
    # weighted, their right classes are those of wrong rows in the training set, and of right ones
    for rows, target in ((wrong, SHARES * (1 - T.diagonal())), (~wrong, SHARES * T.diagonal())):
        found = np.bincount(right[rows], canaries.weight[rows])
        assert found / found.sum() == pytest.approx(target / target.sum(), abs=0.02)
    assert canaries.wrong_rate == pytest.approx((SHARES * (1 - T.diagonal())).sum())
    halves = canaries.chooses[wrong].mean(), canaries.chooses[~wrong].mean()
    assert halves == pytest.approx((0.5, 0.5), abs=1e-3)


@pytest.mark.parametrize(
    "transition", [np.eye(3), np.full((3, 3), np.nan), np.zeros((3, 3)), np.full((3, 3), 1 / 3)], ids=str
)
def test_noise_that_says_little_gives_canaries_all_the_same(transition):
    right = np.arange(60) % 3
    canaries = Canaries.drawn(right, transition, np.array([1.0, np.nan, 0.0]), 0)
    assert np.isfinite(canaries.weight).all()
    assert (canaries.given != right).any()
    assert Canaries.of_state(splits_of(right), json.loads(json.dumps(canaries.state()))).state() == canaries.state()


def splits_of(right):
    parts = split(as_dataset(many_clean()), canaries="60")
    object.__setattr__(parts.canaries, "y", right)
    assert isinstance(parts, Splits)
    return parts


# -- which labels are kept -----------------------------------------------------------------------------------


def kept(epochs=20):
    """20 rows and 16 canaries: eight with a wrong label; all of them choose."""
    right = np.zeros(16, int)
    given = np.r_[np.ones(8, int), np.zeros(8, int)]
    canaries = Canaries(right, given, np.ones(16), np.ones(16, bool), 0.5, "drawn")
    labels = InstanceLabels(torch.tensor([0] * 20 + given.tolist()), 2, 0.7)
    return labels, KeptLabels(labels, canaries, epochs)


def make(labels, canaries):
    """The learned classes of the canaries."""
    labels.label_logits[20:] = 3 * torch.nn.functional.one_hot(torch.tensor(canaries), 2)


def test_the_labels_of_the_best_epoch_are_kept():
    labels, keeper = kept()
    make(labels, [0, 0, 0, 0, 1, 1, 1, 1] + [0] * 8)
    assert keeper.look(1) == {"canaries_put_right": None, "canaries_spoiled": None}  # no one reports
    best = labels.label_logits.clone()
    make(labels, [0] * 5 + [1] * 3 + [1, 1] + [0] * 6)
    keeper.look(2)
    assert (keeper.epoch, keeper.stopped_at) == (1, None)
    again, other = kept()
    other.load(*keeper.save())
    for table, keeps in ((labels, keeper), (again, other)):
        keeps.put_back()
        assert torch.equal(table.label_logits, best)
        assert (keeps.result()["right_before"], keeps.result()["kept_epoch"]) == (0.5, 1)


def test_of_equally_good_labels_the_later_are_kept():
    labels, keeper = kept()
    labels.label_logits += 0.1
    keeper.look(1)
    assert keeper.epoch == 1


def test_labels_stop_when_right_ones_are_spoiled_for_a_while():
    labels, keeper = kept(epochs=20)  # a patience of 4
    best = labels.label_logits.clone()
    make(labels, [1] * 8 + [1] + [0] * 7)  # a single one may be chance
    for epoch in range(1, 7):
        keeper.look(epoch)
    assert keeper.stopped_at is None
    make(labels, [1] * 8 + [1, 1, 1] + [0] * 5)
    for epoch in range(7, 11):
        assert keeper.stopped_at is None
        keeper.look(epoch)
    assert (keeper.epoch, keeper.stopped_at) == (0, 10)
    assert torch.equal(labels.label_logits, best)


# -- runs ----------------------------------------------------------------------------------------------------

METHODS, UPDATES = ("instance_labels", "class_labels"), ("exact", "epoch")
KINDS = [*((method, update) for method in METHODS for update in UPDATES), ("instance_labels", "posterior")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: " ".join(kind))
def unbroken(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("canaries") / "run"
    return request.param, train(config(path, *request.param), data=many_clean(), listener=Warnings())


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_they_are_nobodys_rows(unbroken):
    _, run = unbroken
    s = run.summary
    assert (s["train_size"], s["meta_size"], s["canaries"]["count"]) == (150, 130, 80)
    assert s["canaries"]["origin"] == "drawn"
    with np.load(run.path / "labels.npz") as file:
        table = dict(file)
    assert table["index"].tolist() == list(range(150))
    assert {len(array) for array in table.values()} == {150}
    assert len(run.labels) == 150
    assert torch.equal(run.labels.targets, torch.from_numpy(many_clean()["y_train"]))
    assert s["labels_changed"] == (table["learned"] != table["given"]).sum()
    if s["reading"]["chosen"] == "table":  # tests of the others are in test_readings.py
        kept = run.labels.probs().numpy()
        assert np.allclose(kept[np.arange(150), table["learned"]], table["probability"])
    of_run = [line for line in lines(run.path) if line["run"] == s["method"]]
    assert all("canaries_put_right" in line for line in of_run[1:])
    assert [line["epoch"] for line in lines(run.path) if line["run"] == "pilot"] == [0, 1]
    assert TrainConfig.read(run.path / "config.toml").labels.canaries == "80"
    assert f"canaries  wrong labels put right {100 * s['canaries']['put_right']['rate']:.0f}% [" in repr(run)


@pytest.mark.parametrize(("stage", "step"), [("pilot", 5), ("method", 1), ("method", 20)])
def test_a_run_that_was_stopped_goes_on_bitwise(stage, step, tmp_path, unbroken):
    (method, update), run = unbroken
    path = tmp_path / "run"
    kill = Kill(signal.SIGTERM, method if stage == "method" else stage, step)
    with pytest.raises(Interrupted):
        train(config(path, method, update), data=many_clean(), listener=kill)
    train(resume=path, data=many_clean(), listener=Warnings())
    assert_same(path, run.path)


class Looking(Listener):
    def __init__(self):
        self.stages, self.notes = {}, []

    def stage(self, stage):
        (rows,) = stage.data.rows(stage.name)
        self.stages[stage.name] = (rows.start, rows.stop, stage.context.targets.tolist(), stage.total)

    def note(self, text):
        self.notes.append(text)

    def warning(self, text):
        pass


def test_who_trains_on_them(tmp_path):
    arrays, looking = many_clean(), Looking()
    run = train(config(tmp_path / "run", baselines="all"), data=arrays, listener=looking)
    given, clean = arrays["y_train"].tolist(), split(as_dataset(arrays), canaries="80")
    order = [*clean.canaries.y, *clean.meta.y]
    assert list(looking.stages) == ["pilot", "instance_labels", "noisy", "union", "clean"]
    first, last, targets, total = looking.stages["instance_labels"]
    assert (first, last, total) == (0, 230, 4 * (230 // 25))
    assert targets[:150] == given
    assert targets[150:] != clean.canaries.y.tolist()
    assert looking.stages["noisy"] == (0, 150, given, total)
    assert looking.stages["pilot"] == (0, 150, given, total // 4)
    assert looking.stages["union"] == (0, 360, [*given, *order], total)
    assert looking.stages["clean"] == (150, 360, order, total)
    assert looking.notes == [
        "canaries: 80 clean samples are trained on, some with wrong labels, drawn from the noise that a pilot of 1 "
        "epoch finds"
    ]
    assert run.summary["canaries"]["put_right"]["rows"] + run.summary["canaries"]["spoiled"]["rows"] == 40


def test_labels_from_before_they_were_checked_need_no_pilot(tmp_path):
    looking, data = Looking(), many_clean(y_meta_given=before())
    run = train(config(tmp_path / "run"), data=data, listener=looking)
    assert list(looking.stages) == ["instance_labels"]
    found = split(as_dataset(data), canaries="auto")
    assert looking.stages["instance_labels"][2][150:] == found.chosen.given.tolist()
    assert run.summary["canaries"]["origin"] == "before"
    assert run.summary["canaries"]["wrong_rate"] == pytest.approx((before() != np.arange(210) % 3).mean())


@pytest.mark.parametrize("update", ["exact", "epoch"])
def test_streams(update, tmp_path):
    def data():
        return streams()

    whole = train(config(tmp_path / "whole", update=update), data=data(), listener=Warnings())
    assert whole.summary["canaries"]["count"] == 80
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config(path, update=update), data=data(), listener=Kill(signal.SIGTERM, "instance_labels", 20))
    train(resume=path, data=data(), listener=Warnings())
    assert_same(path, whole.path)


@pytest.mark.parametrize("update", ["exact", "epoch", "posterior"])
def test_labels_that_have_stopped_go_on_bitwise(update, tmp_path, monkeypatch):
    real = KeptLabels._judge
    # astray from the second epoch on
    monkeypatch.setattr(KeptLabels, "_judge", lambda self, right, epoch: epoch == 2 if epoch else real(self, right, 0))
    made = {"update": update, "labels": {"read": "table"}}
    whole = train(config(tmp_path / "whole", **made), data=many_clean(), listener=Warnings())
    assert (whole.summary["canaries"]["stopped_at"], whole.summary["canaries"]["kept_epoch"]) == (2, 0)
    assert whole.summary["labels_changed"] == 0
    entropy = [line["label_entropy_all"] for line in lines(whole.path) if line["run"] == "instance_labels"]
    assert entropy[3] == entropy[4] == entropy[0] != entropy[2]
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config(path, **made), data=many_clean(), listener=Kill(signal.SIGTERM, "instance_labels", 30))
    train(resume=path, data=many_clean(), listener=Warnings())
    assert_same(path, whole.path)


@pytest.mark.parametrize("force", [False, True])
def test_labels_that_canaries_find_worse_are_withheld(force, tmp_path, monkeypatch):
    worse = Fate(Share(0.1, 0.0, 0.4, 10), Share(0.5, 0.3, 0.7, 30), 0.7, 0.4)
    monkeypatch.setattr(Canaries, "fate", lambda *_: worse)
    told = Warnings()
    run = train(config(tmp_path / "run", force=force, labels={"read": "table"}), data=many_clean(), listener=told)
    said = [text for text in told.texts if "canaries" in text]
    how = "all the same" if force else "as they were given, unless with --force"
    assert said == [
        "labels are worse than they were given, by the canaries: wrong labels put right 10% [0, 40], right ones "
        f"spoiled 50% [30, 70]; they are handed out {how}"
    ]
    assert run.summary["warnings"].count(said[0]) == 1
    with np.load(run.path / "labels.npz") as file:
        table = dict(file)
    forced = load_run(run.path, force=True)
    if force:
        assert "withheld" not in table
        assert (table["learned"] != table["given"]).any()
        assert len(run.labels) == 150
        assert run.summary["labels_withheld"] is False
        return
    assert run.labels is None
    asked = config(run.path, force=True, labels={"read": "table"})
    assert train(asked, auto_resume=True, data=many_clean(), listener=Warnings()).labels is not None
    assert np.array_equal(table["learned"], table["given"])
    assert np.array_equal(table["withheld"], forced.labels.probs().argmax(1))
    assert (table["withheld"] != table["given"]).any()
    assert (run.summary["labels_changed"], run.summary["labels_withheld"]) == (0, True)
    assert run.summary["label_accuracy_final"] == run.summary["label_accuracy_initial"]


def test_a_data_frame_has_withheld_labels_beside_those_that_are_handed_out(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    worse = Fate(Share(0.1, 0.0, 0.4, 10), Share(0.5, 0.3, 0.7, 30), 0.7, 0.4)
    monkeypatch.setattr(Canaries, "fate", lambda *_: worse)
    table = train(config(tmp_path / "run"), data=many_clean(), listener=Warnings()).labels_table()
    wanted = ["given", "learned", "true", "withheld", "probability", "given_probability", "label_quality", "entropy"]
    assert list(table) == wanted
    assert (table.learned == table.given).all()
    assert (table.withheld != table.given).any()


# -- where there are none ------------------------------------------------------------------------------------


def test_none_of_few_clean_rows_and_it_is_said(tmp_path):
    looking = Looking()
    run = train(config(tmp_path / "run"), data=many_clean(clean=30), listener=looking)
    assert looking.notes == ["canaries: none, 30 clean rows are too few to spare some, 200 are enough"]
    assert run.summary["canaries"] is None
    assert run.summary["labels_withheld"] is False
    assert "canaries" not in repr(run)
    assert list(looking.stages) == ["instance_labels"]
    assert TrainConfig.read(run.path / "config.toml").labels.canaries == "off"


def test_none_where_they_are_off_or_labels_are_fixed(tmp_path):
    for changes in ({"labels": {"canaries": "off"}}, {"method": "onehot", "labels": {"label_lr": None}}):
        looking = Looking()
        run = train(config(tmp_path / f"run{len(changes)}", **changes), data=many_clean(), listener=looking)
        assert (looking.notes, run.summary["canaries"], run.summary["meta_size"]) == ([], None, 210)


@pytest.mark.parametrize("value", ["some", "0", "-3", "1.5", True, ""])
def test_numbers_of_canaries_that_are_none(value):
    with pytest.raises(InputError, match=r"labels\.canaries must be"):
        LabelConfig(canaries=value)


def test_a_method_without_them_refuses_a_number():
    with pytest.raises(InputError, match=r"labels\.canaries=40 is about labels that are learned, and method=onehot"):
        TrainConfig(method="onehot", labels=LabelConfig(canaries=40))


def test_too_many_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"labels\.canaries must be from 20 to 105 .* got 106"):
        train(config(tmp_path / "run", labels={"canaries": 106}), data=many_clean())
