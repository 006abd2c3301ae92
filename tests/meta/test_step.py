"""Whole iterations of Algorithm 1 against the reference, and what a step must leave alone."""

import copy

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import reference
from tests.support import cases
from tests.support.meta import F64, FAMILIES, bad_batches, make_labels, optimizers, relative, run_fast, run_reference
from tests.support.pairs import parametrize_some


@parametrize_some(
    2,
    name=cases.NAMES,
    family=FAMILIES,
    lookahead=["sgd", "optimizer", 0.05],
    kind=["plain", "momentum", "dampened", "nesterov"],
)
def test_five_steps_equal_the_reference(name, family, lookahead, kind):
    case = cases.make(name)
    labels = make_labels(family, case)
    truth = copy.deepcopy(case)
    optimizer = optimizers(list(case.model.parameters()))[kind]
    table = run_reference(truth, labels, lookahead, optimizer.param_groups[0], 5)
    run_fast(case, labels, optimizer, 5, lookahead=lookahead)
    learned = labels.label_logits if labels.family == "instance" else labels.alpha
    start = make_labels(family, case)
    first = start.label_logits if labels.family == "instance" else start.alpha
    assert relative(table, first) > 1e-3  # the labels went somewhere
    assert relative(learned, table) < 1e-10
    for (key, new), old in zip(case.model.state_dict().items(), truth.model.state_dict().values(), strict=True):
        assert torch.allclose(new, old, rtol=1e-10, atol=1e-12), key


