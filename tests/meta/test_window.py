"""A look-ahead of K steps: its gradient against autograd through K unrolled steps, and the whole step, in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastmeta
from fastmeta import reference
from fastmeta.meta import window_gradient
from tests.support import cases, losses
from tests.support.meta import F64, FAMILIES, make_labels, relative

LR = 0.3


def windows(case, steps, seed=0):
    """Batches whose rows repeat, within one and among several; the last is smaller."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for k in range(steps):
        n = len(case.index) - (k == steps - 1 > 0)
        x = case.x[torch.randperm(len(case.x), generator=generator)[:n]]
        index = torch.randint(len(case.targets), (n,), generator=generator)
        index[0] = 3
        batches.append((x + 0.1 * torch.randn(x.shape, generator=generator, dtype=F64), index))
    return batches


def truth_of(case, labels, batches, weights=None, lookahead=None):
    instance = isinstance(labels, fastmeta.InstanceLabels)

    def loss_of(index):
        def loss(phi, logits):
            if instance:
                probs = reference.instance_probs(phi[labels.parameter][index])
            else:
                probs = reference.class_probs(phi[labels.parameter], case.targets[index])
            return reference.soft_cross_entropy(logits, probs, reduction="none")

        return loss

    return reference.window_gradient(
        case.model,
        [loss_of(index) for _, index in batches],
        {labels.parameter: labels.label_logits if instance else labels.alpha},
        [x for x, _ in batches],
        case.x_meta,
        case.y_meta,
        lookahead=lookahead or reference.SGDState(LR),
        weights=weights,
    )


def whole(labels, grad, batches):
    """A gradient by rows of the batches as one of the whole table."""
    if not isinstance(labels, fastmeta.InstanceLabels):
        return grad
    index = torch.cat([index for _, index in batches])
    return torch.zeros_like(labels.label_logits).index_add_(0, index, grad)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["mlp", "resnet", "groupnorm"])
def test_exact(name, family, steps):
    case = cases.make(name)
    labels, batches = make_labels(family, case), windows(case, steps)
    before = copy.deepcopy(case.model.state_dict())
    out = window_gradient(case.model, labels, batches, case.meta, lr=LR)
    truth = truth_of(case, labels, batches)
    assert relative(whole(labels, out.grads[labels.parameter], batches), truth.grads[labels.parameter]) < 1e-10
    assert torch.allclose(out.train_loss, truth.train_loss, rtol=1e-12)
    assert torch.allclose(out.meta_loss, truth.meta_loss, rtol=1e-12)
    assert torch.allclose(out.logits, truth.logits, rtol=1e-10)
    assert all(torch.equal(t, before[k]) for k, t in case.model.state_dict().items())


def test_curvature_counts():
    """What one would have without the Hessians is far from it, so that the tests above see them."""
    case = cases.make("mlp")
    labels, batches = make_labels(fastmeta.InstanceLabels, case), windows(case, 3)
    out = window_gradient(case.model, labels, batches, case.meta, lr=3.0)
    first = fastmeta.meta_gradient(case.model, labels, batches[0], case.meta, lr=3.0)
    n = len(batches[0][1])
    assert relative(out.grads["label_logits"][:n], first.grads["label_logits"]) > 1e-2
    truth = truth_of(case, labels, batches, lookahead=reference.SGDState(3.0))
    assert relative(whole(labels, out.grads["label_logits"], batches), truth.grads["label_logits"]) < 1e-10


def test_one_batch_is_the_one_step():
    case = cases.make("resnet")
    labels = make_labels(fastmeta.InstanceLabels, case)
    out = window_gradient(case.model, labels, [case.train], case.meta, lr=LR)
    one = fastmeta.meta_gradient(case.model, labels, case.train, case.meta, lr=LR)
    assert relative(out.grads["label_logits"], one.grads["label_logits"]) < 1e-12
    assert relative(out.tangent, one.tangent) < 1e-12
    assert relative(out.alignment, one.alignment) < 1e-11
    assert torch.allclose(out.loss, one.loss, rtol=1e-12)


