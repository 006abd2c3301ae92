"""Layers whose parameters do not reach the rule as they are: exact against one autograd per sample, or refused by name.

What a hook, a subclass or a functional call gives to an operation is what counts, not the class of the layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from fastmeta import per_sample
from fastmeta.per_sample.layers import per_sample_grad_norm

N, C = 6, 4


def truth(model, x, targets, direction):
    """One backward per sample, the batch of one."""
    params = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(targets)):
        loss = F.cross_entropy(model(x[i : i + 1]), targets[i : i + 1])
        grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.to_dense().flatten() for g in grads]))
    grads = torch.stack(rows)
    return grads @ torch.cat([d.flatten() for d in direction]), grads.norm(dim=1)


def mlp(change=None):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, C))
    return model if change is None else nn.Sequential(change(model[0]) or model[0], *model[1:])


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Squared(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight**2, self.bias)


class LowRank(nn.Linear):
    """As LoRA: the frozen weight and a trainable product beside it."""

    def __init__(self, d, p, inside):
        super().__init__(d, p)
        self.inside = inside
        self.A = nn.Parameter(torch.randn(2, d))
        self.B = nn.Parameter(torch.randn(p, 2))
        self.weight.requires_grad_(False)

    def forward(self, x):
        if self.inside:
            return F.linear(x, self.weight + self.B @ self.A, self.bias)
        return super().forward(x) + F.linear(F.linear(x, self.A), self.B)


class Gated(nn.Linear):
    """An extra parameter beside a forward that is Linear's own; a hook multiplies by it."""

    def __init__(self, d, p):
        super().__init__(d, p)
        self.gate = nn.Parameter(torch.randn(p))
        self.register_forward_hook(lambda layer, args, out: out * self.gate)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 3 * weight, bias)


class Negated(nn.Module):
    def forward(self, w):
        return -w


class Through(nn.Module):
    """`use(self, x)` on two linear layers and an embedding-like table."""

    def __init__(self, use):
        super().__init__()
        self.inner, self.head, self.use = nn.Linear(3, 3), nn.Linear(3, C), use

    def forward(self, x):
        return self.head(self.use(self, x))


def before_head(kind, *args):
    return lambda: nn.Sequential(kind(3, 5, *args), nn.Linear(5, C))


def hooked(kind):
    def change(layer):
        if kind == "input":
            layer.register_forward_pre_hook(lambda layer, args: (3 * args[0] + 1,))
        elif kind == "output":
            layer.register_forward_hook(lambda layer, args, out: out.sin())
        elif kind == "first output":
            layer.register_forward_hook(lambda layer, args, out: 2 * out, prepend=True)
        elif kind == "gradient":
            layer.register_full_backward_hook(lambda layer, gi, go: (None if gi[0] is None else 2 * gi[0],))
        else:
            layer.forward = lambda x: F.linear(x + 1, layer.weight, layer.bias)

    return change


def frozen(name):
    def change(layer):
        getattr(layer, name).requires_grad_(False)

    return change


def pruned(name):
    return lambda layer: prune.random_unstructured(layer, name, 0.4)


def swapped(self, x):
    return functional_call(self.inner, {"weight": 2 * self.inner.weight, "bias": self.inner.bias}, (x,))


def unused_then_by_hand(self, x):
    self.inner(x)
    return x @ self.inner.weight.t()


def twice(self, x):
    return self.inner(self.inner(x).tanh())


def by_function(self, x):
    return F.linear(x, self.inner.weight).tanh() + F.linear(x, bias=self.inner.bias, weight=self.inner.weight)


def keywords(self, x):
    return self.inner(input=x)


def detached(self, x):
    return self.inner(x) + F.linear(x, self.inner.weight.detach())


def in_place_after(self, x):
    x = x + 0
    y = self.inner(x)
    x.mul_(3)
    return y


