"""Per-sample dots and norms against torch.func's vmap(grad), in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fastmeta.per_sample import layers as per_sample_layers
from fastmeta.per_sample import rules as per_sample_rules
from fastmeta.per_sample.layers import per_sample_grad_dot, per_sample_grad_norm
from fastmeta.per_sample.model import per_sample

N, C = 5, 4


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def double(module):
    """float64, and parameters away from the ones and zeros that norm layers start with."""
    torch.manual_seed(0)
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module


def flat(grads):
    return torch.cat([g.flatten(1) for g in grads.values()], 1)


# One layer -------------------------------------------------------------------------------------------------


def eval_batch_norm():
    layer = nn.BatchNorm2d(6)
    layer(torch.randn(20, 6, 3, 3) * 2 + 1)
    return layer.eval()


def tracked_instance_norm():
    layer = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
    layer(torch.randn(20, 6, 9) * 2 + 1)
    return layer.eval()


LAYERS = {
    "linear": (lambda: nn.Linear(3, 4), (N, 3)),
    "linear, few steps of many features": (lambda: nn.Linear(30, 20), (N, 3, 30)),
    "linear, many steps of few features": (lambda: nn.Linear(3, 4), (N, 2, 20, 3)),
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (N, 3, 6, 5)),
    "conv, few pixels": (lambda: nn.Conv2d(8, 16, 3, padding=1), (N, 8, 2, 2)),
    "conv, stride and dilation": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2)), (N, 3, 8, 7)),
    "conv, groups": (lambda: nn.Conv2d(6, 4, 3, groups=2), (N, 6, 5, 5)),
    "conv, depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6, padding=1), (N, 6, 4, 4)),
    "conv, one pixel": (lambda: nn.Conv2d(4, 6, 2, groups=2), (N, 4, 2, 2)),
    "conv, same padding of an even kernel": (
        lambda: nn.Conv2d(3, 4, 4, dilation=(1, 3), padding="same"),
        (N, 3, 8, 11),
    ),
    "conv, reflected": (lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), (N, 3, 5, 6)),
    "conv, circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (N, 3, 5, 6)),
    "layer norm": (lambda: nn.LayerNorm(6), (N, 6)),
    "layer norm over two dimensions": (lambda: nn.LayerNorm((4, 6)), (N, 3, 4, 6)),
    "RMS norm": (lambda: nn.RMSNorm(6), (N, 3, 6)),
    "instance norm": (lambda: nn.InstanceNorm2d(6, affine=True), (N, 6, 4, 5)),
    "instance norm of running statistics": (tracked_instance_norm, (N, 6, 7)),
    "group norm": (lambda: nn.GroupNorm(3, 6), (N, 6, 4, 5)),
    "batch norm in eval mode": (eval_batch_norm, (N, 6, 4, 5)),
    "embedding": (lambda: nn.Embedding(4, 6), "words"),
    "embedding with padding": (lambda: nn.Embedding(4, 6, padding_idx=1), "words"),
    "embedding of one word": (lambda: nn.Embedding(4, 6), "word"),
}


def case(name):
    make, shape = LAYERS[name]
    layer = double(make())
    if isinstance(shape, str):
        a = torch.randint(4, (N, 9) if shape == "words" else (N,))
    else:
        a = torch.randn(shape, dtype=torch.float64)
    g = torch.randn_like(layer(a))

    def scalar(params, a, g):
        return (functional_call(layer, params, (a[None],)) * g[None]).sum()

    return layer, a, g, vmap(grad(scalar), (None, 0, 0))(dict(layer.named_parameters()), a, g)


@pytest.mark.parametrize("scratch", [None, 1], ids=["at once", "sample by sample"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, scratch, monkeypatch):
    if scratch:
        monkeypatch.setattr(per_sample_rules, "_SCRATCH", scratch)
    layer, a, g, truth = case(name)
    direction = {k: torch.randn_like(p) for k, p in layer.named_parameters()}
    for names in {("weight",), tuple(direction)}:
        own = {k: truth[k] for k in names}
        expected = flat(own)
        dot = per_sample_grad_dot(a, g, {k: direction[k] for k in names}, layer=layer)
        close(dot, expected @ torch.cat([direction[k].flatten() for k in names]))
        close(per_sample_grad_norm(a, g, layer=layer, parameters=names), expected.norm(dim=1))
    if "bias" in direction:
        close(
            per_sample_grad_dot(a, g, {"bias": direction["bias"]}, layer=layer),
            truth["bias"].flatten(1) @ direction["bias"].flatten(),
        )


class Computed(TorchDispatchMode):
    """The operations that compute something, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.overloadpacket is not torch.ops.aten.promote_types:
            self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("long", "row_dot"), [(0, ["fastmeta.row_dot"]), (10**9, ["aten.mul", "aten.sum"])])