def test_weights_and_rates_of_groups():
    case = cases.make("mlp")
    labels, batches = make_labels(fastmeta.InstanceLabels, case), windows(case, 3)
    weights = [torch.rand(len(index), dtype=F64) + 0.5 for _, index in batches]
    out = window_gradient(case.model, labels, batches, case.meta, lr=LR, weight=weights)
    truth = truth_of(case, labels, batches, weights)
    assert relative(whole(labels, out.grads["label_logits"], batches), truth.grads["label_logits"]) < 1e-10
    layers = list(case.model.parameters())
    groups = torch.optim.SGD([{"params": layers[:2], "lr": 0.1}, {"params": layers[2:], "lr": 0.5}], lr=1, momentum=0.9)
    by_group = window_gradient(case.model, labels, batches, case.meta, optimizer=groups)
    # theta = rate * eta: a rate of its own is another parametrisation, which the reference knows through the model
    scaled = copy.deepcopy(case)
    scaled.model = Scaled(case.model, [0.1] * 2 + [0.5] * (len(layers) - 2))
    truth = truth_of(scaled, labels, batches, lookahead=reference.SGDState(1.0))
    assert relative(whole(labels, by_group.grads["label_logits"], batches), truth.grads["label_logits"]) < 1e-10


class Scaled(nn.Module):
    """`model` with parameters sqrt(rate) eta, whose SGD steps in eta at rate 1 are steps in theta at that rate."""

    def __init__(self, model, rates):
        super().__init__()
        self.inner = [copy.deepcopy(model)]
        self.names = [name for name, _ in model.named_parameters()]
        self.roots = [rate**0.5 for rate in rates]
        self.eta = nn.ParameterList(p.detach() / root for p, root in zip(model.parameters(), self.roots, strict=True))

    def forward(self, x):
        theta = {name: eta * root for name, eta, root in zip(self.names, self.eta, self.roots, strict=True)}
        return torch.func.functional_call(self.inner[0], theta, (x,))


@pytest.mark.parametrize("kind", ["SampleWeights", "WeightingNet", "Corrector", "Temperatures"])
def test_learned_losses(kind):
    torch.manual_seed(0)
    case = cases.make("mlp")
    loss, batches = getattr(losses, kind)(case.targets, case.num_classes), windows(case, 3)
    out = window_gradient(case.model, loss, batches, case.meta, lr=LR)
    seen = [loss.seen_by(index, x) for x, index in batches]
    truth = reference.window_gradient(
        case.model,
        [loss_of for _, loss_of in seen],
        seen[0][0],
        [x for x, _ in batches],
        *case.meta,
        lookahead=reference.SGDState(LR),
    )
    assert out.grads.keys() == truth.grads.keys()
    for name, grad in truth.grads.items():
        assert relative(out.grads[name], grad) < 1e-10, name


# ---- the whole step ----


def by_hand(case, labels, batches, eta):
    """Labels along the reference's gradient, then plain torch: new table, model and optimizer."""
    model = copy.deepcopy(case.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
    moved = copy.deepcopy(labels)
    grad = truth_of(case, labels, batches).grads[labels.parameter]
    table = getattr(moved, labels.parameter)
    table.sub_(eta * grad)
    if isinstance(labels, fastmeta.ClassLabels):
        table.clamp_(0, 1)
    for x, index in batches:
        loss = moved(model(x), index).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return moved, model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_step(name, family):
    """Labels, weights, momentum and running statistics after windows of 3, 3 and 2 batches."""
    case = cases.make(name)
    labels, eta = make_labels(family, case), 40.0 if family is fastmeta.InstanceLabels else 3.0
    mine, model = copy.deepcopy(labels), copy.deepcopy(case.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
    step = fastmeta.MetaStep(model, mine, optimizer, label_lr=eta, lookahead_steps=3)
    batches = windows(case, 3)
    result = step(batches, case.meta)
    labels, trained = by_hand(case, labels, batches, eta)
    assert relative(getattr(mine, labels.parameter), getattr(labels, labels.parameter)) < 1e-11
    for (key, own), other in zip(model.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-12), key
    rows = sum(len(index) for _, index in batches)
    assert result.logits.shape == (rows, case.num_classes)
    assert result.loss.shape == result.entropy.shape == result.alignment.shape == (rows,)
    assert bool(result.finite)
    assert step.steps == 3
    assert step(batches[:2], case.meta).logits.shape[0] == sum(len(i) for _, i in batches[:2])
    assert step.steps == 5
    assert "3 steps of plain SGD" in step.explain()


def test_dropout_is_the_same_in_both():
    """The model's steps draw what its look-ahead drew: for labels that do not move they are the look-ahead."""
    torch.manual_seed(0)
    case = cases.make("mlp")
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, case.num_classes)).double()
    labels, batches = make_labels(fastmeta.InstanceLabels, case), windows(case, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=0.0, lookahead_steps=3)
    start = copy.deepcopy(model)
    torch.manual_seed(5)
    result = step(batches, case.meta)
    torch.manual_seed(5)
    ahead = window_gradient(start, labels, batches, case.meta, lr=LR)
    assert torch.allclose(result.logits, ahead.logits, rtol=1e-12)


