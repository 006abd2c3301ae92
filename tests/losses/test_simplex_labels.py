"""Labels whose parameters are the probabilities themselves: held against plain autograd and a projection by halving."""

import copy

import pytest
import torch
import torch.distributed as dist

import fastmeta
from fastmeta import reference
from fastmeta.losses import onto_simplex
from tests.support.cases import make
from tests.support.losses import assert_bad_step_changes_nothing, same
from tests.support.ranks import run_ranks

LR, ETA = 0.3, 4.0


def labels_of(case, p0=0.7):
    return fastmeta.SimplexLabels(case.targets, case.num_classes, p0, dtype=torch.float64)


def built(case, p0=0.7, **kw):
    model = copy.deepcopy(case.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
    return fastmeta.MetaStep(model, labels_of(case, p0), optimizer, label_lr=ETA, **kw)


def test_the_projection_is_the_nearest_distribution():
    rows = torch.randn(200, 7, dtype=torch.float64) * torch.logspace(-2, 3, 200, dtype=torch.float64)[:, None]
    made = onto_simplex(rows)
    torch.testing.assert_close(made, reference.onto_simplex(rows), rtol=0, atol=1e-10)
    inside = rows.softmax(1)
    torch.testing.assert_close(onto_simplex(inside), inside, rtol=0, atol=1e-14)
    torch.testing.assert_close(made.sum(1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((made >= 0).all())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p0", [0.7, 1.0])
@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_the_gradient_is_that_of_autograd_through_the_look_ahead(model, p0, weighted):
    case = make(model, 5)
    labels = labels_of(case, p0)
    weight = torch.rand(len(case.index), dtype=torch.float64) if weighted else None
    phi, function = labels.seen_by(case.index, case.x)
    sgd = reference.SGDState(LR)
    truth = reference.meta_gradient(case.model, function, phi, case.x, *case.meta, lookahead=sgd, weight=weight)
    out = fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=LR, weight=weight)
    g = truth.grads["label_probs"]
    assert float((out.grad - g).norm() / g.norm()) < 1e-10
    assert float(g.norm()) > 1e-4  # also at a hard label


VARIANTS = {
    "eager": {},
    "forward": {"tangent": "forward"},
    "pieces": {"micro_batch": 5},
    "unique": {"unique_index": True},
    "trace": {"compile": "trace"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_iterations(variant):
    case = make("mlp", 5)
    if variant == "unique":
        case.index = torch.randperm(len(case.targets))[: len(case.index)]
    step, model = built(case, **VARIANTS[variant]), copy.deepcopy(case.model)
    table, momenta = labels_of(case).label_probs.clone(), None
    for _ in range(3):
        rows = table[case.index]
        truth = reference.label_gradient(model, rows, lambda p: p, case.x, *case.meta, lookahead=reference.SGDState(LR))
        moved = table.index_put((case.index,), -ETA * truth.grad, accumulate=True)
        touched = case.index.unique()
        table[touched] = reference.onto_simplex(moved[touched])
        sgd = reference.SGDState(LR, momentum=0.9, weight_decay=1e-3, buffers=momenta)
        phi = {"p": table[case.index]}
        loss_of = lambda p, z: reference.soft_cross_entropy(z, p["p"], reduction="none")  # noqa: E731
        momenta = reference.plain_step(model, loss_of, phi, case.x, optimizer=sgd)
        result = step(case.train, case.meta)
    assert bool(result.finite)
    assert not step.eager_because
    torch.testing.assert_close(step.labels.label_probs, table, rtol=1e-9, atol=1e-10)
    same(step.model, model)


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_a_step_that_is_not_finite_changes_no_bit(compile):
    case = make("mlp", 5)
    assert_bad_step_changes_nothing(built(case, compile=compile), case)


def test_rows_that_no_batch_holds_stay_and_all_are_distributions():
    case = make("mlp", 5)
    case.index = case.index.clamp(max=len(case.targets) // 2)
    step = built(case, p0=1.0)
    start = step.labels.probs().clone()
    for _ in range(5):
        step(case.train, case.meta)
    p = step.labels.probs()
    rest = torch.ones(len(p), dtype=torch.bool).index_fill(0, case.index, False)
    assert torch.equal(p[rest], start[rest])
    assert not torch.equal(p, start)
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((p == 0).any())


def test_wrong_arguments_are_named():
    targets = torch.tensor([0, 1])
    for arguments, message in (
        ({"target_prob": 1.5}, r"target_prob must lie in \[0, 1\], got 1.5"),
        ({"dtype": torch.bfloat16}, "dtype must be one of torch.float32, torch.float64, got torch.bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            fastmeta.SimplexLabels(targets, 2, **arguments)
    labels, case = fastmeta.SimplexLabels(targets, 2), make("mlp", 2)
    with pytest.raises(ValueError, match="SimplexLabels move in steps"):
        fastmeta.EpochLookahead(case.model, labels).update([(case.x[:2], torch.arange(2))], [case.meta])
    with pytest.raises(TypeError, match=r"label_probs must be torch\.float64 for such logits, got torch\.float32"):
        labels.batch_loss(torch.zeros(2, 2, dtype=torch.float64), torch.arange(2))
    assert "label_probs" in repr(labels)


def job(rank, size, folder):
    case = make("mlp", 5)
    step = built(case, process_group=dist.group.WORLD)
    part = lambda t: t.chunk(size)[rank]  # noqa: E731
    for _ in range(3):
        step((part(case.x), part(case.index)), (part(case.x_meta), part(case.y_meta)))
    torch.save([*step.model.state_dict().values(), step.labels.label_probs], f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    run_ranks(job, 2, tmp_path, str(tmp_path))
    case = make("mlp", 5)
    step = built(case)
    for _ in range(3):
        step(case.train, case.meta)
    for rank in range(2):
        wanted = [*step.model.state_dict().values(), step.labels.label_probs]
        for a, b in zip(torch.load(tmp_path / f"{rank}.pt"), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
