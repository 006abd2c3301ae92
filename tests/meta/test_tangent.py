"""Which way makes the tangent for which layers: never a wrong one, and always said."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastmeta
from fastmeta import reference
from fastmeta.meta import label_gradient
from tests.support import cases
from tests.support.layers import Activation, Checkpointed, SilentOnce, SilentZero
from tests.support.meta import F64, make_labels, reference_gradient, relative


def gradient(model, case, **kw):
    labels = make_labels(fastmeta.InstanceLabels, case)
    case.model = model.to(F64)
    return label_gradient(case.model, labels, case.train, case.meta, lr=0.3, **kw), labels


def test_layers_without_a_double_backward_go_forward():
    case = cases.make("mlp")
    out, _ = gradient(nn.Sequential(nn.Linear(6, 16), nn.Hardsigmoid(), nn.Linear(16, 10)), case)
    assert out.plan.kind == "forward"
    assert "reverse raises" in out.plan.reason


def test_layers_without_forward_derivatives_go_in_reverse():
    case = cases.make("resnet")
    conv = nn.utils.weight_norm if hasattr(nn.utils, "weight_norm") else None
    assert conv is not None
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        first = conv(nn.Conv2d(2, 4, 3))
    out, labels = gradient(nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(16, 10)), case)
    assert relative(out.grad, reference_gradient(case, labels, reference.SGDState(0.3)).grad) < 1e-10


def test_fused_attention_runs_as_plain_maths():
    case = cases.make("attention")
    out, _ = gradient(case.model, case)
    assert out.plan.math_attention
    assert "scaled_dot_product" in out.plan.reason


def test_what_remains_is_a_difference_and_says_so():
    case = cases.make("embedding")

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(11, 6), nn.Linear(6, 10)

        def forward(self, tokens):
            return self.head(torch.tanh(self.bag(tokens)))

    out, _ = gradient(Bag(), case)
    assert out.plan.kind == "difference"
    assert "inexact, the last resort: reverse" in out.plan.reason
    with pytest.raises(RuntimeError, match="tangent='reverse' does not work on this model"):
        gradient(Bag(), case, tangent="reverse")


def test_a_silently_wrong_rule_is_not_believed():
    case = cases.make("mlp")

    def net(function):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), Activation(function), nn.Linear(16, 10))

    with pytest.raises(RuntimeError, match="forward is not the adjoint"):
        gradient(net(SilentZero), case, tangent="forward")
    out, labels = gradient(net(SilentZero), case)
    assert out.plan.kind == "reverse"
    assert relative(out.grad, reference_gradient(case, labels, reference.SGDState(0.3)).grad) < 1e-10
    with pytest.raises(RuntimeError, match="reverse is not the adjoint"):
        gradient(net(SilentOnce), case, tangent="reverse")
    out, _ = gradient(net(SilentOnce), case)
    assert out.plan.kind == "difference"


def test_custom_operators_lose_tangents_and_are_caught():
    @torch.library.custom_op("fastmeta_test::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    cube.register_autograd(
        lambda ctx, grad: 3 * ctx.saved_tensors[0] ** 2 * grad,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )

    class Cube(nn.Module):
        def forward(self, x):
            return cube(x)

    case = cases.make("resnet")  # convolutions: forward is tried first
    torch.manual_seed(0)
    out, labels = gradient(nn.Sequential(nn.Conv2d(2, 4, 3), Cube(), nn.Flatten(), nn.Linear(16, 10)), case)
    assert out.plan.kind == "reverse"
    assert "forward" in out.plan.reason
    assert relative(out.grad, reference_gradient(case, labels, reference.SGDState(0.3)).grad) < 1e-10


@pytest.mark.parametrize("tangent", ["auto", "forward", "reverse", "difference"])
def test_reentrant_checkpointing_is_refused(tangent):
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        gradient(Checkpointed(True), cases.make("mlp"), tangent=tangent)


def test_other_checkpointing_is_exact():
    case = cases.make("mlp")
    out, labels = gradient(Checkpointed(False), case)
    assert relative(out.grad, reference_gradient(case, labels, reference.SGDState(0.3)).grad) < 1e-10


def test_the_forward_with_tangents_leaves_the_graph_of_the_last_backward():
    """Where its graph raises, as that of checkpointing does, the train graph is held instead; both are exact."""

    class Recomputed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cases.resnet(10)

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    for model, joined in ((cases.resnet(10), True), (Recomputed(), False)):
        case = cases.make("resnet")
        case.model = model.to(F64)
        truth = copy.deepcopy(case.model)
        labels, sgd = make_labels(fastmeta.InstanceLabels, case), reference.SGDState(0.3)
        rows = labels.rows(case.index)
        step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.3), label_lr=5.0)
        for _ in range(3):
            step(case.train, case.meta)
            rows, _ = reference.meta_step(
                truth, rows, reference.instance_probs, case.x, *case.meta, label_lr=5.0, optimizer=sgd
            )
        assert step.plan is not None
        assert (step.plan.kind, step.plan.leaves_graph) == ("forward", joined)
        assert relative(labels.rows(case.index), rows) < 1e-10
        for a, b in zip(case.model.parameters(), truth.parameters(), strict=True):
            assert relative(a, b) < 1e-10


class TwoFaced(torch.autograd.Function):
    """tanh with a right forward derivative, whose backward doubles where that derivative was made beside it."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        ctx.save_for_forward(y)
        ctx.factor = 1 + (torch.autograd.forward_ad._current_level >= 0)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return ctx.factor * grad * (1 - y * y)

    @staticmethod
    def jvp(ctx, t):
        (y,) = ctx.saved_tensors
        return t * (1 - y * y)