@pytest.mark.parametrize("name", ["linear", "linear, few steps of many features", "conv", "conv, stride and dilation"])
def test_a_dot_is_one_product_and_one_row_dot(name, long, row_dot, monkeypatch):
    """The library's matrix product or convolution, then our kernel, or two of torch's where rows are short: nothing of
    the size of a per-sample gradient."""
    monkeypatch.setattr(per_sample_rules, "_LONG_ROW", long)
    make, shape = LAYERS[name]
    layer, a = double(make()), torch.randn(shape, dtype=torch.float64)
    call = per_sample_rules.Call(per_sample_layers.rule_for(layer), a, torch.randn_like(layer(a)).detach())
    directions = {k: torch.randn_like(p).detach() for k, p in layer.named_parameters()}
    with Computed() as computed:
        dot = per_sample_rules.call_dot(call, directions)
    close(dot, (functional_call(layer, directions, (a,)) * call.g).flatten(1).sum(1))
    product = "aten.convolution" if "conv" in name else "aten.addmm"
    assert computed.names == [product, *row_dot]


def test_without_a_layer_it_is_linear():
    _, a, g, truth = case("linear, many steps of few features")
    direction = torch.randn(4, 3, dtype=torch.float64)
    close(per_sample_grad_dot(a, g, direction), truth["weight"].flatten(1) @ direction.flatten())
    close(per_sample_grad_norm(a, g), truth["weight"].flatten(1).norm(dim=1))


@pytest.mark.parametrize(("features", "way"), [(30, "_ghost_norm2"), (3, "_direct_terms")])
def test_the_cheaper_norm_is_taken(features, way, monkeypatch):
    seen = []
    for name in ("_ghost_norm2", "_direct_terms"):
        original = getattr(per_sample_rules, name)
        monkeypatch.setattr(
            per_sample_rules, name, lambda *args, name=name, original=original: seen.append(name) or original(*args)
        )
    per_sample_grad_norm(torch.randn(N, 8, features), torch.randn(N, 8, features))
    assert seen == [way]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_accumulates_in_float32(dtype):
    layer, a, g, _ = case("conv")
    a, g, direction = a.to(dtype), g.to(dtype), torch.randn_like(layer.weight).to(dtype)
    layer.float()
    dot, norm = per_sample_grad_dot(a, g, direction, layer=layer), per_sample_grad_norm(a, g, layer=layer)
    assert dot.dtype == norm.dtype == torch.float32
    layer.double()
    exact = per_sample_grad_dot(a.double(), g.double(), direction.double(), layer=layer)
    # sums of about a thousand float32 products, the inputs being exact
    torch.testing.assert_close(dot.double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        norm.double(), per_sample_grad_norm(a.double(), g.double(), layer=layer), rtol=1e-4, atol=0
    )


def test_empty_batch():
    for layer, a in [
        (nn.Linear(3, 4), torch.randn(0, 3)),
        (nn.Linear(3, 4), torch.randn(0, 7, 3)),
        (nn.Conv2d(3, 4, 3), torch.randn(0, 3, 5, 5)),
        (nn.Embedding(3, 4), torch.zeros(0, 7, dtype=torch.int64)),
        (nn.GroupNorm(1, 3), torch.randn(0, 3, 4)),
    ]:
        direction = dict(layer.named_parameters())
        assert per_sample_grad_norm(a, layer(a), layer=layer, parameters=tuple(direction)).shape == (0,)
        assert per_sample_grad_dot(a, layer(a), direction, layer=layer).shape == (0,)
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, C))
    empty = per_sample(model, torch.randn(0, 3), torch.zeros(0, dtype=torch.int64), list(model.parameters()))
    assert empty.dot.shape == empty.norm.shape == (0,)


