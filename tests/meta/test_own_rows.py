"""Ranks whose losses hold rows of their own learn what one process learns with all rows, and send no labels."""

import pytest
import torch
import torch.distributed as dist

import fastmeta
from fastmeta.distributed import ALONE, Ranks
from tests.support.label_tables import Halves
from tests.support.own_rows import CLASSES, Problem, counted
from tests.support.ranks import run_ranks

STEPS = 4
F64 = torch.float64


def instance(targets, first):
    return fastmeta.InstanceLabels(targets, CLASSES, 0.7, dtype=F64)


def table(targets, first):
    return fastmeta.InstanceLabels(targets, CLASSES, 0.7, dtype=F64, table=Halves)


def momentum(targets, first):
    return fastmeta.losses.MomentumLabels(targets, CLASSES, 0.7, momentum=0.8, dtype=F64)


def simplex(targets, first):
    return fastmeta.losses.SimplexLabels(targets, CLASSES, 0.7, dtype=F64)


def classes(targets, first):
    return fastmeta.ClassLabels(targets, CLASSES, 0.7, dtype=F64)


def rounded(targets, first):
    return fastmeta.InstanceLabels(targets, CLASSES, 0.5, dtype=torch.bfloat16, seed=5, first_row=first)


def l2rw(targets, first):
    return fastmeta.BatchWeights(targets, CLASSES).double()


def weighting(targets, first):
    """Its weights are divided by their sum over the rows of all ranks."""
    torch.manual_seed(2)
    group = dist.group.WORLD if dist.is_initialized() else None
    return fastmeta.WeightingNet(targets, CLASSES, 7, "sum", group).double()


FAMILIES = {f.__name__: f for f in (instance, table, momentum, simplex, classes, rounded, l2rw, weighting)}
RATE = {"simplex": 2.0, "classes": 2.0, "l2rw": None, "weighting": None}
OWN_OPTIMIZER = ("weighting",)
#: name -> family, changes of the step, what is poisoned
JOBS = {name: (name, {"label_lr": RATE.get(name, 20.0)}, False) for name in FAMILIES}
JOBS |= {f"normalised {name}": (name, {}, False) for name in ("instance", "momentum", "simplex", "classes")}
JOBS |= {f"poisoned {name}": (name, {}, True) for name in ("instance", "rounded", "table", "classes", "l2rw")}
JOBS |= {
    "reverse": ("instance", {"tangent": "reverse", "lookahead": "optimizer"}, False),
    "pieces": ("instance", {"micro_batch": 3}, False),
    "delayed": ("instance", {"approx": "delayed"}, False),
    "last": ("classes", {"approx": "last:1"}, False),
    "weighted": ("instance", {"weight": True}, False),
}
#: in a graph, whose collectives are operations of it
JOBS |= {f"traced {name}": (name, {"compile": "trace"}, True) for name in ("classes", "weighting")}
MORE = {
    f"traced {name}": (name, {"compile": "trace"}, False)
    for name in ("instance", "table", "momentum", "rounded", "l2rw")
}
MORE |= {
    "traced delayed": ("instance", {"compile": "trace", "approx": "delayed", "lookahead": "optimizer"}, False),
    "traced every": ("classes", {"compile": "trace", "approx": "every:2"}, False),
    "full": ("instance", {"compile": "full"}, False),
}
EVERY = JOBS | MORE


def learned(key, group, eagerly=False):
    """Label parameters, model and what the steps tell; of this rank's rows."""
    family, changes, poison = EVERY[key]
    changes, ranks = dict(changes), Ranks(group)
    weighted = changes.pop("weight", False)
    if eagerly:
        changes.pop("compile", None)
    problem = Problem(torch.float32 if family == "rounded" else F64)
    a, b = problem.own(ranks)
    loss = FAMILIES[family](problem.targets[a:b], a)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-3)
    own = torch.optim.Adam(loss.parameters(), lr=0.05) if family in OWN_OPTIMIZER else None
    how = {"process_group": group, "own_rows": True, "loss_optimizer": own}
    step = fastmeta.MetaStep(problem.model, loss, optimizer, **how, **changes)
    told = []
    for number in range(STEPS):
        rows = problem.batch(number, ranks)
        x = problem.x[rows].clone()
        if poison and number == 1 and ranks.rank == ranks.size - 1:
            x[-1] = torch.nan
        weight = (1 + rows % 3).to(x.dtype) if weighted else None
        result = step((x, rows - a), problem.clean(ranks), weight=weight)
        told.append((bool(result.finite), float(result.label_grad_norm)))
    assert not step._untraced, step._untraced
    assert (step._graphs is not None) == ("compile" in changes)
    state = {name: t.clone() for name, t in loss.named_buffers()}
    state |= {"probs": loss.probs(torch.arange(b - a))} if isinstance(loss, fastmeta.losses.Labels) else {}
    shared = {f"loss {name}": p.detach() for name, p in loss.named_parameters()}
    return state, problem.model.state_dict() | shared, told