@pytest.mark.parametrize("num_classes", [2, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_few_and_many_classes(family, num_classes):
    case = cases.make("resnet", num_classes)
    labels = make_labels(family, case)
    truth = copy.deepcopy(case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.2)
    table = run_reference(truth, labels, "sgd", optimizer.param_groups[0], 5)
    run_fast(case, labels, optimizer, 5)
    assert relative(labels.label_logits if labels.family == "instance" else labels.alpha, table) < 1e-10


@pytest.mark.parametrize("tangent", ["forward", "reverse"])
def test_batchnorm_statistics_move_once_and_by_the_train_batch(tangent):
    case = cases.make("resnet")
    truth = copy.deepcopy(case.model)
    truth(case.x)
    step = fastmeta.MetaStep(
        case.model,
        make_labels(fastmeta.InstanceLabels, case),
        torch.optim.SGD(case.model.parameters(), lr=0.1),
        label_lr=1.0,
        tangent=tangent,
    )
    step(case.train, case.meta)
    for (key, new), old in zip(case.model.named_buffers(), truth.buffers(), strict=True):
        assert torch.equal(new, old), key
        if key.endswith("num_batches_tracked"):
            assert int(new) == 1


def test_repeated_rows_get_the_sum():
    case = cases.make("mlp")
    case.index = torch.tensor([3, 1, 3, 3, 0, 1, 2, 5])
    labels = make_labels(fastmeta.InstanceLabels, case)
    start = labels.label_logits.clone()
    grad = fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=0.1).grad
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    fastmeta.MetaStep(case.model, labels, optimizer, label_lr=7.0)(case.train, case.meta)
    truth = start.index_add(0, case.index, grad, alpha=-7.0)
    assert relative(labels.label_logits - start, truth - start) < 1e-12


def test_dropout_draws_once_per_step():
    """The real update must see the mask of the look-ahead, so a step equals the reference with that mask fixed."""
    case = cases.make("mlp")
    mask = (torch.rand(8, 16, dtype=F64) < 0.5).double() * 2
    meta_mask = (torch.rand(12, 16, dtype=F64) < 0.5).double() * 2

    class Masked(nn.Module):
        def forward(self, h):
            return h * (mask if len(h) == 8 else meta_mask)

    class Seeded(nn.Module):
        """The same two masks, drawn from the global generator in the order train, meta."""

        def forward(self, h):
            return h * (torch.rand(h.shape, dtype=F64) < 0.5).double() * 2

    torch.manual_seed(3)
    mask, meta_mask = ((torch.rand(k, 16, dtype=F64) < 0.5).double() * 2 for k in (8, 12))
    truth = copy.deepcopy(case)
    truth.model.insert(2, Masked())
    case.model.insert(2, Seeded())
    labels = make_labels(fastmeta.InstanceLabels, case)
    table, _ = reference.meta_step(
        truth.model,
        labels.label_logits[case.index],
        reference.instance_probs,
        case.x,
        case.x_meta,
        case.y_meta,
        label_lr=5.0,
        optimizer=reference.SGDState(0.2),
    )
    for tangent in ("forward", "reverse"):
        mine, own = copy.deepcopy((case, labels))
        step = fastmeta.MetaStep(
            mine.model, own, torch.optim.SGD(mine.model.parameters(), lr=0.2), label_lr=5.0, tangent=tangent
        )
        torch.manual_seed(3)
        step(mine.train, mine.meta)
        assert relative(own.label_logits[case.index], table) < 1e-12
        for new, old in zip(mine.model.parameters(), truth.model.parameters(), strict=True):
            assert relative(new, old) < 1e-12


@pytest.mark.parametrize("where", ["train", "meta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_that_is_not_finite_changes_nothing(family, where):
    case = cases.make("resnet")
    labels = make_labels(family, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0)
    step(case.train, case.meta)
    before = copy.deepcopy((case.model.state_dict(), labels.state_dict(), optimizer.state_dict()["state"]))
    result = step(*bad_batches(case)[where])
    assert not bool(result.finite)
    assert int(step.nonfinite_steps) == 1
    model, table, state = before
    assert all(torch.equal(model[k], v) for k, v in case.model.state_dict().items())
    assert all(torch.equal(table[k], v) for k, v in labels.state_dict().items())
    for key, entry in optimizer.state_dict()["state"].items():
        assert torch.equal(state[key]["momentum_buffer"], entry["momentum_buffer"])
    assert bool(step(case.train, case.meta).finite)


def test_a_finite_but_huge_label_rate_is_normal():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1), label_lr=1e6)
    assert bool(step(case.train, case.meta).finite)
    assert bool(labels.label_logits.isfinite().all())


def test_result_and_hook():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    seen = {}

    def clip(grads):
        seen.update({k: g.clone() for k, g in grads.items()})
        for g in grads.values():
            g.zero_()

    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    theta = copy.deepcopy(case.model.state_dict())
    look = fastmeta.label_gradient(case.model, labels, case.train, case.meta, optimizer=optimizer)
    result = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=2.0, on_grad=clip)(case.train, case.meta)
    assert set(seen) == set(theta)
    assert all(torch.equal(theta[k], v) for k, v in case.model.state_dict().items())
    assert relative(result.label_grad_norm, look.grad.norm()) < 1e-6
    assert torch.allclose(result.train_loss, look.train_loss)
    assert torch.allclose(result.meta_loss, look.meta_loss)
    assert torch.allclose(result.alignment, look.alignment)
    assert torch.equal(result.logits, look.logits)
    p = labels.probs(case.index)
    assert torch.allclose(result.entropy, torch.special.entr(p).sum(-1))
    assert torch.allclose(result.loss, reference.soft_cross_entropy(look.logits, p, reduction="none"))
    assert all(p.grad is None for p in case.model.parameters())


def test_another_optimizer_with_a_fixed_lookahead():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-2)
    with pytest.raises(TypeError, match="got Adam; pass a float"):
        fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, lookahead=0.1)
    theta = copy.deepcopy(case.model.state_dict())
    assert bool(step(case.train, case.meta).finite)
    assert not torch.equal(theta["0.weight"], case.model.state_dict()["0.weight"])