def test_layer_errors():
    a, g = torch.randn(N, 3), torch.randn(N, 4)
    with pytest.raises(ValueError, match=r"direction of 'weight' must have shape \(4, 3\), got \(3, 4\)"):
        per_sample_grad_dot(a, g, torch.randn(3, 4))
    with pytest.raises(ValueError, match="Linear has no parameter 'bias'"):
        per_sample_grad_norm(a, g, parameters=("bias",))
    with pytest.raises(ValueError, match=r"layer must be one of Linear.*got LSTM"):
        per_sample_grad_norm(a, g, layer=nn.LSTM(3, 4))
    with pytest.raises(ValueError, match=r"batch of 4 samples as dimension 0.*got an input of shape \(5, 3\)"):
        per_sample_grad_norm(a, g[:4])
    one_sample = torch.randn(3, 3, 3)  # whose channels would pass for a batch of three
    with pytest.raises(ValueError, match=r"at least 4 dimensions, got an input of shape \(3, 3, 3\)"):
        per_sample_grad_norm(one_sample, one_sample, layer=nn.InstanceNorm2d(3, affine=True))


# A whole model ---------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Embedding, layer norm, a linear layer over time, mean, and the embedding's weight again as output layer."""

    def __init__(self, tied=False, functional=False):
        super().__init__()
        self.embedding = nn.Embedding(C, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 6)
        self.head = nn.Linear(6, C, bias=False)
        self.functional = functional
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x):
        h = F.gelu(self.linear(self.norm(self.embedding(x)))).mean(1)
        return F.linear(h, self.embedding.weight) if self.functional else self.head(h)