class Block(nn.Module):
    def __init__(self, checkpointed, num_classes):
        super().__init__()
        self.first, self.last, self.checkpointed = nn.Linear(6, 8), nn.Linear(8, num_classes), checkpointed
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3))

    def forward(self, x):
        hidden = self.first(x)
        return self.last(
            checkpoint(self.inner, hidden, use_reentrant=False) if self.checkpointed else self.inner(hidden)
        )


def test_checkpointing_changes_nothing():
    case, made = cases.make("mlp"), []
    batches = windows(case, 3)
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model, labels = Block(checkpointed, case.num_classes).double(), make_labels(fastmeta.InstanceLabels, case)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        fastmeta.MetaStep(model, labels, optimizer, label_lr=40.0, lookahead_steps=3)(batches, case.meta)
        made.append([*model.parameters(), labels.label_logits])
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*made, strict=True))


def test_a_loss_of_ones_own_moves_once():
    torch.manual_seed(0)
    case = cases.make("mlp")
    loss, batches = losses.SampleWeights(case.targets, case.num_classes), windows(case, 2)
    grad = window_gradient(case.model, loss, batches, case.meta, lr=LR).grads["weight"]
    start = loss.weight.detach().clone()
    step = fastmeta.MetaStep(
        case.model,
        loss,
        torch.optim.SGD(case.model.parameters(), lr=LR),
        loss_optimizer=torch.optim.SGD(loss.parameters(), lr=7.0),
        lookahead_steps=2,
    )
    result = step(batches, case.meta)
    assert torch.allclose(loss.weight, start - 7.0 * grad, rtol=1e-12)
    assert torch.allclose(result.label_grad_norm, grad.norm())


@pytest.mark.parametrize("where", ["train", "second step", "on_grad"])
def test_a_bad_window_changes_nothing(where):
    case = cases.make("resnet")
    labels, batches = make_labels(fastmeta.InstanceLabels, case), windows(case, 3)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=LR, momentum=0.9)
    calls = []

    def on_grad(grads):
        calls.append(1)
        if len(calls) == 5:
            if where == "on_grad":
                raise KeyboardInterrupt
            next(iter(grads.values())).fill_(float("nan"))

    step = fastmeta.MetaStep(
        case.model,
        labels,
        optimizer,
        label_lr=40.0,
        lookahead_steps=3,
        on_grad=None if where == "train" else on_grad,
    )
    step(batches, case.meta)
    state = copy.deepcopy([case.model.state_dict(), labels.state_dict(), optimizer.state_dict()["state"]])
    if where == "train":
        batches[1][0][0, 0] = float("nan")
    if where == "on_grad":
        with pytest.raises(KeyboardInterrupt):
            step(batches, case.meta)
    else:
        assert not bool(step(batches, case.meta).finite)
        assert int(step.nonfinite_steps) == 3
    now = [case.model.state_dict(), labels.state_dict(), optimizer.state_dict()["state"]]
    for old, new in zip(state[:2], now[:2], strict=True):
        assert all(torch.equal(t, new[k]) for k, t in old.items())
    for key, old in state[2].items():
        assert torch.equal(old["momentum_buffer"], now[2][key]["momentum_buffer"])


