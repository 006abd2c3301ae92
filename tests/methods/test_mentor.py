"""The learned curriculum of mentornet: its net, what it is fitted to, the weights of steps, runs and refusals."""

import copy
import signal

import pytest
import torch
from torch.nn.functional import cross_entropy

from fastmeta.data import InputError
from fastmeta.methods import mentor
from fastmeta.methods.mentor import Mentor, Rows, pairs
from fastmeta.methods.mentornet import MentorNet
from fastmeta.training import Interrupted, TrainConfig, load_run, train
from tests.support.methods import Net64, assert_same_weights, sgd_of, stage_of, taken
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config

LEARNED = {"curriculum": "learned"}


@pytest.fixture
def short_fit(monkeypatch):
    monkeypatch.setattr(mentor, "STEPS", 50)


def test_the_net_is_the_published_one():
    torch.manual_seed(0)
    net = Mentor(3)
    losses, above, labels = torch.rand(6), torch.randn(6), torch.arange(6) % 3
    lstm = torch.nn.LSTM(2, 1, bidirectional=True)
    with torch.no_grad():
        for way, name in enumerate(("", "_reverse")):  # of its four gates, input and candidate
            w, b = (getattr(lstm, f"{kind}_ih_l0{name}") for kind in ("weight", "bias"))
            w[0], w[2] = net.gates.weight[way], net.candidates.weight[way]
            b[0], b[2] = net.gates.bias[way], net.candidates.bias[way]
            getattr(lstm, f"bias_hh_l0{name}").zero_()
    _, (_, cells) = lstm(torch.stack([losses, above], 1).unsqueeze(0))
    seen = torch.cat([net.label.weight[labels], net.percent.weight[18].expand(6, 5), cells.squeeze(2).T], 1)
    wanted = net.out(net.hidden(seen).tanh())[:, 0]
    torch.testing.assert_close(net(losses, above, labels, 18), wanted)
    assert not net.percent.weight.requires_grad


def test_clean_rows_are_seen_with_every_label_as_often_as_the_network_says_it():
    q = torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]], dtype=torch.float64)
    y, average = torch.tensor([0, 0, 1]), torch.tensor(0.5, dtype=torch.float64)
    rows = pairs(q.log(), y, average)
    assert rows.right.tolist() == [True, False, False, True, False, False, False, True, False]
    assert rows.labels.tolist() == [0, 1, 2] * 3
    torch.testing.assert_close(rows.losses, -q.log().flatten().float())
    torch.testing.assert_close(rows.above, rows.losses - 0.5)
    torch.testing.assert_close(rows.weight, torch.tensor([0.7, 0.2, 0.1] * 2 + [0.2, 0.7, 0.1]))
    log_q = q.log()
    log_q[1, 2] = -torch.inf
    assert len(pairs(log_q, y, average).losses) == 8


def test_it_learns_to_tell_wrong_from_right():
    """By the loss where that tells, and by the label where only that does."""
    torch.manual_seed(0)
    n = 400
    labels, right = torch.randint(3, (n,)), torch.rand(n) < 0.6
    losses = torch.where(right, torch.rand(n), 1 + torch.rand(n))
    net = Mentor(3)
    frozen = net.percent.weight.clone()
    assert net.fit(Rows(losses, losses - 1, labels, right, torch.ones(n)), 18)
    v = net(losses, losses - 1, labels, 18).detach().sigmoid()
    assert float(v[right].mean()) > 0.95
    assert float(v[~right].mean()) < 0.05
    assert torch.equal(net.percent.weight, frozen)
    right = labels != 1
    assert net.fit(Rows(losses, losses - 1, labels, right, torch.ones(n)), 18)
    v = net(losses, losses - 1, labels, 18).detach().sigmoid()
    assert float(v[right].min()) > 0.9 > 0.1 > float(v[~right].max())


def test_a_fit_of_nothing_finite_moves_nothing():
    net = Mentor(2)
    before = copy.deepcopy(net.state_dict())
    bad = torch.tensor([torch.nan, 1.0])
    assert not net.fit(Rows(bad, bad, torch.tensor([0, 1]), torch.tensor([True, False]), torch.ones(2)), 18)
    assert all(torch.equal(before[k], t) for k, t in net.state_dict().items())


def test_its_weights_are_those_of_the_mentor_behind_the_fit(short_fit, tmp_path):
    torch.manual_seed(0)
    options = {**LEARNED, "percentile": 0.6, "average": 0.3, "dropout": 0.25}
    stage = stage_of(tmp_path / "run", "mentornet", Net64(), options, epochs=8)
    model, y, method, average, fits = copy.deepcopy(stage.model), stage.context.targets, stage.method, 0.0, []
    sgd = sgd_of(model, stage.config.optim)
    for epoch in range(1, 5):
        batches = taken(stage, 5)
        fitted_net, number = copy.deepcopy(method.mentor), 5 * (epoch - 1)
        fits.append(method.kept.fitted)

        def loss(logits, index, net=fitted_net, fitted=fits[-1]):
            nonlocal average, number
            losses = cross_entropy(logits, y[index], reduction="none")
            now = losses.detach()
            average = 0.3 * average + 0.7 * float(now.sort().values[9])  # of rank 0.6 * 15
            v = net(now, now - average, y[index], 18).sigmoid().double().detach() if fitted else torch.ones(16)
            method.kept.step, step = number, method.kept.step
            kept = method.kept_at_random(16, 100 * number // 40)
            method.kept.step, number = step, number + 1
            return (v * kept * losses).mean()

        for x, index, lr in batches:
            sgd.param_groups[0]["lr"] = lr
            sgd.zero_grad()
            loss(model(x), index).backward()
            sgd.step()
        assert_same_weights(stage.model, model, atol=1e-9)
        stage.end_epoch()
        method.step = MentorNet.step.__get__(method)
    assert fits == [False, False, True, True]  # at the end of the second epoch 25% are done
    figures = method.figures()
    assert 0 <= figures["mentor_of_wrong"] < figures["mentor_of_right"] <= 1


def test_a_run_resumes_bitwise_and_is_loaded(short_fit, tmp_path):
    def plan(name):
        return config(tmp_path / name, method="mentornet", options=LEARNED, model="mlp", baselines="none")

    unbroken = train(plan("unbroken"), data=two_classes())
    assert unbroken.summary["test_accuracy_last"] > 0.8
    assert unbroken.summary["uses_clean"] is True
    assert load_run(unbroken.path).summary == unbroken.summary
    with pytest.raises(Interrupted):
        train(plan("run"), data=two_classes(), listener=Kill(signal.SIGTERM, "mentornet", 7))
    train(resume=tmp_path / "run", data=two_classes())
    assert files(tmp_path / "run") == files(unbroken.path)


def test_what_does_not_fit_is_refused_by_name():
    for options, changes, message in (
        ({**LEARNED, "slope": 2.0}, {}, r"method\.slope=2\.0 is about method\.curriculum=predefined; leave it out"),
        (LEARNED, {"epochs": 1}, r"method\.curriculum=learned fits its mentor at the end of an epoch .* epochs=1"),
        ({"curriculum": "guess"}, {}, r"method\.curriculum must be one of predefined, learned, got 'guess'"),
    ):
        with pytest.raises(InputError, match=message):
            TrainConfig(method="mentornet", options=options, **changes)
    assert TrainConfig(method="mentornet", epochs=1).epochs == 1
    assert not MentorNet.uses_clean(MentorNet.Config())