def test_default_label_rate_and_explanation():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.5))
    assert "not chosen before the first step" in step.explain()
    step(case.train, case.meta)
    assert step.label_lr > 0
    assert "set in each step so that a visit moves a label by 0.3" in step.explain()
    assert "reverse (exact)" in step.explain()
    assert "Eq. 3" in step.explain()
    with pytest.raises(ValueError, match="label_lr must be None or a finite number"):
        fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.5), label_lr=float("nan"))


@pytest.mark.parametrize(
    ("kw", "error", "text"),
    [
        ({"loss": nn.Linear(2, 2)}, TypeError, r"loss must be .* another fastmeta.LearnableLoss, got Linear"),
        ({"tangent": "x"}, ValueError, "tangent must be one of auto, reverse, forward, difference, got 'x'"),
        ({"micro_batch": 2.5}, ValueError, "a whole number of rows from 1 on, got 2.5"),
        ({"label_lr": "5"}, ValueError, "label_lr must be None or a finite number >= 0, got '5'"),
        ({"compile": "fast"}, ValueError, "compile must be one of off, trace, full, got 'fast'"),
        ({"optimizer": None, "lookahead": 0.1}, TypeError, "optimizer must be a torch.optim.Optimizer, got NoneType"),
        ({"approx": "difference", "tangent": "reverse"}, ValueError, "by differences, got tangent='reverse'"),
    ],
)
def test_wrong_arguments_are_named_at_once(kw, error, text):
    case = cases.make("mlp")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.5)
    kw = {"loss": make_labels(fastmeta.InstanceLabels, case), "optimizer": optimizer, **kw}
    with pytest.raises(error, match=text):
        fastmeta.MetaStep(case.model, **kw)


class Partly(nn.Module):
    """One layer frozen, one that the logits do not reach."""

    def __init__(self):
        super().__init__()
        self.frozen, self.unreached, self.head = nn.Linear(6, 6), nn.Linear(2, 2), nn.Linear(6, 10)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(x)))


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_gradients_that_lie_there_move_nothing(compile):
    """The optimizer would step along them, where the step itself gives none."""
    case, start, moved = cases.make("mlp"), Partly().to(F64), []
    for left in (None, 1.0):
        model, labels = copy.deepcopy(start), make_labels(fastmeta.InstanceLabels, case)
        for p in model.parameters():
            p.grad = None if left is None else torch.full_like(p, left)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        fastmeta.MetaStep(model, labels, optimizer, label_lr=5.0, compile=compile)(case.train, case.meta)
        assert all(p.grad is None for p in model.parameters())
        moved.append(model.state_dict())
    for key, before in start.state_dict().items():
        assert torch.equal(moved[0][key], moved[1][key])
        assert torch.equal(moved[0][key], before) == (not key.startswith("head"))


class Refusing(torch.optim.SGD):
    def step(self, closure=None):
        raise TypeError("not today")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("approx", [None, "delayed"])
@pytest.mark.parametrize("where", ["on_grad", "optimizer"])
def test_an_error_of_the_callers_leaves_the_labels(where, approx, family):
    case = cases.make("mlp")
    labels = make_labels(family, case)
    before = copy.deepcopy((labels.state_dict(), case.model.state_dict()))

    def refuse(grads):
        raise KeyboardInterrupt("enough")

    optimizer = torch.optim.SGD if where == "on_grad" else Refusing
    step = fastmeta.MetaStep(
        case.model,
        labels,
        optimizer(case.model.parameters(), lr=0.5),
        label_lr=5.0,
        lookahead=0.5,
        on_grad=refuse if where == "on_grad" else None,
        approx=approx,
    )
    with pytest.raises(KeyboardInterrupt if where == "on_grad" else TypeError):
        step(case.train, case.meta)
    assert step.steps == 0
    for old, new in zip(before, (labels.state_dict(), case.model.state_dict()), strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)