def test_a_wrong_backward_of_the_forward_with_tangents_is_not_believed():
    """It raises nothing and its u is right: only its gradient is another."""
    case = cases.make("mlp")
    plain, faced = (
        nn.Sequential(nn.Linear(6, 16), act, nn.Linear(16, 10)).to(F64) for act in (nn.Tanh(), Activation(TwoFaced))
    )
    faced.load_state_dict(plain.state_dict())
    labels, sgd = make_labels(fastmeta.InstanceLabels, case), reference.SGDState(0.3)
    rows, _ = reference.meta_step(
        plain,
        labels.rows(case.index),
        reference.instance_probs,
        case.x,
        *case.meta,
        label_lr=5.0,
        optimizer=sgd,
    )
    optimizer = torch.optim.SGD(faced.parameters(), lr=0.3)
    step = fastmeta.MetaStep(faced, labels, optimizer, label_lr=5.0, tangent="forward")
    step(case.train, case.meta)
    assert (step.plan.kind, step.plan.leaves_graph) == ("forward", False)
    assert "the train graph is held, because that of the forward with tangents gives 0.weight another" in step.explain()
    assert relative(labels.rows(case.index), rows) < 1e-10
    for a, b in zip(faced.parameters(), plain.parameters(), strict=True):
        assert relative(a, b) < 1e-10


