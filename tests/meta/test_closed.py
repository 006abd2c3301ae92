"""Chains of linear layers, whose passes are products: exact as by autograd, and left as soon as they are none."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastmeta
from fastmeta import reference
from tests.support.cases import Case
from tests.support.meta import F64, FAMILIES, make_labels, reference_gradient, relative, run_fast, run_reference
from tests.support.pairs import parametrize_some

IN, CLASSES = 6, 4


def shared():
    layer = nn.Linear(8, 8)
    return nn.Sequential(nn.Linear(IN, 8), nn.ReLU(), layer, nn.ReLU(inplace=True), layer, nn.Linear(8, CLASSES))


def tied():
    model = nn.Sequential(nn.Linear(IN, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES))
    model[3].weight, model[3].bias = model[2].weight, None
    return model


def frozen():
    model = nn.Sequential(nn.Linear(IN, 8), nn.SiLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


CHAINS = {
    "head": lambda: nn.Linear(IN, CLASSES),
    "head without bias": lambda: nn.Linear(IN, CLASSES, bias=False),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(IN, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(IN, 8, bias=False), nn.GELU()),
        nn.Dropout(0.0),
        nn.Sequential(nn.Identity(), nn.Linear(8, 8), nn.SiLU(inplace=True), nn.Linear(8, CLASSES)),
        nn.Softplus(),
    ),
    "functions": lambda: nn.Sequential(
        nn.Linear(IN, 8), nn.ReLU(inplace=True), nn.Tanh(), nn.ReLU(), nn.Linear(8, CLASSES), nn.LeakyReLU(inplace=True)
    ),
    "shared": shared,
    "tied": tied,
    "frozen": frozen,
}


def make(name):
    torch.manual_seed(0)
    n, m, size = 9, 7, 24
    return Case(
        CHAINS[name]().double() if isinstance(name, str) else name,
        torch.randn(n, IN, dtype=F64),
        torch.randn(m, IN, dtype=F64),
        torch.randint(CLASSES, (size,)),
        torch.randperm(size)[:n],
        torch.randint(CLASSES, (m,)),
        CLASSES,
    )


@parametrize_some(2, name=list(CHAINS), family=FAMILIES, weighted=[False, True])
def test_exact(name, family, weighted):
    case = make(name)
    labels = make_labels(family, case)
    weight = torch.rand(len(case.index), dtype=F64) if weighted else None
    out = fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=0.3, weight=weight)
    truth = reference_gradient(case, labels, reference.SGDState(0.3), weight)
    assert out.plan.closed
    assert relative(out.grad, truth.grad) < 1e-10
    torch.testing.assert_close(out.meta_loss, truth.meta_loss, rtol=1e-12, atol=0)
    by_autograd = fastmeta.label_gradient(
        case.model, labels, case.train, case.meta, lr=0.3, tangent="reverse", weight=weight
    )
    assert not by_autograd.plan.closed
    assert relative(out.tangent, by_autograd.tangent) < 1e-13


@parametrize_some(2, name=list(CHAINS), family=FAMILIES, lookahead=["sgd", "optimizer", 0.3])
def test_whole_steps(name, family, lookahead):
    case = make(name)
    twin, labels = copy.deepcopy(case), make_labels(family, case)
    options = {"lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    optimizer = torch.optim.SGD([p for p in case.model.parameters() if p.requires_grad], **options)
    truth = run_reference(twin, make_labels(family, case), lookahead, optimizer.param_groups[0], 4)
    step = run_fast(case, labels, optimizer, 4, lookahead=lookahead)
    assert step.plan.closed
    assert relative(labels.label_logits if labels.family == "instance" else labels.alpha, truth) < 1e-10
    for p, q in zip(case.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(IN, CLASSES)

    def forward(self, x):
        return self.layer(x)


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 1


def with_norm():
    return nn.Sequential(nn.Linear(IN, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES))


def with_own_forward():
    model = CHAINS["mlp"]()
    model[1].forward = lambda x: nn.functional.linear(x, 2 * model[1].weight)
    return model


OTHERS = {
    "a module of one's own": Own,
    "a layer of one's own": lambda: OwnLinear(IN, CLASSES),
    "LayerNorm": with_norm,
    "another forward": with_own_forward,
    "dropout": lambda: nn.Sequential(nn.Linear(IN, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)),
    "flatten later": lambda: nn.Sequential(nn.Linear(IN, 8), nn.Flatten(), nn.Linear(8, CLASSES)),
    "function first": lambda: nn.Sequential(nn.ReLU(), nn.Linear(IN, CLASSES)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(IN, CLASSES)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_chain(name):
    case = make(OTHERS[name]().double())
    labels = make_labels(fastmeta.InstanceLabels, case)
    out = fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=0.3)
    assert not out.plan.closed
    if name != "dropout":
        assert relative(out.grad, reference_gradient(case, labels, reference.SGDState(0.3)).grad) < 1e-10


def hooked(register):
    """Registers a hook that counts, and gives the counts and what takes it away."""
    calls = []
    return calls, register(lambda *args, **kwargs: calls.append(1))


HOOKS = {
    "forward": lambda m, f: m[1].register_forward_hook(f),
    "forward with kwargs": lambda m, f: m[1].register_forward_hook(f, with_kwargs=True),
    "forward, always": lambda m, f: m[1].register_forward_hook(f, always_call=True),
    "forward pre": lambda m, f: m[2].register_forward_pre_hook(f),
    "backward": lambda m, f: m[3].register_full_backward_hook(f),
    "backward pre": lambda m, f: m[3].register_full_backward_pre_hook(f),
    "of a parameter": lambda m, f: m[3].weight.register_hook(f),
    "of the whole": lambda m, f: m.register_forward_hook(f),
    "of all modules": lambda m, f: nn.modules.module.register_module_forward_hook(f),
    "of all backwards": lambda m, f: nn.modules.module.register_module_full_backward_hook(f),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_later_are_called(name):
    case = make("mlp")
    step = fastmeta.MetaStep(
        case.model, make_labels(fastmeta.InstanceLabels, case), torch.optim.SGD(case.model.parameters(), lr=0.1)
    )
    step(case.train, case.meta)
    assert step.plan.closed
    calls, handle = hooked(lambda f: HOOKS[name](case.model, f))
    try:
        step(case.train, case.meta)
        assert calls
    finally:
        handle.remove()
    calls.clear()
    step(case.train, case.meta)
    assert not calls


def test_a_hook_that_changes_what_is_computed():
    case = make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    options = {"label_lr": 40.0, "lookahead": 0.3}
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1), **options)
    step(case.train, case.meta)
    twin, twin_labels = copy.deepcopy(case.model), copy.deepcopy(labels)
    for model in (case.model, twin):
        model[1].register_forward_hook(lambda m, args, out: out * 1.5)
    other = fastmeta.MetaStep(
        twin, twin_labels, torch.optim.SGD(twin.parameters(), lr=0.1), tangent="reverse", **options
    )
    step(case.train, case.meta)
    other(case.train, case.meta)
    torch.testing.assert_close(labels.label_logits, twin_labels.label_logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(case.model.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)


def test_dropout_that_is_switched_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)).double().eval()
    case = make(model)
    step = fastmeta.MetaStep(
        model, make_labels(fastmeta.InstanceLabels, case), torch.optim.SGD(model.parameters(), lr=0.1)
    )
    first = step(case.train, case.meta).logits
    assert step.plan.closed
    model.train()
    before = torch.get_rng_state()
    step(case.train, case.meta)
    assert not step.plan.closed
    assert not torch.equal(before, torch.get_rng_state())
    model.eval()
    step(case.train, case.meta)
    assert step.plan.closed
    assert first.shape == (len(case.index), CLASSES)


def test_parts_and_shapes_that_come_later():
    """A frozen layer, a layer in another's place, other dtypes, inputs of more dimensions."""
    case = make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1))
    step(case.train, case.meta)
    weight = case.model[1].weight.detach().clone()
    case.model[1].weight.requires_grad_(False)
    step(case.train, case.meta)
    assert torch.equal(weight, case.model[1].weight)
    with torch.no_grad():
        case.model[1].weight.data = 2 * weight  # memory of its own
    at = fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=0.3)
    assert relative(at.grad, reference_gradient(case, labels, reference.SGDState(0.3)).grad) < 1e-10
    step((case.x.view(-1, 2, IN // 2), case.index), case.meta)
    case.model[2] = nn.Sigmoid()
    result = step(case.train, case.meta)
    torch.testing.assert_close(step.model(case.x).shape, result.logits.shape)
    with pytest.raises(RuntimeError, match="dtype"):
        step((case.x.float(), case.index), case.meta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_left_to_autograd(dtype):
    case = make("mlp")
    model, labels = case.model.float(), fastmeta.InstanceLabels(case.targets, CLASSES)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1))
    train, meta = (case.x.float(), case.index), (case.x_meta.float(), case.y_meta)
    step(train, meta)
    assert step.plan.closed
    state = step.state_dict()
    resumed = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1))
    resumed.load_state_dict(state)
    with torch.autocast("cpu", dtype):
        step(train, meta)
        assert not step.plan.closed
        logits = resumed(train, meta).logits  # by a plan of a run without autocast
    assert logits.dtype == torch.float32
    assert torch.equal(logits, logits.to(dtype).float())


