"""label_lr=None: a visit moves a label by label_step, whatever lambda, n, the schedule and the meta loss are."""

import copy
import math
import warnings

import pytest
import torch

import fastmeta
from fastmeta import reference
from fastmeta.losses import MomentumLabels
from fastmeta.meta import algorithm
from tests.support import cases
from tests.support.meta import FAMILIES, make_labels, relative

BOTH = pytest.mark.parametrize("compile", ["off", "trace"])


def build(optimizer=None, family=fastmeta.InstanceLabels, **kw):
    case = cases.make("mlp")
    labels = make_labels(family, case)
    optimizer = (optimizer or (lambda p: torch.optim.SGD(p, lr=0.5)))(case.model.parameters())
    return case, labels, fastmeta.MetaStep(case.model, labels, optimizer, **kw)


def value(labels):
    return getattr(labels, labels.parameter)


def length(labels, before, n):
    """Of a move, in visits."""
    return float((value(labels) - before).norm()) / labels.reach(n)


@BOTH
@pytest.mark.parametrize("delta", [None, 0.05])
def test_the_equation(compile, delta):
    """eta_t = delta (lambda_t / lambda_max) (n / lambda_t) / max(m_t, x_t), step by step."""
    case, labels, step = build(compile=compile, label_step=delta)
    twin, own, explicit = build(compile=compile, label_lr=1.0)
    sizes, peak = [], 0.0
    for lr in (0.5e-2, 0.25, 0.0, 0.5, 0.5, 0.3, 0.4):
        for s in (step, explicit):
            s.optimizer.param_groups[0]["lr"] = lr
        if lr:
            made = fastmeta.label_gradient(twin.model, own, twin.train, twin.meta, lr=lr)
            size = float(made.grad.norm()) * 8 / lr / math.sqrt(8)
            peak = max(peak, lr)
            mean = sum(sizes) / len(sizes) if sizes else 0.0
            eta = (0.3 if delta is None else delta) * (lr / peak) * (8 / lr) / max(mean, size)
            sizes.append(size)
        explicit.label_lr = eta if lr else 0.0
        before = labels.label_logits.clone()
        result = step(case.train, case.meta)
        explicit(twin.train, twin.meta)
        assert step.label_lr == pytest.approx(explicit.label_lr, rel=1e-10)
        assert relative(labels.label_logits, own.label_logits) < 1e-12
        assert torch.equal(labels.label_logits, before) == (lr == 0)
        assert step.label_lr * float(result.label_grad_norm) <= (delta or 0.3) * math.sqrt(8) * (1 + 1e-12)
    assert f"label_lr {step.label_lr:g} now, set in each step so that a visit moves a label by" in step.explain()
    assert labels.default_step == 0.3


@pytest.mark.parametrize("how", [{}, {"compile": "trace"}, {"micro_batch": 3}])
def test_whole_iterations_are_those_of_the_reference(how):
    """Autograd in float64, and eta by the equation: labels and model."""
    case, labels, step = build(label_step=0.2, **how)
    twin, own, _ = build()
    table, index, n, sizes = own.label_logits.clone(), case.index, len(case.index), []
    loss_of = lambda p, z: reference.soft_cross_entropy(z, p["l"].softmax(1), reduction="none")  # noqa: E731
    for lr in (0.5, 0.25, 0.4):
        step.optimizer.param_groups[0]["lr"] = lr
        sgd = reference.SGDState(lr)
        truth = reference.label_gradient(
            twin.model, table[index], lambda l: l.softmax(1), case.x, *case.meta, lookahead=sgd
        )
        size = n / lr * float(truth.grad.norm()) / math.sqrt(n)
        eta = 0.2 * (lr / 0.5) * (n / lr) / max(sum(sizes) / len(sizes) if sizes else 0.0, size)
        sizes.append(size)
        table.index_put_((index,), -eta * truth.grad, accumulate=True)
        reference.plain_step(twin.model, loss_of, {"l": table[index]}, case.x, optimizer=sgd)
        result = step(case.train, case.meta)
        assert bool(result.finite)
        assert not step.eager_because or "micro_batch" in how
        assert relative(labels.label_logits, table) < 1e-10
        for ours, theirs in zip(case.model.parameters(), twin.model.parameters(), strict=True):
            assert relative(ours, theirs) < 1e-10


@BOTH
@pytest.mark.parametrize("mu", [0.0, 0.75])
def test_momentum_is_taken_off_the_length(mu, compile):
    """Where gradients stay as they are, labels go as far in the end."""
    case = cases.make("mlp")
    labels = MomentumLabels(case.targets, case.num_classes, 0.7, momentum=mu, dtype=torch.float64)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.5), compile=compile)
    before = labels.label_logits.clone()
    step(case.train, case.meta)
    assert float((labels.label_logits - before).norm()) == pytest.approx((1 - mu) * 0.3 * math.sqrt(8), rel=1e-9)