EXACT = {
    "forward overridden": (lambda: nn.Sequential(Scaled(3, 5), nn.Linear(5, C)), (N, 3)),
    "low rank beside": (lambda: nn.Sequential(LowRank(3, 5, False), nn.Linear(5, C)), (N, 3)),
    "hook on the input": (lambda: mlp(hooked("input")), (N, 3)),
    "hook on the output": (lambda: mlp(hooked("output")), (N, 3)),
    "hook before ours": (lambda: mlp(hooked("first output")), (N, 3)),
    "hook on the gradient": (lambda: mlp(hooked("gradient")), (N, 3)),
    "forward of the instance": (lambda: mlp(hooked("forward")), (N, 3)),
    "called twice": (lambda: Through(twice), (N, 3)),
    "functional uses": (lambda: Through(by_function), (N, 3)),
    "by keyword": (lambda: Through(keywords), (N, 3)),
    "a detached use": (lambda: Through(detached), (N, 3)),
    "bias frozen": (lambda: mlp(frozen("bias")), (N, 3)),
    "weight frozen": (lambda: mlp(frozen("weight")), (N, 3)),
    "same bias in two kinds of one rule": (lambda: tied_bias(), (N, 3)),
    "grouped, dilated, reflected": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, padding_mode="reflect"), nn.Flatten(), nn.Linear(216, C)
        ),
        (N, 4, 6, 6),
    ),
    "sparse embedding": (lambda: nn.Sequential(nn.Embedding(5, C, sparse=True, padding_idx=-2), Mean()), "words"),
    "batch norm of running statistics": (lambda: running(), (N, 3, 4)),
    "one conv weight, two strides": (lambda: Strides(), (N, 3, 8, 8)),
}
INNER = r"layer 'inner' \(Linear\): parameter 'weight'"
REFUSED = {
    "weight_norm, the hook": (lambda: mlp(weight_norm), (N, 3), r"layer '0' \(Linear\): parameter 'weight_[gv]'"),
    "weight_norm": (
        lambda: mlp(parametrizations.weight_norm),
        (N, 3),
        r"layer '0.parametrizations.weight' \(ParametrizationList\)",
    ),
    "spectral_norm, the hook": (lambda: mlp(spectral_norm).eval(), (N, 3), "'weight_orig'"),
    "spectral_norm": (lambda: mlp(parametrizations.spectral_norm).eval(), (N, 3), "'original'"),
    "orthogonal": (lambda: mlp(parametrizations.orthogonal), (N, 3), r"\(ParametrizationList\)"),
    "parametrized": (lambda: mlp(negated), (N, 3), "'original'"),
    "pruned": (lambda: mlp(pruned("weight")), (N, 3), "'weight_orig'"),
    "pruned bias": (lambda: mlp(pruned("bias")), (N, 3), r"layer '0' \(Linear\): parameter 'bias_orig'"),
    "low rank inside": (
        before_head(LowRank, True),
        (N, 3),
        r"layer '0' \(LowRank\): parameter '[AB]'",
    ),
    "extra parameter": (
        before_head(Gated),
        (N, 3),
        r"layer '0' \(Gated\): parameter 'gate'",
    ),
    "weight squared": (
        before_head(Squared),
        (N, 3),
        r"layer '0' \(Squared\): parameter 'weight'",
    ),
    "weight tripled": (
        lambda: nn.Sequential(OwnConvolution(3, 2, 3), nn.Flatten(), nn.Linear(32, C)),
        (N, 3, 6, 6),
        "OwnConvolution",
    ),
    "functional_call": (lambda: Through(swapped), (N, 3), INNER),
    "a call that is thrown away": (lambda: Through(unused_then_by_hand), (N, 3), INNER),
    "input changed afterwards": (lambda: Through(in_place_after), (N, 3), r"layer 'inner' .* input changed in place"),
    "gradient hook on a parameter": (lambda: mlp(masked_gradient), (N, 3), r"parameter '0.weight' has a hook"),
    "a broadcast bias": (lambda: Through(broadcast), (N, 3), "'one'"),
    "centred": (lambda: Through(lambda m, x: m.inner(x) - m.inner(x).mean(0)), (N, 3), "mixes samples"),
    "rolled": (lambda: Through(lambda m, x: m.inner(x).roll(2, 0)), (N, 3), "mixes samples"),
    "batch statistics": (lambda: Through(batch_statistics), (N, 3), "mixes samples"),
    "time first, as long as the batch": (lambda: TimeFirst(), (N, N, 3), "mixes samples"),
}


def negated(layer):
    parametrize.register_parametrization(layer, "weight", Negated())


def broadcast(self, x):
    return F.linear(x, self.inner.weight.detach(), self.one)


