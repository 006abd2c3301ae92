"""The distance of an approximate step from the exact one, measured on the way: what it is, and that nothing else is."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import fastmeta
from fastmeta import reference
from tests.support import cases
from tests.support.layers import OnceDifferentiable
from tests.support.losses import built
from tests.support.meta import F64, FAMILIES, make_labels, reference_gradient
from tests.support.ranks import run_ranks

APPROX = ["last:1", "difference", "delayed", "every:3"]


def step_of(case, labels, **kw):
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.2, momentum=0.9)
    return fastmeta.MetaStep(case.model, labels, optimizer, label_lr=5.0, **kw)


def numbers(distance):
    return None if distance is None else [float(t) for t in vars(distance).values()]


def of_vectors(ours, exact):
    a, e = (torch.cat([g.flatten() for g in gs]) for gs in (ours, exact))
    return [float(t) for t in (a @ e / (a.norm() * e.norm()), a.norm() / e.norm(), (a - e).norm() / e.norm())]


def last_layer_alone(model, count=1):
    """A copy whose trunk is frozen."""
    model = copy.deepcopy(model).requires_grad_(False)
    for module in [m for m in model.modules() if list(m.parameters(recurse=False))][-count:]:
        module.requires_grad_(True)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_last_layers(family):
    """The label gradient of a model whose trunk is frozen beside that of the whole model, by the reference."""
    case = cases.make("resnet")
    labels, sgd = make_labels(family, case), reference.SGDState(0.2)
    exact = reference_gradient(case, labels, sgd).grad
    near = copy.deepcopy(case)
    near.model = last_layer_alone(case.model)
    ours = reference_gradient(near, labels, sgd).grad
    found = numbers(step_of(case, labels, approx="last:1", watch_every=1)(case.train, case.meta).distance)
    assert found == pytest.approx(of_vectors([ours], [exact]), rel=1e-9)
    assert 0 < found[0] < 0.9999


@pytest.mark.parametrize("family", FAMILIES)
def test_delayed(family):
    """Gradients of the training loss at one theta: under the labels before, and under those that the step moves to."""
    case = cases.make("mlp")
    labels = make_labels(family, case)
    old = labels.probs(case.index)
    twin = copy.deepcopy((case, labels))
    step_of(*twin)(case.train, case.meta)  # exact: what the labels become
    params = list(case.model.parameters())
    gradients = [
        torch.autograd.grad(reference.soft_cross_entropy(case.model(case.x), probs), params)
        for probs in (old, twin[1].probs(case.index))
    ]
    found = numbers(step_of(case, labels, approx="delayed", watch_every=1)(case.train, case.meta).distance)
    assert found == pytest.approx(of_vectors(*gradients), rel=1e-9)
    assert found[2] > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_every(family):
    """The gradient of the first step of three beside the sum of all, with batches that share rows."""
    case = cases.make("mlp")
    labels, generator = make_labels(family, case), torch.Generator().manual_seed(0)
    step = step_of(case, labels, approx="every:3", watch_every=4)
    found, gradients = [], []
    for _ in range(12):
        case.index = torch.randperm(len(case.targets), generator=generator)[: len(case.index)]
        grad = reference_gradient(case, labels, reference.SGDState(0.2)).grad
        whole = grad if family is fastmeta.ClassLabels else torch.zeros_like(labels.label_logits)
        gradients.append(whole if whole is grad else whole.index_add_(0, case.index, grad))
        found.append(numbers(step(case.train, case.meta).distance))
    # steps 0, 4 and 8: the threes that begin at 0, 3 (which holds step 4) and 6 (step 8)
    assert [k for k, d in enumerate(found) if d is not None] == [2, 5, 8]
    for last in (2, 5, 8):
        three = gradients[last - 2 : last + 1]
        assert found[last] == pytest.approx(of_vectors(three[:1], [sum(three)]), rel=1e-8)


def test_difference():
    case = cases.make("attention")
    labels = make_labels(fastmeta.InstanceLabels, case)
    both = [
        fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=0.2, tangent=tangent).grad
        for tangent in ("difference", "auto")
    ]
    for how in ({"approx": "difference"}, {"tangent": "difference"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which says that it is inexact
            d = numbers(step_of(*copy.deepcopy((case, labels)), watch_every=1, **how)(case.train, case.meta).distance)
        truth = of_vectors([both[0]], [both[1]])
        assert d[0] == pytest.approx(1, abs=1e-9)
        assert d[2] == pytest.approx(truth[2], rel=1e-3)
        assert d[2] > 0


@pytest.mark.parametrize("name", ["weighting net", "corrector", "sample weights"])
def test_learned_losses(name):
    case = cases.make("mlp")
    step = built(name, case, approx="last:1", watch_every=1)
    sgd = {"lookahead": "sgd", "optimizer": step.optimizer}
    exact = fastmeta.meta_gradient(step.model, step.loss, case.train, case.meta, **sgd).grads
    near = last_layer_alone(step.model)
    ours = fastmeta.meta_gradient(near, step.loss, case.train, case.meta, lr=step.optimizer.param_groups[0]["lr"]).grads
    found = numbers(step(case.train, case.meta).distance)
    assert found == pytest.approx(of_vectors(ours.values(), [exact[k] for k in ours]), rel=1e-9)


def test_weights_of_one_step():
    """Those of L2RW, a gradient for each row of the batch."""
    case = cases.make("mlp")
    loss = fastmeta.BatchWeights(case.targets, 10).double()
    both = [
        fastmeta.meta_gradient(model, loss, case.train, case.meta, lr=0.2).grads["weight"]
        for model in (last_layer_alone(case.model), case.model)
    ]
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.2)
    step = fastmeta.MetaStep(case.model, loss, optimizer, approx="last:1", watch_every=1)
    assert numbers(step(case.train, case.meta).distance) == pytest.approx(of_vectors(both[:1], both[1:]), rel=1e-9)


class Noisy(nn.Module):
    """Draws from torch's and Python's generators, and moves buffers and a plain attribute."""

    def __init__(self, case):
        super().__init__()
        self.inner, self.drop, self.norm = case.model, nn.Dropout(0.2), nn.BatchNorm1d(6, dtype=F64)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.inner(self.drop(self.norm(x)))


def trained(approx, compile, family, watch, steps=5, loss=None, **kw):
    torch.manual_seed(5)
    case = cases.make("mlp")
    case.model = Noisy(case)
    if loss is not None:
        step = built(loss, case, "sgd", approx=approx, compile=compile, watch_every=watch)
    else:
        step = step_of(case, make_labels(family, case), approx=approx, compile=compile, watch_every=watch, **kw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that have no graph
        found = [step(case.train, case.meta).distance for _ in range(steps)]
    optimizers = [o for o in (step.optimizer, step.loss_optimizer) if o is not None]
    moved = [*step.model.state_dict().values(), *step.loss.state_dict().values(), torch.get_rng_state()]
    moved += [t for o in optimizers for s in o.state.values() for t in s.values() if t is not None]
    return found, [*moved, torch.tensor(step.model.calls)], step


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("compile", ["off", pytest.param("trace", marks=pytest.mark.slow)])
def test_training_is_the_same_bitwise(approx, compile, family):
    found, watched, _ = trained(approx, compile, family, 1)
    none, alone, _ = trained(approx, compile, family, None)
    assert len(watched) == len(alone)
    assert all(map(torch.equal, watched, alone))
    assert none == [None] * 5
    assert sum(d is not None for d in found) == (1 if approx == "every:3" else 5)
    assert all(0 < float(d.cosine) <= 1 + 1e-12 for d in found if d is not None)


def test_a_graph_is_the_same_bitwise():
    found, watched, step = trained("last:1", "trace", fastmeta.InstanceLabels, 2)
    _, alone, _ = trained("last:1", "trace", fastmeta.InstanceLabels, None)
    assert all(map(torch.equal, watched, alone))
    assert [d is not None for d in found] == [True, False, True, False, True]
    assert len(step.graphs) == 1


@pytest.mark.parametrize(("loss", "approx"), [("weighting net", "delayed"), ("corrector", "every:3")])
def test_training_of_a_loss_is_the_same_bitwise(loss, approx):
    found, watched, _ = trained(approx, "off", None, 1, loss=loss)
    _, alone, _ = trained(approx, "off", None, None, loss=loss)
    assert all(map(torch.equal, watched, alone))
    assert any(d is not None for d in found)


@pytest.mark.parametrize("kw", [{"micro_batch": 3}, {"autocast": True}])
def test_pieces_and_autocast(kw):
    """Watched as the step is taken: pieces change nothing but rounding, bfloat16 both vectors."""
    case = cases.make("mlp", dtype=torch.float32)
    found, autocast = [], kw.pop("autocast", False)
    for watch in (1, None):
        own = copy.deepcopy(case)
        step = step_of(own, make_labels(fastmeta.InstanceLabels, own).float(), approx="last:1", watch_every=watch, **kw)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found.append((numbers(step(own.train, own.meta).distance), [*own.model.parameters()]))
    own = copy.deepcopy(case)
    whole = step_of(own, make_labels(fastmeta.InstanceLabels, own).float(), approx="last:1", watch_every=1)
    truth = numbers(whole(own.train, own.meta).distance)
    assert found[0][0] == pytest.approx(truth, rel=0.1 if autocast else 1e-4)
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_a_period_that_has_begun_goes_on():
    found, moved, _ = trained("every:3", "off", fastmeta.InstanceLabels, 1, steps=6)
    _, _, first = trained("every:3", "off", fastmeta.InstanceLabels, 1, steps=5)
    rng = torch.get_rng_state()
    _, _, second = trained("every:3", "off", fastmeta.InstanceLabels, 1, steps=0)
    for a, b in ((first.model, second.model), (first.loss, second.loss), (first.optimizer, second.optimizer)):
        b.load_state_dict(a.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.set_rng_state(rng)
    torch.manual_seed(5)
    case = cases.make("mlp")
    torch.set_rng_state(rng)
    assert numbers(second(case.train, case.meta).distance) == numbers(found[5])
    state = [*second.model.state_dict().values(), *second.loss.state_dict().values(), torch.get_rng_state()]
    assert all(map(torch.equal, state, moved))
    # a state of before there was a watch, or of other ranks: the period is left out, the next one is not
    state = first.state_dict()
    for other in (
        {k: v for k, v in state.items() if k != "watched"},
        {**state, "watched": {**state["watched"], "ranks": 2}},
    ):
        second.load_state_dict(other)
        assert [second(case.train, case.meta).distance is None for _ in range(4)] == [True, True, True, False]


def test_what_is_not_finite_has_no_distance():
    case = cases.make("mlp")
    step = step_of(case, make_labels(fastmeta.InstanceLabels, case), approx="last:1", watch_every=2)
    assert step(case.train, case.meta).distance is not None
    assert step(case.train, case.meta).distance is None
    assert step((case.x * float("nan"), case.index), case.meta).distance is None
    step.label_lr = 5.0
    assert step(case.train, case.meta).distance is None
    assert step(case.train, case.meta).distance is not None


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5, dtype=F64), nn.Linear(5, 10, dtype=F64)

    def forward(self, x):
        return self.last(OnceDifferentiable.apply(self.first(x)))


def test_a_model_without_an_exact_step_trains_on_unwatched():
    """Which may be why it trains by its last layer."""
    case = cases.make("mlp")
    case.model = Trunk()
    step = step_of(case, make_labels(fastmeta.InstanceLabels, case), approx="last:1", watch_every=1)
    with pytest.warns(UserWarning, match="distance from the exact step is not watched: no exact tangent works") as told:
        results = [step(case.train, case.meta) for _ in range(3)]
    assert [str(w.message)[:20] for w in told].count("the distance from th") == 1
    assert told[-1].filename == __file__
    assert all(r.distance is None and bool(r.finite) for r in results)
    assert step.plan is not None
    assert step.plan.kind == "reverse"
    assert "watched:    no: no exact tangent" in step.explain()


def test_an_exact_pass_that_does_not_fit_is_left_out(monkeypatch):
    """Which may be why one trains by the last layer; of the step itself nothing is missing."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    found, moved, _ = trained("last:1", "off", fastmeta.InstanceLabels, None)
    monkeypatch.setattr("fastmeta.meta.distance.plan_tangent", full)
    texts = []
    torch.manual_seed(5)
    case = cases.make("mlp")
    case.model = Noisy(case)
    step = step_of(case, make_labels(fastmeta.InstanceLabels, case), approx="last:1", watch_every=1)
    step.on_warning = texts.append
    assert [step(case.train, case.meta).distance for _ in range(5)] == found
    assert texts == ["the distance from the exact step is not watched: it does not fit into memory"]
    now = [*step.model.state_dict().values(), *step.loss.state_dict().values(), torch.get_rng_state()]
    assert all(map(torch.equal, now, moved))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", ["off", "full"])
