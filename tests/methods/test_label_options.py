"""Options of exact steps that the paper compares: the simplex, the entropy curriculum, labels that start anew."""

import math
import signal

import pytest
import torch

import fastmeta
from fastmeta import reference
from fastmeta.cli.train import parse
from fastmeta.data import InputError
from fastmeta.methods.label_curriculum import Restart, entropy_weights
from fastmeta.training import Interrupted, LabelConfig, OptimConfig, TrainConfig
from fastmeta.training.prepare import prepare
from tests.support.cases import make
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config

KINDS = ["1-H/logC", "exp(-H)", "H/logC"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_formula_with_mean_one(kind):
    p = torch.randn(50, 7, dtype=torch.float64).softmax(1)
    p[0] = torch.eye(7, dtype=torch.float64)[2]
    entropy = -(p * p.clamp(min=1e-300).log()).sum(1)
    wanted = {"1-H/logC": 1 - entropy / math.log(7), "exp(-H)": torch.exp(-entropy), "H/logC": entropy / math.log(7)}
    made = entropy_weights(p.requires_grad_(), kind)
    assert not made.requires_grad
    torch.testing.assert_close(made, (wanted[kind] / wanted[kind].mean()).detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(made.mean(), torch.ones((), dtype=torch.float64))


def test_where_no_sample_would_count_all_do():
    assert torch.equal(entropy_weights(torch.full((4, 2), 0.5), "1-H/logC"), torch.ones(4))
    assert torch.equal(entropy_weights(torch.eye(4), "H/logC"), torch.ones(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weighted_step_has_the_gradient_of_autograd_with_constant_weights(kind):
    case = make("mlp", 5)
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.6, dtype=torch.float64)
    labels.label_logits += torch.randn_like(labels.label_logits)
    weight = entropy_weights(labels.probs(case.index), kind)
    phi, function = labels.seen_by(case.index, case.x)
    sgd = reference.SGDState(0.3)
    truth = reference.meta_gradient(case.model, function, phi, case.x, *case.meta, lookahead=sgd, weight=weight)
    out = fastmeta.meta_gradient(case.model, labels, case.train, case.meta, lr=0.3, weight=weight)
    g = truth.grads["label_logits"]
    assert float((out.grads["label_logits"] - g).norm() / g.norm()) < 1e-10


@pytest.mark.parametrize(
    ("family", "p0"),
    [(fastmeta.InstanceLabels, 0.7), (fastmeta.ClassLabels, 1.0), (fastmeta.SimplexLabels, 1.0)],
)
def test_labels_start_anew_behind_an_epoch_and_not_before_its_labels_are_read(family, p0):
    targets = torch.arange(30) % 3
    labels, start = family(targets, 3, p0), family(targets, 3, p0)
    move = lambda: getattr(labels, family.parameter).mul_(0.5)  # noqa: E731
    restart, other = Restart(labels, p0), Restart(labels, p0)
    move()
    moved = labels.probs().clone()
    restart.before_step()
    assert torch.equal(labels.probs(), moved)
    restart.due = True
    other.load_state_dict(restart.state_dict())
    assert torch.equal(labels.probs(), moved)
    other.before_step()
    assert torch.equal(getattr(labels, family.parameter), getattr(start, family.parameter))


RUNS = {
    "simplex": {"parametrisation": "simplex"},
    "hard start": {"parametrisation": "simplex", "target_prob": 1.0},
    "weights": {"entropy_weight": "1-H/logC"},
    "anew": {"reset": True},
    "momentum": {"label_momentum": 0.5, "label_lr": 2.0},
}


def made(path, name, **changes):
    return config(path, baselines="none", model="mlp", labels=LabelConfig(canaries="off", **RUNS[name]), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_goes_on_bitwise(name, tmp_path):
    unbroken = fastmeta.train(made(tmp_path / "unbroken", name), data=two_classes())
    for at in (10,) if name == "anew" else (7,):  # a restart is due where an epoch has ended behind the warm-up
        path = tmp_path / f"stopped-{at}"
        with pytest.raises(Interrupted):
            fastmeta.train(made(path, name), data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", at))
        fastmeta.train(resume=path, data=two_classes())
        assert files(path) == files(unbroken.path)
    kind = fastmeta.SimplexLabels if "parametrisation" in RUNS[name] else fastmeta.InstanceLabels
    loaded = fastmeta.load_run(unbroken.path)
    assert type(loaded.labels) is kind
    assert torch.equal(loaded.labels.probs(), unbroken.labels.probs())
    assert loaded.config.labels.update == "exact"


@pytest.mark.slow
def test_they_change_what_a_run_learns(tmp_path):
    plain = fastmeta.train(
        config(tmp_path / "plain", baselines="none", model="mlp", labels=LabelConfig(update="exact", canaries="off")),
        data=two_classes(),
    )
    for name in ("weights", "anew"):
        other = fastmeta.train(made(tmp_path / name, name), data=two_classes())
        assert not torch.equal(other.labels.probs(), plain.labels.probs())


def test_flags_and_tables(tmp_path):
    flags = ["--labels.parametrisation", "simplex", "--labels.entropy-weight", "exp(-H)", "--labels.reset"]
    read = parse(flags).run
    assert (read.labels.parametrisation, read.labels.entropy_weight, read.labels.reset) == ("simplex", "exp(-H)", True)
    assert read.label_update == "exact"
    (tmp_path / "run.toml").write_text(read.to_toml())
    assert TrainConfig.read(tmp_path / "run.toml") == read


SIMPLEX = {"parametrisation": "simplex"}


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({}, {"parametrisation": "sparsemax"}, r"labels\.parametrisation must be one of softmax, simplex"),
        ({}, {"entropy_weight": "H"}, r"labels\.entropy_weight must be one of none, 1-H/logC"),
        ({}, {**SIMPLEX, "update": "posterior"}, r"labels\.parametrisation=simplex is about labels\.update=exact"),
        ({}, {"reset": True, "update": "epoch"}, r"labels\.reset=True is about labels\.update=exact"),
        ({}, {"entropy_weight": "H/logC", "update": "epoch"}, r"labels\.entropy_weight=H/logC is about labels\.update"),
        ({}, {**SIMPLEX, "dtype": "bfloat16"}, r"labels\.dtype=bfloat16 does not go with labels\.param"),
        ({}, {**SIMPLEX, "target_prob": 0.0}, r"labels\.target_prob must lie strictly between 0 and 1"),
        (
            {"method": "class_labels"},
            SIMPLEX,
            r"labels\.parametrisation=simplex is about a distribution of each sample",
        ),
        (
            {},
            {**SIMPLEX, "label_momentum": 0.5},
            r"labels\.label_momentum=0\.5 is about logits, and labels\.parametrisation=simplex",
        ),
        ({}, {"label_momentum": 1.0}, r"labels\.label_momentum must be in \[0, 1\), got 1\.0"),
        (
            {},
            {"label_momentum": 0.5, "dtype": "bfloat16"},
            r"labels\.dtype=bfloat16 does not go with labels\.label_momentum=0\.5",
        ),
        ({}, {"label_momentum": 0.5, "update": "epoch"}, r"labels\.label_momentum=0\.5 is about labels\.update=exact"),
        (
            {"method": "class_labels"},
            {"label_momentum": 0.5},
            r"labels\.label_momentum=0\.5 is about a distribution of each sample",
        ),
        (
            {},
            {**SIMPLEX, "label_step": 0.1},
            r"labels\.label_step=0\.1 is about logits .* got labels\.parametrisation=simplex; take labels\.label_lr",
        ),
        (
            {},
            {"label_momentum": 0.5, "label_step": 0.1},
            r"labels\.label_step=0\.1 is about logits .* got labels\.label_momentum=0\.5; take labels\.label_lr",
        ),
        ({"method": "onehot"}, SIMPLEX, r"labels\.parametrisation=simplex is about methods whose labels move"),
        ({"method": "l2rw"}, {"reset": True}, r"labels\.reset=True is about methods whose labels move"),
        ({"method": "mwnet"}, {"entropy_weight": "H/logC"}, r"labels\.entropy_weight=H/logC is about methods whose"),
    ],
)
def test_what_does_not_combine_is_refused_by_name(changes, labels, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**changes, labels=LabelConfig(**labels))


@pytest.mark.parametrize(("options", "share"), [(SIMPLEX, 1 / 6), ({"label_momentum": 0.75}, 1 / 4)])
def test_these_labels_go_at_a_rate_from_the_first_step_on(options, share, tmp_path):
    def of_labels(**kw):
        labels = LabelConfig(canaries="off", **kw)
        return prepare(
            config(tmp_path / "run", baselines="none", model="mlp", labels=labels), data=two_classes()
        ).config

    made = of_labels(**options)
    one = fastmeta.InstanceLabels(torch.tensor([0]), 2)
    usual = one.default_label_lr(made.optim.lr, made.data.batch_size, made.epochs)
    assert made.labels.label_lr == pytest.approx(share * usual, rel=1e-12)
    assert (made.labels.label_step, made.labels.warmup_epochs) == (None, 0)
    other = of_labels(entropy_weight="H/logC").labels
    assert (other.label_lr, other.label_step, other.warmup_epochs) == (None, one.default_step, 1)


@pytest.mark.parametrize(("warmup", "times"), [(0, 2), (1, 1), (2, 0)])
def test_a_restart_waits_for_the_warm_up(warmup, times, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(fastmeta.InstanceLabels, "restart_", lambda labels, p0: calls.append(p0))
    labels = LabelConfig(reset=True, canaries="off", warmup_epochs=warmup)
    fastmeta.train(config(tmp_path / "run", baselines="none", model="mlp", labels=labels), data=two_classes())
    assert len(calls) == times


def test_a_rate_that_grows_is_measured_by_what_it_grows_to(tmp_path):
    made = config(
        tmp_path / "run",
        baselines="none",
        model="mlp",
        optim=OptimConfig(lr=0.05, warmup=2),
        labels=LabelConfig(update="exact", canaries="off", warmup_epochs=0),
    )
    stage = prepare(made, data=two_classes()).stage("instance_labels")
    before = stage.method.labels.label_logits.clone()
    stage.take_step()
    n = made.data.batch_size
    moved = float((stage.method.labels.label_logits - before).norm()) / math.sqrt(n)
    assert moved == pytest.approx(0.3 / (2 * stage.steps_per_epoch), rel=1e-5)


def test_class_labels_start_at_one_hot(tmp_path):
    """The paper's Algorithm 1: alpha is 0, from where the gradient leads away."""
    labels = LabelConfig(target_prob=1.0, canaries="off")
    run = fastmeta.train(
        config(tmp_path / "run", baselines="none", model="mlp", method="class_labels", labels=labels, epochs=1),
        data=two_classes(),
    )
    assert run.config.labels.target_prob == 1.0
    start = fastmeta.ClassLabels(run.labels.targets, 2, 1.0)
    assert torch.equal(start.probs(), torch.nn.functional.one_hot(start.targets, 2).float())