@BOTH
def test_probabilities_move_no_further(compile):
    case = cases.make("mlp")
    labels = fastmeta.SimplexLabels(case.targets, case.num_classes, 0.7, dtype=torch.float64)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.5), compile=compile)
    for _ in range(3):
        before = labels.label_probs.clone()
        step(case.train, case.meta)
        assert 1e-4 < length(labels, before, 8) <= labels.default_step * (1 + 1e-9)


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_has_the_length_that_was_asked_for(family, compile):
    """The first one exactly, later ones at most: a row moves by delta, root mean square."""
    case, labels, step = build(family=family, compile=compile, label_step=1e-3)
    for k in range(5):
        before = value(labels).clone()
        step(case.train, case.meta)
        moved = length(labels, before, 8)
        assert moved <= 1e-3 * (1 + 1e-9)
        assert moved > (1 - 1e-9) * 1e-3 if k == 0 else moved > 1e-4


def rates(*of_groups):
    """An optimizer whose last layer has a rate of its own."""

    def optimizer(params):
        params = list(params)
        parts = zip((params[:4], params[4:]), of_groups, strict=True)
        return torch.optim.SGD([{"params": p, "lr": lr} for p, lr in parts], lr=1.0)

    return optimizer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("small", "large"), [((1e-9,) * 2, (1.6e-8,) * 2), ((1e-9, 1e-8), (1.6e-8, 1.6e-7))])
def test_rates_drop_out(small, large, family):
    """So short a look-ahead leaves theta*, and the model, where they are; no warning asks for anything."""
    moves = []
    for of_groups in (small, large):
        case, labels, step = build(rates(*of_groups), family)
        before = value(labels).clone()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                step(case.train, case.meta)
        moves.append(value(labels) - before)
    assert relative(*moves) < 1e-6
    assert moves[0].abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scale_of_the_meta_loss_drops_out(family, monkeypatch):
    moves, exact = [], algorithm.meta_gradient
    for factor in (1.0, 64.0):

        def scaled(*args, factor=factor):
            loss, g = exact(*args)
            return loss * factor, {name: t * factor for name, t in g.items()}

        monkeypatch.setattr(algorithm, "meta_gradient", scaled)
        case, labels, step = build(family=family)
        before = value(labels).clone()
        for _ in range(3):
            step(case.train, case.meta)
        moves.append(value(labels) - before)
    assert relative(*moves) < 1e-12
    assert moves[0].abs().max() > 1e-3


def test_n_drops_out():
    """Of a batch that holds every row twice, each row moves by the sum of two visits of the same length."""
    moves = []
    for times in (1, 2):
        case, labels, step = build()
        before = labels.label_logits.clone()
        step((case.x.repeat(times, 1), case.index.repeat(times)), case.meta)
        moves.append((labels.label_logits - before) / times)
    assert relative(*moves) < 1e-10


def test_it_rests_where_gradients_vanish():
    """A step whose gradient is small beside those before is small too: the mean bounds from below."""
    case, labels, step = build()
    step(case.train, case.meta)
    step._rate.mean *= 1e6
    before = labels.label_logits.clone()
    step(case.train, case.meta)
    assert length(labels, before, 8) < 1e-5


@BOTH
def test_warm_ups_that_torch_has_written_down(compile):
    """The first rates of a warm-up are small beside the one that its schedule leads to."""
    case, labels, step = build(compile=compile)
    schedule = torch.optim.lr_scheduler.LambdaLR(step.optimizer, lambda k: (k + 1) / 4)
    for k in range(4):
        before = labels.label_logits.clone()
        step(case.train, case.meta)
        assert length(labels, before, 8) <= 0.3 * (k + 1) / 4 * (1 + 1e-9)
        schedule.step()
    case, labels, step = build(compile=compile)
    torch.optim.lr_scheduler.OneCycleLR(step.optimizer, 0.5, total_steps=6, cycle_momentum=False)
    before = labels.label_logits.clone()
    step(case.train, case.meta)
    assert length(labels, before, 8) == pytest.approx(0.3 / 25)