@pytest.mark.parametrize("approx", APPROX)
def test_on_cuda(approx, compile):
    """As on the host, and between the replays of a captured graph."""
    runs = []
    for watch in (None, 2):
        case = cases.make("mlp")
        case.model, labels = case.model.cuda(), make_labels(fastmeta.InstanceLabels, case).cuda()
        train, meta = ([t.cuda() for t in pair] for pair in (case.train, case.meta))
        step = step_of(case, labels, approx=approx, compile=compile, watch_every=watch)
        found = [numbers(step(train, meta).distance) for _ in range(7)]
        runs.append([*case.model.parameters(), labels.label_logits])
    assert all(map(torch.equal, *runs))
    case = cases.make("mlp")
    step = step_of(case, make_labels(fastmeta.InstanceLabels, case), approx=approx, watch_every=2)
    for d in found:
        expected = numbers(step(case.train, case.meta).distance)
        assert (d is None) == (expected is None)
        if d is not None:  # a difference's error is mostly rounding
            assert d[:2] == pytest.approx(expected[:2], rel=1e-5 if approx == "difference" else 1e-8)


def test_what_is_refused():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    for bad in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="watch_every must be None or a whole number of steps from 1 on, got"):
            step_of(case, labels, approx="last:1", watch_every=bad)
    with pytest.raises(ValueError, match="watch_every=10 is about approximate steps, and approx is None"):
        step_of(case, labels, watch_every=10)


