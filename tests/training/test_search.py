"""labels.label_lr=search: trials within a budget are judged by canaries, and the run is made with the winner."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

from fastmeta import LabelLearner, load_run, train
from fastmeta.cli import main
from fastmeta.data import InputError
from fastmeta.report import write_report
from fastmeta.report.run_folder import entries, groups
from fastmeta.training import DataConfig, Interrupted, LabelConfig, OptimConfig, TrainConfig
from fastmeta.training import run as run_module
from fastmeta.training.canaries import Canaries
from fastmeta.training.label_moves import plain_steps_of
from fastmeta.training.prepare import prepare
from fastmeta.training.rundir import checkpoint
from fastmeta.training.search import Candidate, Search, in_words
from fastmeta.training.stage import Diverged, Stage
from tests.support.canaries import before, many_clean
from tests.support.runs import Warnings
from tests.support.stopped import Kill, assert_same

METHOD = "instance_labels"


def config(path=None, update=None, budget=2.0, **changes):
    search = {"update": update, "label_lr": "search", "search_budget": budget}
    labels = LabelConfig(**search | changes.pop("labels", {}))
    return TrainConfig(
        **{"epochs": 4, "model": "mlp", "baselines": "none", **changes},
        threads=1,
        out=None if path is None else str(path),
        labels=labels,
        optim=OptimConfig(lr=0.1),
        data=DataConfig(batch_size=25, meta_batch_size=30),
    )


def one_start(path, **changes):
    """Two trials of three epochs; the budget is too small for a third one."""
    return config(path, budget=0.9, labels={"target_prob": 0.6}, epochs=6, **changes)


def arrays(rate=0.4, clean=400):
    """50 canaries choose."""
    return many_clean(rate=rate, clean=clean, y_meta_given=before(rate=rate, clean=clean))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "run"
    return train(one_start(path), data=arrays(), listener=Warnings())


def plan_of(config, **data):
    return prepare(config, data=many_clean(**data)).search


# -- what is tried ---------------------------------------------------------------------------------------------


def test_the_default_is_among_the_trials_and_labels_that_stay_come_first():
    search = plan_of(config(budget=4))
    assert [c.name for c in search.candidates] == ["none", *(f"trial-{k}" for k in range(1, 7))]
    settings = [dict(c.settings) for c in search.trials]
    pairs = [(0.3, 0.47), (0.3, 0.9), (0.9, 0.47), (0.9, 0.9), (0.1, 0.47), (0.1, 0.9)]
    assert settings == [{"label_step": step, "target_prob": start} for step, start in pairs]
    usual = search.usual
    assert search["trial-2"].config == usual
    assert (usual.labels.label_lr, usual.labels.label_step, usual.labels.search_budget) == (None, 0.3, None)
    stays = search["none"].config
    assert (stays.labels.update, stays.labels.target_prob, stays.epochs) == ("none", 0.9, 4)
    assert search["none"].trial is None


@pytest.mark.parametrize(
    ("changes", "keys", "count"),
    [
        ({"update": "epoch"}, ("eta", "steps", "target_prob"), 8),
        ({"update": "epoch", "labels": {"steps": 2}}, ("eta", "steps", "target_prob"), 4),
        ({"labels": {"target_prob": 0.8}}, ("label_step", "target_prob"), 3),
        ({"labels": {"label_momentum": 0.5}}, ("label_lr", "target_prob"), 6),
        ({"labels": {"parametrisation": "simplex"}}, ("label_lr", "target_prob"), 6),
        ({"method": "class_labels"}, ("label_step", "target_prob"), 6),
    ],
    ids=str,
)
def test_trials_are_of_the_update_that_is_asked_for(changes, keys, count):
    search = plan_of(config(budget=100, **changes))
    assert len(search.trials) == count
    assert {key for c in search.trials for key in c.settings} == set(keys)
    assert any(c.config == search.usual for c in search.trials)
    own = changes.get("labels", {})
    assert all(c.settings[key] == own[key] for c in search.trials for key in own if key in c.settings)


@pytest.mark.parametrize("epochs", [1, 40])
@pytest.mark.parametrize("update", ["exact", "epoch"])
@pytest.mark.parametrize("budget", [0.7, 4.0, 50.0])
def test_the_budget_is_kept(update, epochs, budget):
    if (update, epochs) == ("epoch", 1):
        return  # which leaves no epoch behind which labels could move
    asked = config(update=update, epochs=epochs, budget=budget)
    if budget < 1.0 and epochs < 3:
        with pytest.raises(InputError, match=f"labels.search_budget={budget:g} pays no trial"):
            prepare(asked, data=many_clean())
        return
    prepared = prepare(asked, data=many_clean())
    search, pool = prepared.search, prepared.data
    whole = plain_steps_of(search.usual, pool)
    assert search.cost == pytest.approx(sum(plain_steps_of(c.trial, pool) for c in search.trials) / whole)
    assert search.cost <= budget
    lengths = {c.trial.epochs for c in search.trials}
    assert len(lengths) == 1
    assert min(2, epochs, -(-epochs // 2)) <= lengths.pop() <= epochs
    if budget == 50:
        assert {c.trial.epochs for c in search.trials} == {epochs}
        assert all(c.trial == replace(c.config, epochs=epochs) for c in search.trials)


def test_a_trial_is_the_run_in_short_and_its_labels_go_as_far():
    search = plan_of(config(epochs=40, budget=3.2, labels={"warmup_epochs": 8}))
    trial = search["trial-2"]
    share = trial.trial.epochs / 40
    assert 0.5 <= share < 1
    warmup = trial.trial.labels.warmup_epochs
    assert warmup == round(8 * share)
    assert trial.trial.labels.label_step == pytest.approx(0.3 * 32 / (trial.trial.epochs - warmup))


# -- how they are judged ----------------------------------------------------------------------------------------


def judged(*right, reporting=None):
    """A search whose trials have put so many of 20 wrong canaries right that choose; what it finds.

    `reporting` makes the labels (40,) of those that report, by default as given.
    """
    truth, chooses = np.zeros(80, np.int64), np.arange(80) % 2 == 0
    given = np.r_[np.ones(40, np.int64), np.zeros(40, np.int64)]
    canaries = Canaries(truth, given, np.ones(80), chooses, 0.5, "drawn")
    asked = config(budget=4)
    names = [f"trial-{k}" for k in range(1, len(right) + 1)]
    found = Search(asked, asked, (Candidate("none", {}, asked), *(Candidate(n, {}, asked, asked, 0.5) for n in names)))
    for name, count in zip(names, right, strict=True):
        learned = given.copy()
        learned[: 2 * (count or 0) : 2] = 0
        if reporting is not None:
            learned[~chooses] = reporting()
        failed = "it diverged" if count is None else None
        result = {"settings": {}, "learned": None if failed else learned.tolist(), "failed": failed, "seconds": 1.0}
        found.results[name] = result
    return found.choose(canaries)


@pytest.mark.parametrize(
    ("right", "chosen"),
    [
        ((0, 0), "none"),
        ((5, 5), "none"),  # 1/32 is above 0.05/2
        ((6, 5), "trial-1"),  # 1/64 is not
        ((6, 6, 6, 6, 6, 6), "none"),  # chance is split among all
        ((7, 7, 13, 12, 14, 20), "trial-5"),
        ((7, 13), "trial-2"),
        ((7, 12), "trial-1"),  # what it is better by may be chance
        ((20, 7), "trial-1"),
        ((None, 20), "trial-2"),
        ((None, None), "none"),
    ],
)
def test_a_candidate_replaces_an_earlier_one_where_it_is_better_by_more_than_chance(right, chosen):
    told = judged(*right)
    assert told["chosen"] == chosen
    rows = {row["name"]: row for row in told["candidates"]}
    assert rows["none"]["right_by_choosing"] == 0.5
    assert [rows[f"trial-{k}"]["failed"] for k, count in enumerate(right, 1)] == [
        None if count is not None else "it diverged" for count in right
    ]
    assert ("labels stay" in in_words(told)) == (chosen == "none")


def test_the_canaries_that_report_have_no_say():
    rng, right = np.random.default_rng(0), (7, 7, 13, 12, 14, 20)
    assert all(judged(*right, reporting=lambda: rng.integers(0, 2, 40)) == judged(*right) for _ in range(20))


# -- a run ------------------------------------------------------------------------------------------------------


def test_the_run_is_made_with_the_winner_and_is_the_same_without_a_search(unbroken, tmp_path):
    told = unbroken.summary["search"]
    assert told["cost"] <= told["budget"] == 0.9
    assert [row["name"] for row in told["candidates"]] == ["none", "trial-1", "trial-2"]
    chosen = next(row for row in told["candidates"] if row["name"] == told["chosen"])
    assert told["chosen"] == "trial-2"  # canaries that learn, or this test says little
    labels = unbroken.config.labels
    assert {key: getattr(labels, key) for key in chosen["settings"]} == chosen["settings"]
    assert (labels.label_lr, labels.search_budget) == (None, None)
    assert f"search    label_step={labels.label_step:g}, target_prob=0.6, which canaries choose of 2" in repr(unbroken)

    again = replace(TrainConfig.read(unbroken.path / "config.toml"), out=str(tmp_path / "again"), dataset="digits")
    again = train(again.trusted(), data=arrays(), listener=Warnings())
    assert "search" not in again.summary
    for name in ("labels.safetensors", "model.safetensors", "config.toml"):
        assert (again.path / name).read_bytes() == (unbroken.path / name).read_bytes()
    with np.load(again.path / "labels.npz") as a, np.load(unbroken.path / "labels.npz") as b:
        assert all(np.array_equal(a[key], b[key]) for key in b.files)
    assert again.summary["canaries"] == unbroken.summary["canaries"]


@pytest.mark.slow
@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"update": "epoch", "epochs": 15, "budget": 1.0},
        {"epochs": 6, "budget": 0.7, "labels": {"warmup_epochs": 3}},
        {"method": "class_labels", "budget": 1.0},
        {"labels": {"parametrisation": "simplex"}, "budget": 1.0},
        {"epochs": None, "max_steps": 45, "budget": 1.0},
    ],
    ids=str,
)
def test_other_updates_behind_a_pilot_are_the_same_without_a_search(changes, stays, tmp_path, monkeypatch):
    """Whatever is chosen: the first candidate, or the last one."""

    def choose(self, learned, among=None):
        names = list(learned)
        return names[0 if stays else -1], {name: {"right_by_choosing": 0.5, "chance": 1.0} for name in names}

    monkeypatch.setattr(Canaries, "choose", choose)
    data = many_clean(rate=0.4)
    run = train(config(tmp_path / "run", **changes), data=data, listener=Warnings())
    assert (run.summary["search"]["chosen"] == "none") == stays
    again = replace(TrainConfig.read(run.path / "config.toml"), out=str(tmp_path / "again"))
    again = train(again.trusted(), data=data, listener=Warnings())
    for name in ("labels.safetensors", "model.safetensors", "config.toml"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes()


def test_trials_are_lines_of_the_metrics_and_no_results(unbroken):
    lines = [json.loads(line) for line in (unbroken.path / "metrics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(line["run"] for line in lines))
    assert stages == ["trial-1", "trial-2", METHOD]
    assert unbroken.summary["baselines"] == {}
    assert not [text for text in unbroken.summary["warnings"] if "trial" in text]
    assert "trial-1" not in [c for c in unbroken.summary if c != "search"]
    page = write_report(unbroken.path).read_text()
    assert "Search" in page
    assert "label_step=0.9, target_prob=0.6" in page
    assert TrainConfig.read(unbroken.path / "searching.toml").labels.label_lr == "search"


@pytest.mark.parametrize("at", [("trial-2", 12), pytest.param(("trial-1", 1), marks=pytest.mark.slow),
                                pytest.param(("trial-1", 30), marks=pytest.mark.slow),
                                pytest.param((METHOD, 1), marks=pytest.mark.slow),
                                pytest.param((METHOD, 17), marks=pytest.mark.slow)])  # fmt: skip
def test_a_run_that_was_stopped_goes_on_bitwise(at, unbroken, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM in (trial|instance)"):
        train(one_start(path), data=arrays(), listener=Kill(signal.SIGTERM, *at))
    train(resume=path, data=arrays(), listener=Warnings())
    assert_same(path, unbroken.path)
    assert (path / "searching.toml").read_bytes() == (unbroken.path / "searching.toml").read_bytes()


class Gone(BaseException):
    """As if the process had been killed."""


@pytest.mark.slow
@pytest.mark.parametrize("write", range(4))
def test_a_run_that_is_killed_while_it_chooses_goes_on_bitwise(write, unbroken, tmp_path, monkeypatch):
    """Before it; behind searching.toml, behind the checkpoint, behind config.toml."""
    path = tmp_path / "run"

    def files():
        return (path / "searching.toml").exists(), "search" not in (path / "config.toml").read_text()

    real = run_module.write_atomically

    def writing(file, content):
        if file.name in ("searching.toml", "config.toml"):
            if (write, file.name) in ((0, "searching.toml"), (2, "config.toml")):
                raise Gone
            real(file, content)
            if (write, file.name) in ((1, "searching.toml"), (3, "config.toml")):
                raise Gone
            return
        real(file, content)

    monkeypatch.setattr(run_module, "write_atomically", writing)
    with pytest.raises(Gone):
        train(one_start(path), data=arrays(), listener=Warnings())
    monkeypatch.undo()
    assert files() == [(False, False), (True, False), (True, False), (True, True)][write]
    # by the same call, as a scheduler makes it
    train(one_start(path), auto_resume=True, data=arrays(), listener=Warnings())
    assert_same(path, unbroken.path)


def test_the_same_call_again_looks_at_what_is_there(unbroken):
    again = train(one_start(unbroken.path), auto_resume=True, data=arrays())
    assert again.summary == unbroken.summary
    with pytest.raises(InputError, match=r"was begun with another config: labels.search_budget was 0.9, is 2.0"):
        train(replace(one_start(unbroken.path), labels=config(labels={"target_prob": 0.6}).labels), auto_resume=True,
              data=arrays())  # fmt: skip
    assert load_run(unbroken.path).summary == unbroken.summary


def test_what_a_search_has_found_is_the_checkpoints(unbroken, tmp_path):
    """One that was made by hand, or by a version with other trials, is refused in words."""
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(one_start(path), data=arrays(), listener=Kill(signal.SIGTERM, "trial-2", 1))
    state = path / "checkpoint" / "state.safetensors"
    tensors, values = checkpoint.load(state)
    values.pop("version")
    trials = values["trials"]
    wrong = [
        ("trial-1", {"settings": {"label_step": 7.0}}),
        ("trial-9", {}),
        ("trial-1", {"learned": "x"}),
        ("trial-1", {"learned": [0]}),
    ]
    for name, changes in wrong:
        checkpoint.save(state, tensors, values | {"trials": {name: trials["trial-1"] | changes}})
        with pytest.raises(InputError, match="is no checkpoint of this run"):
            train(resume=path, data=arrays())


def test_labels_that_stay(tmp_path, monkeypatch):
    """Where no trial is better the run is made with labels as given, and its config says so."""
    monkeypatch.setattr(Canaries, "choose", lambda self, learned, among=None: (
        next(iter(learned)), {name: {"right_by_choosing": 0.5, "chance": 1.0} for name in learned}))  # fmt: skip
    run = train(one_start(tmp_path / "run"), data=arrays(), listener=Warnings())
    assert run.summary["search"]["chosen"] == "none"
    assert run.summary["label_update"] == "none"
    assert run.summary["labels_changed"] == 0
    table = run.labels.probs().numpy()
    assert np.allclose(table.max(1), 0.6, atol=1e-6)
    again = TrainConfig.read(tmp_path / "run" / "config.toml")
    assert (again.labels.update, again.labels.label_lr, again.labels.target_prob) == ("none", None, 0.6)
    again = train(replace(again, out=str(tmp_path / "again")).trusted(), data=arrays(),
                  listener=Warnings())  # fmt: skip
    assert (again.path / "labels.safetensors").read_bytes() == (run.path / "labels.safetensors").read_bytes()
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_trial_that_diverges_is_not_chosen(tmp_path, monkeypatch):
    take = Stage.take_step

    def step(self):
        if self.name == "trial-1" and self.step == 2:
            raise Diverged("trial-1: it has diverged")
        take(self)

    monkeypatch.setattr(Stage, "take_step", step)
    heard = Warnings()
    run = train(one_start(tmp_path / "run"), data=arrays(), listener=heard)
    rows = {row["name"]: row for row in run.summary["search"]["candidates"]}
    assert rows["trial-1"]["failed"] == "trial-1: it has diverged"
    assert "trial-1: it has diverged; this trial has failed, the run goes on" in heard.texts
    assert run.summary["search"]["chosen"] != "trial-1"
    assert "failed" in write_report(run.path).read_text()


@pytest.mark.slow
def test_trials_leave_the_fine_tuning_to_the_run(tmp_path):
    run = train(one_start(tmp_path / "run", finetune_steps=3), data=arrays(), listener=Warnings())
    assert run.summary["finetuned"]["steps"] == 3
    assert run.summary["search"]["chosen"] == "trial-2"


def test_labels_that_shall_stay_need_no_search():
    asked = config(labels={"update": "none", "label_lr": None, "search_budget": None, "target_prob": 0.6})
    stage = prepare(asked, data=arrays()).stage(METHOD)
    assert "stay as they start, at probability 0.6 of the given class, behind 1 epochs at 0.9" in stage.method.explain()
    before = stage.method.labels.label_logits.clone()
    for _ in range(2 * stage.steps_per_epoch):
        stage.take_step()
        if stage.ends_epoch:
            stage.end_epoch()
    assert stage.method.labels.label_logits.equal(before)
    with pytest.raises(InputError, match=r"label_step=0.3 is about labels.update=exact, and labels.update is none"):
        TrainConfig(labels=LabelConfig(update="none", label_step=0.3))


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ({"label_step": 0.3}, {}, "tries how far labels move, and labels.label_step=0.3 says it; leave one out"),
        ({"update": "epoch", "eta": 0.3}, {}, "and labels.eta=0.3 says it; leave one out"),
        ({"update": "posterior"}, {}, "labels.update=posterior estimates labels anew; leave it out, or take"),
        ({"update": "none"}, {}, "labels.update=none holds labels as they start; leave it out, or take"),
        ({"canaries": "off"}, {}, "is judged by canaries, and labels.canaries is off"),
        ({}, {"method": "onehot"}, "is judged by canaries, and method=onehot has no labels that they keep"),
        ({"search_budget": 0.0}, {}, "labels.search_budget must be above 0"),
        ({"label_lr": "seek"}, {}, "labels.label_lr must be a number or search, got 'seek'"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(labels, changes, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**changes, labels=LabelConfig(**{"label_lr": "search", **labels}))


def test_a_budget_without_a_search_is_refused():
    labels = LabelConfig(label_lr=3.0, search_budget=2.0)
    with pytest.raises(InputError, match=r"labels.search_budget=2 is about labels.label_lr=search; leave it out"):
        prepare(TrainConfig(model="mlp", labels=labels), data=many_clean())


def test_a_run_of_so_many_steps():
    """A trial that is shorter ends with an epoch; the budget is kept."""
    search = plan_of(config(epochs=None, max_steps=55, budget=4.0))
    assert search.usual.epochs == 7  # 9 steps each
    assert search.cost <= 4
    assert {(c.trial.epochs, c.trial.max_steps) for c in search.trials} == {(search.epochs, None)}
    whole = plan_of(config(epochs=None, max_steps=55, budget=6.0))
    assert {(c.trial.epochs, c.trial.max_steps, c.cost) for c in whole.trials} == {(7, 55, 1.0)}


@pytest.mark.parametrize(
    ("clean", "way"),
    [(120, r"take some all the same \(--labels.canaries N, from 20 to 60\)"), (30, "bring more, 40 at least")],
)
def test_few_clean_rows_are_refused_with_the_way_out(clean, way, tmp_path):
    with pytest.raises(InputError, match=f"{clean} clean rows are too few to spare some, 200 are enough; {way}"):
        train(config(tmp_path / "run"), data=many_clean(clean=clean))
    assert not (tmp_path / "run").exists()


def test_canaries_that_are_asked_for_are_enough():
    assert plan_of(config(labels={"canaries": "40"}), clean=120).trials


# -- commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "three.npz"
    np.savez(path, **many_clean(rate=0.4))
    return path


def words(npz, folder, *more):
    short = ["--model", "mlp", "--epochs", "2", "--threads", "1", "--data.batch-size", "50"]
    search = ["--labels.label-lr", "search", "--labels.search-budget", "1", "--labels.target-prob", "0.6"]
    return ["train", "--dataset", f"npz:{npz}", *short, *search, "--out", str(folder), *more]


def test_a_dry_run_says_what_it_will_cost(npz, tmp_path, capsys):
    assert main([*words(npz, tmp_path / "run"), "--dry-run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "search 1 trial of 2 of 2 epochs, 1.0 times the cost of the run (labels.search_budget=1), about" in out
    assert "none: labels that stay trial-1: label_step=0.3, target_prob=0.6" in out
    assert 'label_lr = "search"' in out
    assert not (tmp_path / "run").exists()


def test_runs_that_have_found_other_settings_are_alike_but_for_their_seed(unbroken, tmp_path):
    for name in ("seed0", "seed1"):
        shutil.copytree(unbroken.path, tmp_path / name)
    found = (tmp_path / "seed1" / "config.toml").read_text()
    (tmp_path / "seed1" / "config.toml").write_text(found.replace("label_step = 0.9", "label_step = 0.3"))
    (both,) = groups(entries(tmp_path))
    assert [entry.state for entry in both.entries] == ["finished", "finished"]


@pytest.mark.slow
def test_several_seeds_are_summed_up_whatever_each_has_found(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastmeta.report.write_figures", lambda *run: [])
    monkeypatch.setattr("fastmeta.report.summing_up.write_band_figures", lambda *group: [])
    folder = tmp_path / "seeds"
    assert main(words(npz, folder, "--seeds", "2")) == 0
    (group,) = json.loads((folder / "seeds.json").read_text())["groups"]
    assert group["seeds"] == [0, 1]
    capsys.readouterr()
    assert main(["show", str(folder / "seed0"), "--no-page"]) == 0
    assert "search: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_learner_searches():
    data = many_clean(rate=0.4)
    labels = {"label_lr": "search", "search_budget": 1, "target_prob": 0.6}
    learner = LabelLearner(epochs=2, config={"labels": labels, "data": {"batch_size": 50}})
    learner.fit(*(data[key] for key in ("x_train", "y_train", "x_meta", "y_meta")))
    assert len(learner.summary_["search"]["candidates"]) == 2