class Weights(fastmeta.LearnableLoss):
    """A loss that does not say how many classes there are."""

    def __init__(self, targets):
        super().__init__()
        self.register_buffer("targets", targets)
        self.weight = nn.Parameter(torch.ones(len(targets), dtype=F64))

    def forward(self, logits, index, x=None):
        return self.weight[index] * nn.functional.cross_entropy(logits, self.targets[index], reduction="none")


def test_classes_that_cross_entropy_leaves_out():
    case = make("mlp")
    y_meta = case.y_meta.clone()
    y_meta[2] = -100
    made = [
        fastmeta.meta_gradient(
            case.model, Weights(case.targets), case.train, (case.x_meta, y_meta), lr=0.3, tangent=tangent
        )
        for tangent in ("auto", "reverse")
    ]
    assert [out.plan.closed for out in made] == [True, False]
    torch.testing.assert_close(made[0].grads, made[1].grads, rtol=1e-12, atol=1e-14)


def test_rows_that_do_not_belong_together():
    case = make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1))
    step(case.train, case.meta)
    with pytest.raises(ValueError, match="x and index must belong together"):
        step((case.x[:-1], case.index), case.meta)
    with pytest.raises(ValueError, match="must belong together"):
        step(case.train, (case.x_meta[:-1], case.y_meta))