@BOTH
def test_a_rate_that_is_a_tensor(compile):
    rate = torch.tensor(0.25, dtype=torch.float64)
    case, labels, step = build(lambda p: torch.optim.SGD(p, lr=rate, foreach=False), compile=compile)
    twin, own, plain = build(compile=compile)
    for lr in (0.25, 0.125, 0.0):
        rate.fill_(lr)
        plain.optimizer.param_groups[0]["lr"] = lr
        step(case.train, case.meta)
        plain(twin.train, twin.meta)
        assert step.label_lr == plain.label_lr
        assert torch.equal(labels.label_logits, own.label_logits)


@BOTH
def test_a_rate_on_a_device_is_not_read(monkeypatch, compile):
    """As a stand-in for CUDA: rate and statistics stay tensors all the way to the kernels."""
    case, labels, step = build(compile=compile)
    twin, own, plain = build(compile=compile)
    for lr in (0.5, 0.0, 0.25):
        monkeypatch.setattr(step._lookahead, "largest_rate", lambda p, lr=lr: torch.tensor(lr, dtype=torch.float64))
        for s in (step, plain):
            s.optimizer.param_groups[0]["lr"] = lr
        step(case.train, case.meta)
        plain(twin.train, twin.meta)
        assert all(isinstance(t, torch.Tensor) for t in (step._rate.taken, step._rate.mean, step._rate.largest))
        assert step.label_lr == pytest.approx(plain.label_lr, rel=1e-14)
        assert step.state_dict()["label_step"] == pytest.approx(plain.state_dict()["label_step"])
    assert relative(labels.label_logits, own.label_logits) < 1e-14


def test_what_the_look_ahead_does_not_move_has_no_say():
    """last:1 takes the head's rate; a fixed look-ahead its own, whatever the optimizer's are."""
    steps = []
    for of_groups in ((0.1, 1e-3), (0.7, 1e-3)):
        case, _, step = build(rates(*of_groups), approx="last:1")
        step(case.train, case.meta)
        steps.append(step)
    assert steps[0].label_lr == steps[1].label_lr
    case, labels, step = build(lambda p: torch.optim.Adam(p, lr=1e-3), lookahead=0.2)
    step(case.train, case.meta)
    step.optimizer.param_groups[0]["lr"] = 1e-6
    before = labels.label_logits.clone()
    step(case.train, case.meta)
    assert length(labels, before, 8) > 0.2


def test_micro_batches_take_the_same_step():
    case, labels, step = build()
    twin, own, cut = build(micro_batch=3)
    for _ in range(3):
        step(case.train, case.meta)
        cut(twin.train, twin.meta)
    assert relative(labels.label_logits, own.label_logits) < 1e-12


def test_a_step_that_is_skipped_leaves_no_trace():
    case, labels, step = build()
    step(case.train, case.meta)
    before, state = labels.label_logits.clone(), step._rate.state_dict()
    step((torch.full_like(case.x, torch.nan), case.index), case.meta)
    assert int(step.nonfinite_steps) == 1
    assert torch.equal(labels.label_logits, before)
    assert (step._rate.state_dict(), step.label_lr) == (state, 0.0)


@BOTH
def test_a_resumed_step_is_bitwise_that_of_an_unbroken_one(compile):
    case, labels, step = build(compile=compile, label_step=0.1)
    for lr in (0.5, 0.3):
        step.optimizer.param_groups[0]["lr"] = lr
        step(case.train, case.meta)
    parts = case.model, labels, step.optimizer, step
    state = copy.deepcopy([part.state_dict() for part in parts])
    twin, own, resumed = build(compile=compile)
    for part, saved in zip((twin.model, own, resumed.optimizer, resumed), state, strict=True):
        part.load_state_dict(saved)
    for _ in range(2):
        step(case.train, case.meta)
        resumed(twin.train, twin.meta)
        assert step.label_lr == resumed.label_lr
    assert torch.equal(labels.label_logits, own.label_logits)
    assert step.state_dict() == resumed.state_dict()


def test_a_rate_that_is_given_stays_what_it_is():
    case, labels, step = build()
    step(case.train, case.meta)
    step.label_lr = 4.0
    before = labels.label_logits.clone()
    result = step(case.train, case.meta)
    assert float((labels.label_logits - before).norm()) == pytest.approx(4 * float(result.label_grad_norm))
    assert step.label_lr == step.state_dict()["label_lr"] == 4.0
    step.label_lr = None
    assert step.label_lr is None
    step(case.train, case.meta)
    assert step.label_lr != 4.0


def test_what_is_refused():
    with pytest.raises(ValueError, match="got both; leave one out"):
        build(label_lr=1.0, label_step=0.1)
    for wrong in (-1.0, math.inf, math.nan, "0.1", True):
        with pytest.raises(ValueError, match="label_step must be None or a finite number >= 0"):
            build(label_step=wrong)