def moved_at_epochs(name, group):
    """Labels behind the end of an epoch, by EpochLookahead, and what it tells."""
    ranks, problem = Ranks(group), Problem()
    a, b = problem.own(ranks)
    loss = FAMILIES[name](problem.targets[a:b], a)
    how = {"steps": 3, "lr": 0.1, "process_group": group, "own_rows": True}
    lookahead = fastmeta.EpochLookahead(problem.model, loss, **how)
    x, index = problem.x[a:b], torch.arange(b - a)
    train = list(zip(x.split(3), index.split(3), strict=True))
    r = lookahead.update(train, problem.clean(ranks))
    bad = problem.x_meta * (torch.nan if ranks.rank == ranks.size - 1 else 1)
    assert not lookahead.update(train, (bad, problem.y_meta)).finite
    return loss.probs(index), (r.rows, r.change, r.alignment)


def estimated(own, group):
    """The posterior of this rank's rows, or of all; and what each rank says where one of them gives rows twice."""
    ranks, problem = Ranks(group), Problem()
    a, b = problem.own(ranks)
    first, last = (a, b) if own else (0, len(problem.targets))
    labels = fastmeta.InstanceLabels(problem.targets[first:last], CLASSES, 0.7, dtype=F64)
    how = {"steps": 4, "lr": 0.1, "batch_size": 5, "process_group": group, "own_rows": own}
    posterior = fastmeta.LabelPosterior(problem.model.float(), labels, **how)
    index = torch.arange(a - first, b - first)
    train = list(zip(problem.x[a:b].float().split(3), index.split(3), strict=True))
    clean = problem.x_meta.float(), problem.y_meta
    e = posterior.estimate(train, clean)
    more = train[:1] if ranks.rank == 0 else []
    with pytest.raises(ValueError, match="train must give each of the 21 rows once, got 0 of them never and 3 more"):
        posterior.estimate([*train, *more], clean)
    spoilt = [(x * (torch.nan if ranks.rank == 0 else 1), i) for x, i in train]
    with pytest.raises(FloatingPointError, match="training rows have logits that are not finite"):
        posterior.estimate(spoilt, clean)
    return e.probs, e.predicted, e.transition, (e.right, e.clean_accuracy, e.inverse_temperature)


#: as users have them, in float32
IN_FLOAT32 = {
    "instance": lambda targets: fastmeta.InstanceLabels(targets, CLASSES, 0.7),
    "classes": lambda targets: fastmeta.ClassLabels(targets, CLASSES, 0.7),
    "l2rw": lambda targets: fastmeta.BatchWeights(targets, CLASSES),
}


def fifty_steps(name, group):
    """Model and label distributions of this rank's rows behind 50 steps in float32."""
    problem, ranks = Problem(torch.float32), Ranks(group)
    a, b = problem.own(ranks)
    loss = IN_FLOAT32[name](problem.targets[a:b])
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
    rate = {"instance": 20.0, "classes": 2.0}.get(name)
    step = fastmeta.MetaStep(problem.model, loss, optimizer, label_lr=rate, process_group=group, own_rows=True)
    for number in range(50):
        rows = problem.batch(number, ranks)
        step((problem.x[rows], rows - a), problem.clean(ranks))
    probs = loss.probs(torch.arange(b - a)) if isinstance(loss, fastmeta.losses.Labels) else torch.zeros(b - a, 1)
    return problem.model.state_dict(), probs


EPOCHS = ("instance", "table", "classes")


def more(rank, size, folder):
    for key in MORE:
        torch.save(learned(key, dist.group.WORLD), f"{folder}/{key} {rank}.pt")


def job(rank, size, folder):
    group = dist.group.WORLD
    for key in JOBS:
        torch.save(learned(key, group), f"{folder}/{key} {rank}.pt")
    for name in EPOCHS:
        torch.save(moved_at_epochs(name, group), f"{folder}/epoch {name} {rank}.pt")
    for own in (True, False):
        torch.save(estimated(own, group), f"{folder}/posterior {own} {rank}.pt")
    for name in IN_FLOAT32:
        torch.save(fifty_steps(name, group), f"{folder}/fifty {name} {rank}.pt")
    torch.save(bytes_of_a_step(group), f"{folder}/bytes {rank}.pt")


def bytes_of_a_step(group):
    sent = {}
    for family in ("instance", "momentum", "simplex", "classes"):
        problem, ranks = Problem(), Ranks(group)
        a, b = problem.own(ranks)
        loss = FAMILIES[family](problem.targets[a:b], a)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.3, momentum=0.9)
        step = fastmeta.MetaStep(problem.model, loss, optimizer, process_group=group, own_rows=True)
        for number in range(2):
            rows = problem.batch(number, ranks)
            with counted() as of_step:
                step((problem.x[rows], rows - a), problem.clean(ranks))
        sent[family] = of_step.bytes
    return sent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own-rows")
    run_ranks(job, 2, folder, str(folder))
    return folder


