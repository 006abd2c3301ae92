"""Any training loss with parameters of its own is learned by the same step: held against plain autograd."""

import copy

import pytest
import torch

import fastmeta
from fastmeta import reference
from tests.support.cases import make
from tests.support.losses import LOSSES, LR, built, loss_of, optimizers, same


def case_of(name="mlp", **kw):
    return make(name, 5, **kw)


def truth_of(model, loss, case, lookahead=None, weight=None):
    phi, function = loss.seen_by(case.index, case.x)
    sgd = lookahead or reference.SGDState(LR)
    return reference.meta_gradient(model, function, phi, case.x, *case.meta, lookahead=sgd, weight=weight)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def close(grads, truth):
    assert grads.keys() == truth.keys()
    for name, g in truth.items():
        assert relative(grads[name], g) < 1e-10, name


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("model", ["mlp", "resnet", "attention"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_autograd_through_the_look_ahead(name, model, weighted):
    case = case_of(model)
    loss = loss_of(name, case)
    weight = torch.rand(len(case.index), dtype=torch.float64) if weighted else None
    truth = truth_of(case.model, loss, case, weight=weight)
    out = fastmeta.meta_gradient(case.model, loss, case.train, case.meta, lr=LR, weight=weight)
    close(out.grads, truth.grads)
    assert relative(out.meta_loss, truth.meta_loss) < 1e-12
    assert relative(out.train_loss, truth.train_loss) < 1e-12


@pytest.mark.parametrize("family", [fastmeta.InstanceLabels, fastmeta.ClassLabels])
def test_label_families_are_learnable_losses(family):
    case = case_of()
    labels = family(case.targets, 5, 0.8, dtype=torch.float64)
    logits = torch.randn(8, 5, dtype=torch.float64)
    torch.testing.assert_close(labels(logits, case.index), labels.batch_loss(logits, case.index).loss)
    truth = truth_of(case.model, labels, case)
    out = fastmeta.meta_gradient(case.model, labels, case.train, case.meta, lr=LR)
    close(out.grads, truth.grads)
    short = fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=LR)
    assert torch.equal(short.grad, out.grads[labels.parameter])
    assert torch.equal(short.alignment, out.alignment)


def naive_steps(name, case, kind, count):
    """Plain autograd: the loss moves by its optimizer, then the model under the moved loss."""
    model, loss = copy.deepcopy(case.model), loss_of(name, case)
    optimizer, momenta = optimizers(kind, loss.parameters()), None
    for _ in range(count):
        truth = truth_of(model, loss, case)
        for key, p in loss.named_parameters():
            p.grad = truth.grads.get(key)
        optimizer.step()
        phi, function = loss.seen_by(case.index, case.x)
        sgd = reference.SGDState(LR, momentum=0.9, weight_decay=1e-3, buffers=momenta)
        momenta = reference.plain_step(model, function, {k: p.detach() for k, p in phi.items()}, case.x, optimizer=sgd)
    return model, loss


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("name", LOSSES)
def test_whole_iterations(name, kind):
    case = case_of()
    step = built(name, case, kind)
    for _ in range(3):
        result = step(case.train, case.meta)
    model, loss = naive_steps(name, case, kind, 3)
    same(step.loss, loss)
    same(step.model, model)
    assert bool(result.finite)
    assert result.entropy.isnan().all()


VARIANTS = {
    "forward": {"tangent": "forward"},
    "reverse": {"tangent": "reverse"},
    "pieces": {"micro_batch": 5},
    "in turn": {"micro_batch": 12},
    "trace": {"compile": "trace"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_engine_takes_the_same_step(name, variant):
    """Also in pieces, where a weighting net that normalises over the batch needs all of it."""
    case = case_of()
    plain, other = built(name, case), built(name, case, **VARIANTS[variant])
    for _ in range(2):
        a, b = plain(case.train, case.meta), other(case.train, case.meta)
    assert not other.eager_because
    same(other.loss, plain.loss)
    same(other.model, plain.model)
    for key in ("train_loss", "meta_loss", "loss", "alignment", "label_grad_norm"):
        torch.testing.assert_close(getattr(b, key), getattr(a, key), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizers_in_a_graph(kind):
    """Their state is torch's own: eager steps go on from a graph's, and schedules change no graph."""
    case = case_of()
    plain, other = built("weighting net", case, kind), built("weighting net", case, kind, compile="trace")
    for k in range(4):
        for step in (plain, other):
            step.loss_optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
            if k == 3:
                step.compile = "off"
            step(case.train, case.meta)
    assert len(other.graphs) == 1
    same(other.loss, plain.loss)
    for a, b in zip(other.loss_optimizer.state.values(), plain.loss_optimizer.state.values(), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("approx", "compile"),
    [(approx, "off") for approx in ("delayed", "every:2", "last:1", "difference")]
    + [(approx, "trace") for approx in ("delayed", "every:2", "last:1")],
)
def test_approximations(approx, compile):
    """What they do to the loss and to the model, for a loss of any kind."""
    case = case_of()
    step, start = built("sample weights", case, "sgd", approx=approx, compile=compile), case.model
    exact = built("sample weights", case, "sgd")
    for k in range(2):
        before, other = copy.deepcopy(step.loss.weight.detach()), copy.deepcopy(step.model)
        result = step(case.train, case.meta)
        if k == 0:
            exact(case.train, case.meta)
        if approx == "every:2" and k == 1:
            assert torch.equal(step.loss.weight, before)
            assert result.meta_loss.isnan()
        else:
            assert not torch.equal(step.loss.weight, before)
        if k == 0 and approx in ("delayed", "every:2"):
            torch.testing.assert_close(step.loss.weight, exact.loss.weight, rtol=1e-10, atol=1e-12)
        if k == 0 and approx == "delayed":  # the model goes by the weights of before
            loss = loss_of("sample weights", case)
            phi, function = loss.seen_by(case.index, case.x)
            sgd = reference.SGDState(LR, momentum=0.9, weight_decay=1e-3)
            wanted = copy.deepcopy(start)
            reference.plain_step(wanted, function, phi, case.x, optimizer=sgd)
            same(step.model, wanted)
        assert not all(map(torch.equal, step.model.parameters(), other.parameters()))
    if approx == "difference":
        assert relative(step.loss.weight.detach(), exact.loss.weight.detach()) < 0.5


class Noisy(fastmeta.LearnableLoss):
    """Draws a mask, keeps a running mean, and counts: all of it once per step."""

    def __init__(self, targets):
        super().__init__()
        self.register_buffer("targets", targets)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.weight = torch.nn.Parameter(torch.ones(len(targets), dtype=torch.float64))
        self.masks = []

    def forward(self, logits, index, x=None):
        mask = (torch.rand_like(logits[:, 0]) < 0.7).to(logits.dtype)
        self.masks.append(mask)
        loss = torch.nn.functional.cross_entropy(logits, self.targets[index], reduction="none")
        self.mean.mul_(0.9).add_(0.1 * loss.detach().mean())
        self.calls = self.calls + 1
        return self.weight[index] * mask * (loss - self.mean) + 1e-3 * loss


@pytest.mark.filterwarnings("ignore:compile=.trace.. the step runs eagerly")
@pytest.mark.parametrize("compile", ["off", "trace"])
@pytest.mark.parametrize("approx", [None, "every:2"])
def test_draws_and_buffers_of_a_loss_count_once(approx, compile):
    case = case_of()
    loss, model = Noisy(case.targets), copy.deepcopy(case.model)
    step = fastmeta.MetaStep(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.1),
        loss_optimizer=torch.optim.SGD(loss.parameters(), lr=1.0),
        approx=approx,
        compile=compile,
    )
    means = [0.0]
    for k in range(3):
        loss.masks.clear()
        result = step(case.train, case.meta)
        assert bool(result.finite)
        assert int(loss.calls) == k + 1
        assert all(torch.equal(m, loss.masks[0]) for m in loss.masks)
        assert float(loss.mean) != means[-1]
        means.append(float(loss.mean))
    before, state = torch.get_rng_state(), copy.deepcopy(loss.state_dict())
    fastmeta.meta_gradient(case.model, loss, case.train, case.meta, lr=0.1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(t, state[key]) for key, t in loss.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weighting net", "transition"])
def test_through_inductor(name):
    case = case_of()
    plain, other = built(name, case), built(name, case, compile="full")
    for _ in range(3):
        plain(case.train, case.meta)
        other(case.train, case.meta)
    assert not other.eager_because
    same(other.loss, plain.loss)
    same(other.model, plain.model)