def job(rank, size, folder):
    torch.save(on_ranks(rank, size, dist.group.WORLD), f"{folder}/{rank}.pt")


def on_ranks(rank, size, group):
    """Distances of each approximation, on this rank's part of the batches, by where the label rows lie."""
    found = []
    case = cases.make("mlp")
    x = torch.randn(len(case.targets), 6, dtype=F64)
    half = len(case.targets) // 2
    for own_rows in (False, True):
        for family in FAMILIES:
            for approx in ("last:1", "delayed", "every:2"):
                own = copy.deepcopy(case)
                labels, shift = make_labels(family, own), 0
                if own_rows:
                    shift = rank * half
                    labels = family(own.targets[shift : shift + half] if group else own.targets, 10, 0.8, dtype=F64)
                step = step_of(own, labels, approx=approx, watch_every=1, process_group=group, own_rows=own_rows)
                for k in range(2):
                    # of all ranks; each has rows of its own half, some of them in both batches, one twice where it may
                    rows = torch.tensor([2, 5 + k, 9, 2 + 3 * own_rows, 13, 15 + k, 20, 21]).chunk(size)[rank]
                    meta = own.x_meta.chunk(size)[rank], own.y_meta.chunk(size)[rank]
                    result = step((x[rows], rows - shift), meta)
                found.append(numbers(result.distance))
    return found


@pytest.mark.slow
def test_ranks(tmp_path):
    """Two ranks see what one process sees, and both the same."""
    run_ranks(job, 2, tmp_path, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    for a, b in zip(first, on_ranks(0, 1, None), strict=True):
        assert a == pytest.approx(b, rel=1e-8)