class Residual(nn.Module):
    """Convolution, GroupNorm, in-place ReLU, and one convolution and one norm that are called twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, C)

    def forward(self, x):
        x = F.relu(self.stem(x), inplace=True)
        for _ in range(2):
            x = x + F.relu(self.norm(self.conv(x)), inplace=True)
        return self.head(x.mean((2, 3)))


def shared_linear():
    inner = nn.Linear(6, 6)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(inplace=True), inner, nn.Tanh(), inner, nn.Linear(6, C))


def tied_linear():
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, C))
    model[4].weight = model[2].weight
    return model


def eval_conv_bn():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(54, C))
    model(torch.randn(9, 3, 5, 5))
    return model.eval()


def frozen():
    model = shared_linear()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, C)), (N, 3)),
    "a layer called twice": (shared_linear, (N, 3)),
    "tied weights": (tied_linear, (N, 3)),
    "frozen parts": (frozen, (N, 3)),
    "residual": (Residual, (N, 3, 5, 5)),
    "conv, eval batch norm": (eval_conv_bn, (N, 3, 5, 5)),
    "words": (Words, "words"),
}


def setup(name):
    make, shape = MODELS[name]
    model = double(make())
    x = torch.randint(C, (N, 7)) if shape == "words" else torch.randn(shape, dtype=torch.float64)
    return model, x


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("name", MODELS)
def test_model(name, soft, monkeypatch):
    if soft:
        monkeypatch.setattr(per_sample_rules, "_SCRATCH", 1)  # sample by sample
    model, x = setup(name)
    targets = torch.rand(N, C, dtype=torch.float64) if soft else torch.randint(C, (N,))
    params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    direction = {k: torch.randn_like(p) for k, p in params.items()}

    def loss(params, x, target):
        return F.cross_entropy(functional_call(model, params, (x[None],)), target[None])

    truth = flat(vmap(grad(loss), (None, 0, 0))(params, x, targets))
    state = {k: t.clone() for k, t in model.state_dict().items()}
    dot, norm = per_sample(model, x, targets, direction)
    close(dot, truth @ torch.cat([d.flatten() for d in direction.values()]))
    close(norm, truth.norm(dim=1))
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert not dot.requires_grad
    assert not norm.requires_grad

    close(per_sample(model, x, targets, list(direction.values())).dot, dot)
    first = next(iter(direction))
    close(
        per_sample(model, x, targets, {first: direction[first]}).dot,
        truth[:, : direction[first].numel()] @ direction[first].flatten(),
    )
    assert per_sample(model, x, targets).dot is None


def test_the_sum_of_dots_is_the_batch_gradient_along_the_direction():
    model, x = setup("residual")
    targets = torch.randint(C, (N,))
    direction = [torch.randn_like(p) for p in model.parameters()]
    grads = torch.autograd.grad(F.cross_entropy(model(x), targets, reduction="sum"), list(model.parameters()))
    total = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
    close(per_sample(model, x, targets, direction).dot.sum(), total)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.body = double(shared_linear())
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


def test_checkpointed_model():
    model, x, targets = Checkpointed(False), torch.randn(N, 3, dtype=torch.float64), torch.randint(C, (N,))
    close(per_sample(model, x, targets).norm, per_sample(model.body, x, targets).norm)
    x.requires_grad_(True)
    refusal(Checkpointed(True), x, r"reentrant checkpointing hides layers.*use_reentrant=False")


def test_autocast():
    model, x = setup("a layer called twice")
    model, x, targets = model.float(), x.float(), torch.randint(C, (N,))
    exact = per_sample(model, x, targets)
    with torch.autocast("cpu", torch.bfloat16):
        low = per_sample(model, x, targets, list(model.parameters()))
        a, g = torch.randn(N, 7, 3), torch.randn(N, 7, 4)
        inside = per_sample_grad_dot(a, g, torch.ones(4, 3)), per_sample_grad_norm(a, g)
    assert torch.equal(inside[0], per_sample_grad_dot(a, g, torch.ones(4, 3)))
    assert torch.equal(inside[1], per_sample_grad_norm(a, g))
    assert low.norm.dtype == torch.float32
    # bfloat16 activations: 8 bits, a handful of layers
    torch.testing.assert_close(low.norm, exact.norm, rtol=0.1, atol=0)


def test_logits_of_and_no_grad():
    model, x = setup("mlp")
    targets = torch.randint(C, (N,))

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, batch):
            return {"scores": self.inner(batch["x"])}

    with torch.no_grad():
        wrapped = per_sample(Wrapped(), {"x": x}, targets, logits_of=lambda out: out["scores"])
    close(wrapped.norm, per_sample(model, x, targets).norm)


def test_nothing_to_train_gives_zeros():
    model, x = setup("mlp")
    dot, norm = per_sample(model.requires_grad_(False), x, torch.randint(C, (N,)), {})
    assert dot.tolist() == norm.tolist() == [0.0] * N


def refusal(model, x, match, targets=None, **kwargs):
    targets = torch.randint(C, (N,)) if targets is None else targets
    with pytest.raises(ValueError, match=match):
        per_sample(model, x, targets, **kwargs)
    assert not any(m._forward_hooks for m in model.modules())


def test_batch_norm_in_train_mode_is_refused_with_the_ways_out():
    model = eval_conv_bn().train()
    before = model[1].num_batches_tracked.clone()
    refusal(model, torch.randn(N, 3, 5, 5), r"layer '1' \(BatchNorm2d\).*couples the samples.*alignment.*GroupNorm")
    assert model[1].num_batches_tracked == before


def test_unsupported_layers_are_named():
    x = torch.randn(N, 3, 8)
    model = nn.Sequential(nn.Conv1d(3, C, 8), nn.Flatten())
    refusal(
        model, x, r"layer '0' \(Conv1d\): parameter 'weight' is not itself the weight or bias of one of Linear, Conv2d"
    )
    model[0].requires_grad_(False)
    assert per_sample(model, x, torch.randint(C, (N,))).norm.tolist() == [0.0] * N

    refusal(nn.Sequential(nn.Embedding(4, C, max_norm=1.0)), torch.randint(4, (N,)), r"layer '0' \(Embedding\)")


def test_a_weight_shared_by_different_kinds_is_refused():
    for model in (Words(tied=True), Words(functional=True)):
        refusal(model, torch.randint(C, (N, 7)), r"shared by operations .* \(weight of Embedding, weight of Linear\)")


def test_batch_must_come_first():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, C)

        def forward(self, x):
            return self.linear(x.transpose(0, 1)).mean(0)

    refusal(
        TimeFirst(), torch.randn(N, 7, 3), r"layer 'linear' \(Linear\) must have the batch of 5 samples as dimension 0"
    )


def test_argument_errors():
    model, x = setup("mlp")
    refusal(model, x, r"direction must have 4 tensors, .* got 1", direction=[torch.randn(6, 3)])
    refusal(model, x, "direction names 'w', which is not a trainable", direction={"w": torch.randn(3)})
    refusal(model, x, r"direction of '0.bias' must have shape \(6,\), got \(3,\)", direction={"0.bias": torch.randn(3)})
    refusal(model, x, r"logits must have shape \(n, C\) and targets .* got \(5, 4\) and \(4,\)", torch.randint(C, (4,)))