def test_default_rate_moves_labels_as_far_as_it_says():
    case = cases.make("mlp")
    labels, generator = make_labels(fastmeta.InstanceLabels, case), torch.Generator().manual_seed(1)
    step = fastmeta.MetaStep(
        case.model, labels, torch.optim.SGD(case.model.parameters(), lr=LR), label_step=0.2, lookahead_steps=3
    )
    rows = torch.randperm(len(case.targets), generator=generator)[:6].split(2)
    before = labels.label_logits.clone()
    step([(case.x[:2], index) for index in rows], case.meta)
    moved = (labels.label_logits - before)[torch.cat(rows)].norm(dim=1)
    assert moved.square().mean().sqrt() == pytest.approx(0.2, rel=1e-6)


def test_a_single_batch_goes_the_usual_way():
    """Bitwise that of a step without look-ahead steps, and of a model whose tangent is double-vjp."""
    case = cases.make("mlp")
    made = []
    for steps in (1, 4):
        model, labels = copy.deepcopy(case.model), make_labels(fastmeta.InstanceLabels, case)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        step = fastmeta.MetaStep(model, labels, optimizer, label_lr=5.0, tangent="reverse", lookahead_steps=steps)
        step(case.train if steps == 1 else [case.train], case.meta)
        made.append([*model.parameters(), labels.label_logits])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"lookahead_steps": 0}, "lookahead_steps must be a whole number from 1 on, got 0"),
        ({"lookahead_steps": 1.5}, "lookahead_steps must be a whole number from 1 on, got 1.5"),
        ({"lookahead": "optimizer"}, "lookahead_steps=2 does not go with lookahead='optimizer'"),
        ({"tangent": "forward"}, "lookahead_steps=2 does not go with tangent='forward'"),
        ({"compile": "trace"}, "lookahead_steps=2 does not go with compile='trace'"),
        ({"approx": "delayed"}, "lookahead_steps=2 does not go with approx='delayed'"),
        ({"micro_batch": 4}, "lookahead_steps=2 does not go with micro_batch=4"),
    ],
)
def test_refused(more, wrong):
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=LR)
    with pytest.raises(ValueError, match=wrong):
        fastmeta.MetaStep(case.model, labels, optimizer, **{"lookahead_steps": 2, **more})


def test_out_of_memory_names_the_way_out():
    case = cases.make("mlp")

    full = []

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = case.model

        def forward(self, x):
            if full:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner(x)

    model, labels = Large(), make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=LR), label_lr=1.0, lookahead_steps=3)
    step(windows(case, 3), case.meta)
    full.append(True)
    with pytest.raises(fastmeta.meta.OutOfMemory, match="Ways out: a smaller lookahead_steps"):
        step(windows(case, 3), case.meta)


def test_batches_that_do_not_fit():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(
        case.model, labels, torch.optim.SGD(case.model.parameters(), lr=LR), label_lr=1.0, lookahead_steps=2
    )
    with pytest.raises(ValueError, match="takes at most 2 train batches at once, got 3"):
        step(windows(case, 3), case.meta)
    one = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=LR))
    with pytest.raises(ValueError, match=r"train is a list of 3 batches.*lookahead_steps=3"):
        one(windows(case, 3), case.meta)
    with pytest.raises(ValueError, match="weight must be None or a list"):
        step(windows(case, 2), case.meta, weight=torch.ones(3))
    with pytest.raises(ValueError, match="train batch 1 of 0 to 1: index must lie in"):
        step([case.train, (case.x, case.index + 1000)], case.meta)
    with pytest.raises(ValueError, match=r"number 1 is no pair \(x, index\)"):
        step([case.train, case.x], case.meta)
    with pytest.raises(ValueError, match=r"index must be an int64 vector .*, got list"):
        step((case.x, [0, 1]), case.meta)
    for other, got in (([], "a list of 0"), (iter([case.train]), "list_iterator")):
        with pytest.raises(ValueError, match=f"for lookahead_steps=2, a list of 1 to 2 of them, got {got}"):
            step(other, case.meta)
    assert one([case.train], case.meta).finite  # a loop over any number of steps


class Once(torch.autograd.Function):
    """A backward that has no derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Square(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_no_double_backward():
    case = cases.make("mlp")
    model = nn.Sequential(nn.Linear(6, 8), Square(), nn.Linear(8, case.num_classes)).double()
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=LR), lookahead_steps=2)
    with pytest.raises(RuntimeError, match=r"=2 goes back by double-vjp.*lookahead_steps=1.*Run fastmeta"):
        step(windows(case, 2), case.meta)