def batch_statistics(self, x):
    return F.batch_norm(self.inner(x), None, None, training=True)


def masked_gradient(layer):
    layer.weight.register_hook(lambda g: 2 * g)


def tied_bias():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, C))
    model[2].bias = model[0].bias
    return model


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def running():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3, affine=True), nn.Flatten(), nn.Linear(12, C)).double()
    model(torch.randn(20, 3, 4, dtype=torch.float64) * 2 + 1)
    return model.eval()


class Strides(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, C)

    def forward(self, x):
        x = self.conv(x).tanh()
        return self.head(F.conv2d(x, self.conv.weight, None, 2, "valid").mean((2, 3)))


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, C)

    def forward(self, x):
        return self.linear(x.transpose(0, 1)).mean(0)


def made(make, shape):
    torch.manual_seed(0)
    model = make()
    if isinstance(model, Through):
        model.one = nn.Parameter(torch.ones(1))
    model.double()
    x = torch.randint(5, (N, 7)) if shape == "words" else torch.randn(shape, dtype=torch.float64)
    return model, x, torch.randint(C, (N,))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_exact(name):
    model, x, targets = made(*EXACT[name])
    direction = [torch.randn_like(p) for p in model.parameters() if p.requires_grad]
    dot, norm = per_sample(model, x, targets, direction)
    expected = truth(model, x, targets, direction)
    torch.testing.assert_close(dot, expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(norm, expected[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_refused(name):
    make, shape, match = REFUSED[name]
    model, x, targets = made(make, shape)
    with pytest.raises(ValueError, match=match) as error:
        per_sample(model, x, targets)
    assert "\n" not in str(error.value)


def test_a_promise_saves_the_second_backward():
    model, x, targets = made(lambda: Through(lambda m, x: m.inner(x).roll(2, 0)), (N, 3))
    per_sample(model, x, targets, uncoupled=True)  # what comes is the promise's
    model, x, targets = made(mlp, (N, 3))
    torch.testing.assert_close(per_sample(model, x, targets, uncoupled=True).norm, per_sample(model, x, targets).norm)


def test_autocast_that_shares_a_cast():
    """One cast serves both calls of the layer; by another operation beside them it is found."""
    model, x, targets = made(lambda: Through(twice), (N, 3))
    model, x = model.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        low = per_sample(model, x, targets).norm
    torch.testing.assert_close(low, per_sample(model, x, targets).norm, rtol=0.1, atol=0)
    model.use = lambda m, x: m.inner(x) + torch.mm(x, m.inner.weight)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="parameter 'weight' is not itself"):
        per_sample(model, x, targets)


@pytest.mark.parametrize(
    "change",
    [weight_norm, parametrizations.weight_norm, pruned("weight")],
    ids=["hook", "parametrized", "pruned"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_one_layer_with_other_parameters_is_refused(change):
    layer = nn.Linear(3, 5)
    change(layer)
    for wrong in (layer, Squared(3, 5), Gated(3, 5), OwnConvolution(3, 2, 3)):
        with pytest.raises(ValueError, match=r"layer must be one of .* with its own forward and the parameters weight"):
            per_sample_grad_norm(torch.randn(N, 3), torch.randn(N, 5), layer=wrong)


def test_a_subclass_that_only_adds_is_taken():
    class Named(nn.Linear):
        def __init__(self, *args):
            super().__init__(*args)
            self.label = "query"

        def describe(self):
            return self.label

    layer = Named(3, 5)
    a, g = torch.randn(N, 3), torch.randn(N, 5)
    assert torch.equal(per_sample_grad_norm(a, g, layer=layer), per_sample_grad_norm(a, g))


def test_names_of_torch_that_this_relies_on():
    """The version of a tensor's memory, which a detached one shares; hooks of a parameter; the node of a cast."""
    t = torch.ones(3, requires_grad=True)
    again = (t * 1).detach()
    before = again._version
    again.detach().add_(1)
    assert again._version == before + 1
    assert not t._backward_hooks
    t.register_hook(lambda g: g)
    assert t._backward_hooks
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.mm(torch.ones(2, 2), torch.ones(2, 2, requires_grad=True))
    assert "ToCopyBackward0" in {type(n).__name__ for n, _ in out.grad_fn.next_functions}