class Signed(torch.optim.SGD):
    """Moves by the sign of the gradient: an SGD by name."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad.sign(), alpha=-group["lr"])


class Named(torch.optim.SGD):
    """An SGD in all but its name."""


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_an_sgd_with_a_step_of_its_own_is_another_optimizer(compile):
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    mine = Signed(case.model.parameters(), lr=0.25)
    for lookahead in ("sgd", "optimizer"):
        with pytest.raises(TypeError, match="got Signed; pass a float"):
            fastmeta.MetaStep(case.model, labels, mine, lookahead=lookahead)
        fastmeta.MetaStep(case.model, labels, Named(case.model.parameters(), lr=0.25), lookahead=lookahead)
    before = copy.deepcopy(case.model.state_dict())
    step = fastmeta.MetaStep(case.model, labels, mine, label_lr=5.0, lookahead=0.1, compile=compile)
    if compile == "trace":
        with pytest.warns(UserWarning, match=r"the graph holds torch\.optim\.SGD, not Signed"):
            step(case.train, case.meta)
    else:
        step(case.train, case.meta)
    for key, p in case.model.named_parameters():
        assert torch.allclose((p - before[key]).abs(), torch.full_like(p, 0.25)), key


@pytest.mark.parametrize("compile", ["off", "trace"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_is_none_moves_no_other(family, compile):
    """-1 would be the last row to Python."""
    case = cases.make("mlp")
    labels = make_labels(family, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.5)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=5.0, compile=compile)
    case.index[2] = -1
    before = copy.deepcopy(labels.state_dict())
    with pytest.raises(ValueError, match=r"index must lie in \[0, 23\]"):
        step(case.train, case.meta)
    assert all(torch.equal(before[k], v) for k, v in labels.state_dict().items())


def test_a_label_rate_that_is_assigned_is_checked():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.5), label_lr=5.0)
    for rate in (-1.0, float("inf"), float("nan"), "5"):
        with pytest.raises(ValueError, match="label_lr must be None or a finite number >= 0"):
            step.label_lr = rate
    assert step.label_lr == 5.0


def test_a_state_that_is_none_is_refused():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.5))
    with pytest.raises(ValueError, match="not the state of a MetaStep: it lacks label_lr, label_step"):
        step.load_state_dict({})


def test_state_continues_bitwise():
    case = cases.make("resnet", dtype=torch.float32)

    def build(model, labels):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return fastmeta.MetaStep(model, labels, optimizer, unique_index=True)

    labels = fastmeta.InstanceLabels(case.targets, 10, 0.8)
    step = build(case.model, labels)
    step(case.train, case.meta)
    saved = copy.deepcopy(
        (case.model.state_dict(), labels.state_dict(), step.optimizer.state_dict(), step.state_dict())
    )
    step(case.train, case.meta)

    other = cases.make("resnet", seed=9, dtype=torch.float32)
    fresh = fastmeta.InstanceLabels(case.targets, 10)
    resumed = build(other.model, fresh)
    for part, state in zip((other.model, fresh, resumed.optimizer, resumed), saved, strict=True):
        part.load_state_dict(state)
    resumed(case.train, case.meta)
    assert torch.equal(fresh.label_logits, labels.label_logits)
    assert all(torch.equal(a, b) for a, b in zip(other.model.parameters(), case.model.parameters(), strict=True))
    assert resumed.steps == step.steps == 2


def test_bf16_autocast_trains_batchnorm():
    """Train-mode BatchNorm under autocast has no forward derivative: the step must find the other way by itself."""
    case = cases.make("resnet", dtype=torch.float32)
    labels = fastmeta.InstanceLabels(case.targets, 10, 0.8)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1), label_lr=10.0)
    start = labels.label_logits.clone()
    with torch.autocast("cpu", torch.bfloat16):
        first = step(case.train, case.meta)
        second = step(case.train, case.meta)
    assert bool(first.finite)
    assert bool(second.finite)
    assert step.plan is not None
    assert step.plan.kind != "difference", step.plan
    assert labels.label_logits.dtype == torch.float32
    assert not torch.equal(start, labels.label_logits)
    # a stale cache of cast weights would repeat the first logits
    assert not torch.equal(first.logits, second.logits)
