"""emlc: its steps beside the published program's in float64, its labels, its options and refusals."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy, cross_entropy, one_hot

import fastmeta
from fastmeta.data import InputError
from fastmeta.training import LabelConfig, OptimConfig, TrainConfig
from fastmeta.training.schedule import lr_at
from tests.support.methods import Net64, assert_same_weights, sgd_of, stage_of
from tests.support.runs import two_classes
from tests.support.stopped import config

OPTIM = OptimConfig(lr=0.3, momentum=0.8, weight_decay=1e-3)


def double(stage):
    """The teacher's retention net too, before the first step."""
    stage.method.teacher.retention.double()
    return stage


def naive_step(student, teacher, sgd, x, y, x_meta, y_meta, lr, teacher_lr):
    """One step of the program of Taraday and Baskin, with labels of clean rows that are turned."""
    retention, body = teacher.retention, teacher.network.body

    def trust(h, label):
        return torch.sigmoid(retention.net(torch.cat([h, retention.embedding(label)], 1)))

    def seen(x):
        h = body[:2](x.flatten(1).double())
        return h, body[2](h)

    h, t = seen(x)
    p = trust(h, y) * one_hot(y, 2) + (1 - trust(h, y)) * t.softmax(1)
    old = {k: v.detach().clone() for k, v in student.named_parameters()}
    sgd.param_groups[0]["lr"] = lr
    sgd.zero_grad()
    cross_entropy(student(x), p.detach()).backward()
    sgd.step()
    now = dict(student.named_parameters())
    g = torch.autograd.grad(cross_entropy(student(x_meta), y_meta), list(now.values()))
    log_q = lambda params: torch.func.functional_call(student, params, (x,)).log_softmax(1)  # noqa: E731
    _, tangent = torch.func.jvp(log_q, (old,), (dict(zip(now, g, strict=True)),))
    h, t = seen(x_meta)
    shown = y_meta.clone()
    shown[::2] = 1 - shown[::2]  # of two classes the likeliest wrong one
    of_clean = cross_entropy(t, y_meta) + binary_cross_entropy(trust(h, shown)[:, 0], (shown == y_meta).double())
    loss = lr * (tangent.detach() * p).sum(1).mean() + of_clean
    params = list(teacher.parameters())
    with torch.no_grad():
        for q, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            q -= teacher_lr * grad


def test_its_steps_are_those_of_the_published_program(tmp_path):
    torch.manual_seed(0)
    options = {"injection": "adversarial", "lr": 0.4, "hidden": 9, "embedding": 5}
    stage = double(stage_of(tmp_path / "run", "emlc", Net64(), options, epochs=2, optim=OPTIM))
    assert stage.config.labels.lookahead == "optimizer"
    method = stage.method
    student, teacher = copy.deepcopy(method.model), copy.deepcopy(method.teacher)
    assert not torch.equal(student.body[0].weight, teacher.network.body[0].weight)
    sgd = sgd_of(student, stage.config.optim)
    own_step, seen = method.step, []

    def step(batch):
        x, x_meta = (stage.context.network_input(x) for x in (batch.x, batch.meta[0]))
        seen.append((x, stage.context.targets[batch.index], x_meta, batch.meta[1]))
        return own_step(batch)

    method.step = step
    for _ in range(7):
        lr = lr_at(stage.config.optim, stage.step, stage.horizon)
        stage.take_step()
        naive_step(student, teacher, sgd, *seen[-1], lr, 0.4)
    assert int(stage.totals.read()["nonfinite"]) == 0
    assert_same_weights(method.model, student, atol=1e-11)
    assert_same_weights(method.teacher, teacher, atol=1e-11)


def test_a_run_has_labels_of_the_teacher_in_evaluation_mode(tmp_path):
    class Look(fastmeta.Listener):
        epochs = 0

        def epoch(self, stage, record):
            self.epochs += 1
            method = stage.method
            teacher = copy.deepcopy(method.teacher).eval()
            assert method.teacher.network.training
            assert method.model.training
            for x, rows in stage.samples().train():
                with torch.no_grad():
                    torch.testing.assert_close(method.labels.probs(rows), teacher.probs(rows, x), rtol=1e-4, atol=1e-4)
            assert 0 < record["method_figures"]["given_label_kept"] < 1

    look = Look()
    own = {"method": "emlc", "options": {"injection": "random"}, "model": "mlp"}
    plan = config(tmp_path / "run", **own, epochs=2, baselines="none")
    run = fastmeta.train(plan, data=two_classes(), listener=look)
    assert look.epochs == 2
    assert torch.equal(run.labels.probs(), fastmeta.load_run(run.path).labels.probs())
    again = TrainConfig.read(run.path / "config.toml")
    assert again.trusted() == run.config


def test_the_model_may_move_by_the_labels_of_after(tmp_path):
    made = {
        by: stage_of(tmp_path / by, "emlc", Net64(), {"moves_by": by, "lr": 0.4}, epochs=2)
        for by in ("before", "after")
    }
    for stage in made.values():
        for _ in range(3):
            stage.take_step()
    assert [str(s.method.meta_step.approx.kind) for s in made.values()] == ["delayed", "exact"]
    before, after = (s.method.model.body[0].weight for s in made.values())
    assert 1e-9 < float((before - after).detach().norm()) < 0.1


def test_a_network_without_a_last_linear_layer_is_refused(tmp_path):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def reset_parameters(self):
            nn.init.uniform_(self.scale)

        def forward(self, x):
            return x.flatten(1)[:, :2] * self.scale

    with pytest.raises(InputError, match=r"method=emlc: the teacher's network needs a torch.nn.Linear with 2 outputs"):
        stage_of(tmp_path / "run", "emlc", Pooled())


def test_what_it_does_not_follow_is_refused_by_name():
    for changes, message in (
        ({"micro_batch": 4}, "micro_batch=4 is about steps in pieces, and method=emlc takes none"),
        ({"compile": "trace"}, "compile=trace is about steps that learn labels, and method=emlc takes none"),
        ({"approx": "delayed"}, "approx=delayed is about steps that learn labels, and method=emlc takes none"),
        ({"labels": LabelConfig(label_lr=3.0)}, "labels.label_lr=3.0 is about a table of labels, and method=emlc"),
        ({"options": {"lr": 0.0}}, "method.lr must be above 0 and finite, got 0.0"),
        ({"options": {"hidden": 0}}, "method.hidden must be at least 1, got 0"),
        ({"options": {"embedding": 0}}, "method.embedding must be at least 1, got 0"),
        ({"options": {"injection": "all"}}, "method.injection must be one of none, adversarial, random, got 'all'"),
        ({"options": {"moves_by": "now"}}, "method.moves_by must be one of before, after, got 'now'"),
    ):
        with pytest.raises(InputError, match=message):
            TrainConfig(method="emlc", **changes)
    assert TrainConfig(method="emlc", labels=LabelConfig(lookahead="sgd")).labels.lookahead == "sgd"