# -------------------------------------------------------------------------------------------------------------
# What a step costs where an operation is a few microseconds
# -------------------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))


def python_calls(function):
    count = 0

    def see(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def warm_step(model, **options):
    torch.manual_seed(0)
    labels = fastmeta.InstanceLabels(torch.randint(4, (200,)), 4)
    step = fastmeta.MetaStep(
        model, labels, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), label_lr=10.0, **options
    )
    batches = (torch.randn(20, 16), torch.arange(20)), (torch.randn(20, 16), torch.randint(4, (20,)))
    for _ in range(3):
        step(*batches)
    return lambda: step(*batches)


def small():
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize(
    ("model", "options", "products", "operations", "calls"),
    [
        (nn.Linear(16, 4), {}, 6, 81, 328),
        (small(), {}, 16, 121, 357),
        (small(), {"tangent": "reverse"}, 16, 165, 732),
    ],
    ids=["head", "chain", "graphs"],
)
def test_what_a_warm_step_makes(model, options, products, operations, calls):
    """Of products a head: 2 forwards, 3 pulls, 1 push; two layers: 2 * 2, 3 * 3 and 3, as many as autograd makes."""
    step = warm_step(model, **options)
    with Operations() as seen:
        step()
    made = [name for name in seen.names if name in ("aten.mm", "aten.addmm", "aten.addmm_")]
    assert len(made) == products
    assert len(seen.names) <= operations
    assert python_calls(step) <= calls