def both(folder, key):
    return [torch.load(folder / f"{key} {rank}.pt") for rank in range(2)]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("key", JOBS)
def test_steps(key, folder):
    check(key, folder)


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_fifty_steps_in_float32_differ_by_rounding(name, folder):
    """The network is smooth: what one step rounds does not grow by switching ReLUs."""
    parts, (model, probs) = both(folder, f"fifty {name}"), fifty_steps(name, None)
    start = Problem(torch.float32).model.state_dict()
    for network, _ in parts:
        for key, t in network.items():
            torch.testing.assert_close(t, model[key], rtol=1e-4, atol=1e-4)
            assert (t - start[key]).abs().max() > 1e-2  # a hundred times what may differ
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), probs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_steps_in_graphs(tmp_path):
    run_ranks(more, 2, tmp_path, str(tmp_path), seconds=300)
    for key in MORE:
        check(key, tmp_path)


def check(key, folder):
    parts, family = both(folder, key), FAMILIES[EVERY[key][0]]
    state, model, told = learned(key, None, eagerly=True)
    for _, network, own_told in parts:
        assert [t[0] for t in own_told] == [t[0] for t in told] == [True, not EVERY[key][2], True, True]
        for (finite, norm), (_, of_one) in zip(own_told, told, strict=True):
            assert not finite or norm == pytest.approx(of_one, rel=1e-4 if family is rounded else 1e-9, nan_ok=True)
        if family is rounded:
            continue
        for name, t in network.items():
            close(t, model[name])
    assert all(torch.equal(t, parts[1][1][name]) for name, t in parts[0][1].items())  # bit for bit
    for name, t in state.items():
        joined = parts[0][0][name] if t.ndim == 0 or name == "alpha" else torch.cat([p[0][name] for p in parts])
        if name.startswith("table"):
            continue
        if family is rounded:  # but for the draws that a last bit of float32 decides
            assert (joined != t).double().mean() < 0.02
        else:
            close(joined, t)


@pytest.mark.parametrize("name", EPOCHS)
def test_moves_at_the_end_of_an_epoch(name, folder):
    parts, (probs, told) = both(folder, f"epoch {name}"), moved_at_epochs(name, None)
    close(torch.cat([p[0] for p in parts]), probs)
    for _, own_told in parts:
        assert own_told == pytest.approx(told, rel=1e-10)


@pytest.mark.parametrize("own", [True, False])
def test_posteriors(own, folder):
    parts, (probs, predicted, transition, told) = both(folder, f"posterior {own}"), estimated(own, None)
    for k, truth in enumerate((probs, predicted)):
        found = torch.cat([p[k] for p in parts]) if own else parts[1][k]
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)
    for part in parts:
        torch.testing.assert_close(part[2], transition, rtol=1e-5, atol=1e-7)
        assert part[3] == pytest.approx(told, rel=1e-5)
    assert torch.equal(parts[0][2], parts[1][2])  # bit for bit
    assert parts[0][3] == parts[1][3]


def test_nothing_of_labels_is_sent(folder):
    """Three gradients of the model and a few scalars; of class labels two vectors of C numbers beside."""
    parameters = sum(p.numel() for p in Problem().model.parameters())
    for of_rank in both(folder, "bytes"):
        for family, sent in of_rank.items():
            extra = sent["all_reduce"] - 3 * 8 * parameters
            labels = 2 * 8 * CLASSES if family == "classes" else 0
            assert set(sent) == {"all_reduce"}, family
            assert 0 < extra - labels <= 64, (family, extra)


def test_rows_draw_by_their_number_in_all():
    """The part of a bfloat16 table from row 11 on moves bit for bit as those rows of the whole."""
    draws = torch.Generator().manual_seed(3)
    logits, u = (torch.randn(6, CLASSES, generator=draws) for _ in range(2))
    targets = Problem().targets
    for how in ("step", "move", "add", "head"):
        tables = []
        for first in (0, 11):
            labels = rounded(targets[first:], first)
            index = torch.tensor([12, 20, 13, 13, 16, 11]) - first
            if how == "step":
                labels.step_(logits, u, index, scale=0.1, label_lr=3.0)
            elif how == "move":
                labels.move_(index, u * 0.01, 1.0)
            elif how == "add":
                labels.add_(index[:3], u[:3] * 0.01)
            else:
                head = labels.head(index, None, None)
                head.loss(logits)
                head.step(logits, u, 0.1, torch.tensor(True), fastmeta.losses.Move(ALONE, 3.0))
            tables.append(labels.label_logits[11 - first :])
        assert torch.equal(*tables), how
        assert not torch.equal(tables[0], rounded(targets[11:], 11).label_logits)
    with pytest.raises(ValueError, match="first_row must be a whole number from 0 on, got -1"):
        rounded(targets, -1)