class WithoutGradients(nn.Module):
    """Goes another way where no gradient is asked for, as fast paths of inference do; that way drops tangents."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 4, 3), nn.Linear(16, 10)

    def forward(self, x):
        h = torch.tanh(self.conv(x[:, None])).flatten(1)
        return self.head(h if torch.is_grad_enabled() else h.detach())


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_a_path_for_inference_is_not_believed(compile):
    """The forward with tangents that leaves a graph is right, and the one without a graph, as in a trace, is not."""
    case = cases.make("mlp")
    torch.manual_seed(0)
    case.model = WithoutGradients().to(F64)
    made = []
    for tangent in ("auto", "reverse"):
        model, labels = copy.deepcopy(case.model), make_labels(fastmeta.InstanceLabels, case)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        step = fastmeta.MetaStep(model, labels, optimizer, label_lr=50.0, compile=compile, tangent=tangent)
        step(case.train, case.meta)
        assert step.plan.kind == "reverse"
        made.append(labels.label_logits - make_labels(fastmeta.InstanceLabels, case).label_logits)
    assert float(made[1].norm()) > 0
    assert relative(made[0], made[1]) < 1e-10


class InTraining(nn.Module):
    """tanh, whose double backward drops a term in training mode alone."""

    def forward(self, x):
        return SilentOnce.apply(x) if self.training else torch.tanh(x)


@pytest.mark.parametrize("change", ["unfreeze", "train"])
def test_the_way_is_chosen_anew_when_the_model_changes(change):
    """A frozen layer below, or the other mode: what was exact would be wrong in silence."""
    case = cases.make("mlp")
    act = Activation(SilentOnce) if change == "unfreeze" else InTraining()
    model = nn.Sequential(nn.Linear(6, 16), act, nn.Linear(16, 10)).to(F64)
    model[0].requires_grad_(change != "unfreeze")
    model.train(change == "unfreeze")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.3), label_lr=5.0)
    step(case.train, case.meta)
    first = step.plan
    step(case.train, case.meta)
    assert first is step.plan
    assert first.kind == "reverse"
    model.requires_grad_().train()
    case.model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 10)).to(F64)
    case.model.load_state_dict(model.state_dict())
    truth, before = reference_gradient(case, labels, reference.SGDState(0.3)).grad, labels.rows(case.index)
    step(case.train, case.meta)
    assert step.plan.kind == "difference"
    assert relative((before - labels.rows(case.index)) / 5.0, truth) < 1e-6


class Gated(nn.Module):
    """A residual branch behind a gain that starts at zero, as many do."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.branch = nn.Sequential(nn.Linear(6, 16), function, nn.Linear(16, 6))
        self.gain, self.head = nn.Parameter(torch.zeros(6)), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(x + self.gain * self.branch(x))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_wrong_rule_behind_a_gain_of_zero_is_seen(dtype):
    case = cases.make("mlp", dtype=dtype)
    labels = fastmeta.InstanceLabels(case.targets, 10, 0.8, dtype=dtype)
    for function, way in ((SilentZero, "forward"), (SilentOnce, "reverse")):
        with pytest.raises(RuntimeError, match=f"{way} is not the adjoint"):
            label_gradient(Gated(Activation(function)).to(dtype), labels, *(case.train, case.meta), lr=0.3, tangent=way)
    out = label_gradient(Gated(nn.Tanh()).to(dtype), labels, case.train, case.meta, lr=0.3)
    assert out.plan.kind == "reverse"


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_a_batch_that_is_not_finite_shows_nothing(compile):
    """The way is tried on the next one."""
    case = cases.make("mlp")
    model = nn.Sequential(nn.Linear(6, 16), Activation(SilentOnce), nn.Linear(16, 10)).to(F64)
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=5.0, compile=compile)
    assert not bool(step((case.x * torch.nan, case.index), case.meta).finite)
    assert "not tried yet: the gradient of this batch is not finite" in step.explain()
    state = step.state_dict()
    step.load_state_dict(state)
    if compile == "trace":
        with pytest.warns(UserWarning, match="runs eagerly: tangent by differences"):
            step(case.train, case.meta)
    else:
        step(case.train, case.meta)
    assert step.plan.kind == "difference"
    assert step.plan.tried


def test_a_model_that_bears_no_noise_is_tried_where_it_is():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Linear(6, 10), nn.Parameter(torch.tensor([0.01] * 9 + [3.0]))

        def forward(self, x):
            return self.inner(x) / self.scale.sqrt()

    case = cases.make("mlp")
    case.model, labels = Root().to(F64), make_labels(fastmeta.InstanceLabels, case)
    out = label_gradient(case.model, labels, case.train, case.meta, lr=1e-7)
    assert out.plan.kind == "reverse"
    assert out.plan.tried
    assert relative(out.grad, reference_gradient(case, labels, reference.SGDState(1e-7)).grad) < 1e-10


def test_logits_that_hang_on_nothing_are_said():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 10)

        def forward(self, x):
            return self.inner(x).detach()

    with pytest.raises(RuntimeError, match="the logits hang on no parameter that moves: the model detaches them"):
        gradient(Detached(), cases.make("mlp"))


def test_a_broken_model_raises_its_own_error():
    case = cases.make("mlp")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        gradient(nn.Linear(5, 10), case)


def test_the_first_dual_number_of_a_process_is_quiet():
    """Torch loads formulas for it, by a function of its own that it calls deprecated."""
    code = """
import torch
import fastmeta
from torch import nn

model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3))
labels = fastmeta.InstanceLabels(torch.tensor([0, 1, 2]), 3)
x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
print(fastmeta.label_gradient(model, labels, (x, y), (x, y), lr=0.1, tangent="forward").plan.kind)
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("forward\n", "")
