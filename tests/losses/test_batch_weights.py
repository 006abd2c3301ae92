"""Weights of a batch, made anew in each step: held against the paper's algorithm in plain autograd."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import fastmeta
from fastmeta import reference
from tests.support.cases import make
from tests.support.losses import assert_bad_step_changes_nothing, same
from tests.support.ranks import run_ranks

LR = 0.3


def built(case, **kw):
    model = copy.deepcopy(case.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
    return fastmeta.MetaStep(model, fastmeta.BatchWeights(case.targets, case.num_classes), optimizer, **kw)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("model", ["mlp", "resnet", "attention"])
def test_the_gradient_is_that_of_autograd_through_the_look_ahead(model, weighted):
    case = make(model, 5)
    loss = fastmeta.BatchWeights(case.targets, 5).double()
    weight = torch.rand(len(case.index), dtype=torch.float64) if weighted else None
    phi, function = loss.seen_by(case.index, case.x)
    sgd = reference.SGDState(LR)
    truth = reference.meta_gradient(case.model, function, phi, case.x, *case.meta, lookahead=sgd, weight=weight)
    out = fastmeta.meta_gradient(case.model, loss, case.train, case.meta, lr=LR, weight=weight)
    assert float((out.grads["weight"] - truth.grads["weight"]).norm() / truth.grads["weight"].norm()) < 1e-10


def published(model, optimizer, case, weight=None):
    """Algorithm 1 of Ren et al. as it is written: an unrolled step at weights of zero; the weights (n,)."""
    loss_of = lambda: F.cross_entropy(model(case.x), case.targets[case.index], reduction="none")  # noqa: E731
    buffers = copy.deepcopy(dict(model.named_buffers()))
    losses = loss_of()
    eps = torch.zeros_like(losses, requires_grad=True)
    own = 1.0 if weight is None else weight
    grads = torch.autograd.grad((eps * own * losses).sum(), list(model.parameters()), create_graph=True)
    ahead = {k: p - LR * g for (k, p), g in zip(model.named_parameters(), grads, strict=True)}
    logits = torch.func.functional_call(model, {**ahead, **copy.deepcopy(buffers)}, (case.x_meta,))
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, case.y_meta), eps)
    w = (-grad).clamp(min=0)
    w = w / w.sum() if float(w.sum()) else w
    for name, b in model.named_buffers():
        b.copy_(buffers[name])
    optimizer.zero_grad()
    (w * own * loss_of()).sum().backward()
    optimizer.step()
    return w


VARIANTS = {
    "eager": {},
    "forward": {"tangent": "forward"},
    "reverse": {"tangent": "reverse"},
    "pieces": {"micro_batch": 5},
    "in turn": {"micro_batch": 12},
    "trace": {"compile": "trace"},
}


@pytest.mark.parametrize(
    ("variant", "model", "weighted"),
    [(v, "mlp", v != "trace") for v in VARIANTS]
    + [("eager", "resnet", False), pytest.param("trace", "resnet", True, marks=pytest.mark.slow)],
)
def test_whole_iterations_are_those_of_the_paper(variant, model, weighted):
    case = make(model, 5)
    weight = torch.rand(len(case.index), dtype=torch.float64) + 0.5 if weighted else None
    step, naive = built(case, **VARIANTS[variant]), copy.deepcopy(case.model)
    optimizer = torch.optim.SGD(naive.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
    for _ in range(3):
        result = step(case.train, case.meta, weight=weight)
        w = published(naive, optimizer, case, weight)
    assert not step.eager_because
    assert bool(result.finite)
    pulls = (result.alignment * (1.0 if weight is None else weight)).clamp(min=0)
    torch.testing.assert_close(pulls / pulls.sum(), w, rtol=1e-8, atol=1e-12)
    assert 0 < int((w == 0).sum()) < len(w)
    same(step.model, naive)


def against(case):
    """The one sample of the batch, with the other class."""
    x, y = case.x[:1], case.targets[case.index[:1]]
    return (x, case.index[:1]), (x, (y + 1) % 2)


@pytest.mark.parametrize("compile", ["off", pytest.param("trace", marks=pytest.mark.slow)])
def test_a_batch_that_pulls_nowhere_moves_the_model_by_momentum_and_decay_alone(compile):
    case = make("mlp", 2)
    step = built(case, compile=compile)
    step(case.train, case.meta)
    train, meta = against(case)
    naive = copy.deepcopy(step.model)
    wanted = torch.optim.SGD(naive.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
    wanted.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    for p in naive.parameters():
        p.grad = torch.zeros_like(p)
    wanted.step()
    result = step(train, meta)
    assert bool((result.alignment < 0).all())
    assert bool(result.finite)
    assert float(result.loss.sum()) == 0
    same(step.model, naive)


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_a_step_that_is_not_finite_changes_nothing(compile):
    case = make("mlp", 5)
    assert_bad_step_changes_nothing(built(case, compile=compile), case)


def test_the_rate_has_no_influence():
    """It is that of the scale, which the sum takes away again; a rate of 0, too."""
    case = make("mlp", 5)
    moved = []
    for rate in (1e-3, 10.0, 1e-40):
        step = built(case, lookahead=rate)
        step(case.train, case.meta)
        moved.append(step.model)
    for other in moved[1:]:
        same(other, moved[0])


def test_what_a_weight_of_one_step_cannot_do_is_refused():
    case = make("mlp", 5)
    loss = fastmeta.BatchWeights(case.targets, 5)
    for approx in ("delayed", "every:2"):
        with pytest.raises(ValueError, match=f"approx='{approx}' trains on the loss of an earlier step"):
            built(case, approx=approx)
    with pytest.raises(TypeError, match="label_lr is a rate, and BatchWeights has none: leave it out"):
        built(case, label_lr=1.0)
    with pytest.raises(TypeError, match="BatchWeights is made anew in each step: leave it out"):
        built(case, loss_optimizer=torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=1.0))
    with pytest.raises(ValueError, match="BatchWeights makes its weights anew in each step and has none to move"):
        fastmeta.EpochLookahead(case.model, loss).update([case.train], [case.meta])
    assert "BatchWeights, made anew in each step" in built(case).explain()
    assert fastmeta.check(case.model, loss, case.train, case.meta, LR, timing=False).ok


def job(rank, size, folder):
    case = make("mlp", 5)
    step = built(case, process_group=dist.group.WORLD)
    part = lambda t: t.chunk(size)[rank]  # noqa: E731
    for _ in range(3):
        step((part(case.x), part(case.index)), (part(case.x_meta), part(case.y_meta)))
    torch.save(step.model.state_dict(), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_ranks_share_the_sum_of_the_weights(tmp_path):
    run_ranks(job, 2, tmp_path, str(tmp_path))
    case = make("mlp", 5)
    step = built(case)
    for _ in range(3):
        step(case.train, case.meta)
    for rank in range(2):
        for key, t in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(t, step.model.state_dict()[key], rtol=1e-10, atol=1e-12)
