"""Models with habits of their own: what they keep, draw, replace and are wrapped in."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.functional.network import Network
from fastmeta.meta import label_gradient
from fastmeta.meta.graph_memory import graph_bytes
from tests.support import cases
from tests.support.meta import F64, make_labels, reference_gradient, relative


class Centred(nn.Module):
    """Keeps a running mean by replacing its buffers, where BatchNorm writes into its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 10)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        h = self.inner(x)
        self.mean = 0.9 * self.mean + 0.1 * h.mean(0).detach()
        self.count = self.count + 1
        return self.head(torch.tanh(h - self.mean))


@pytest.mark.parametrize(
    "kw",
    [{"tangent": "reverse"}, {"tangent": "forward"}, {"micro_batch": 12}, {"compile": "trace"}],
    ids=["reverse", "forward", "in-turn", "trace"],
)
def test_a_buffer_that_is_replaced_moves_once_per_step(kw):
    case = cases.make("mlp")
    model = Centred().to(F64)
    truth, labels = copy.deepcopy(model), make_labels(fastmeta.InstanceLabels, case)
    rows, sgd = labels.rows(case.index), reference.SGDState(0.3)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.3), label_lr=5.0, **kw)
    for _ in range(3):
        step(case.train, case.meta)
        rows, _ = reference.meta_step(
            truth, rows, reference.instance_probs, case.x, *case.meta, label_lr=5.0, optimizer=sgd
        )
    assert int(model.count) == 3
    assert float(model.mean.norm()) > 0.01
    assert relative(labels.rows(case.index), rows) < 1e-10
    for a, b in zip(model.state_dict().values(), truth.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


class LayerDrop(nn.Module):
    """Six layers, each skipped by the toss of a coin."""

    def __init__(self, coin):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(6))
        self.head, self.coin, self.generator = nn.Linear(32, 10), coin, torch.Generator().manual_seed(3)

    def forward(self, x):
        for layer in self.layers:
            toss = {
                "torch": lambda: float(torch.rand(())),
                "python": random.random,
                "numpy": np.random.rand,
                "own": lambda: float(torch.rand((), generator=self.generator)),
            }[self.coin]()
            if toss < 0.5:
                x = x + torch.tanh(layer(x))
        return self.head(x.flatten(1))

    def states(self):
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            [getattr(v, "tolist", v.__str__)() for v in np.random.get_state()],  # noqa: NPY002
            self.generator.get_state().tolist(),
        ]


@pytest.mark.parametrize("tangent", ["forward", "reverse"])
@pytest.mark.parametrize("coin", ["torch", "python", "numpy", "own"])
def test_the_tangent_sees_the_forwards_draws_whoever_draws_them(coin, tangent):
    case = cases.make("groupnorm")
    case.model = LayerDrop(coin).to(F64)
    labels, drawn = make_labels(fastmeta.InstanceLabels, case), set()
    for seed in range(4):
        for start in (random.seed, np.random.seed, torch.manual_seed, case.model.generator.manual_seed):
            start(seed)
        before = case.model.states()
        out = label_gradient(case.model, labels, case.train, case.meta, lr=0.3, tangent=tangent)
        assert case.model.states() == before
        assert relative(out.grad, reference_gradient(case, labels, reference.SGDState(0.3)).grad) < 1e-10
        drawn.add(float(out.train_loss))
    assert len(drawn) == 4


@pytest.mark.parametrize("coin", ["python", "numpy"])
def test_the_hosts_draws_are_in_no_graph(coin):
    case = cases.make("groupnorm")
    model = LayerDrop(coin).to(F64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=5.0, compile="trace")
    with pytest.warns(UserWarning, match="runs eagerly: the model draws Python's or NumPy's random numbers"):
        step(case.train, case.meta)


class Cached(nn.Module):
    """Keeps what depends on the shape of its input, one in a dict and one in an attribute."""

    def __init__(self):
        super().__init__()
        self.inner, self.kept, self.last, self.calls = nn.Linear(6, 10), {}, None, 0

    def forward(self, x):
        self.calls += 1
        if len(x) not in self.kept:
            self.kept[len(x)] = torch.linspace(0, 1, 6, dtype=x.dtype)
        if self.last is None or len(self.last) != len(x):
            self.last = torch.ones(len(x), 1, dtype=x.dtype)
        return self.inner(x * self.last + self.kept[len(x)])


def test_a_trace_leaves_no_fakes_in_the_model():
    case, kept = cases.make("mlp"), []
    for compile in ("off", "trace"):
        torch.manual_seed(0)
        model, labels = Cached().to(F64), make_labels(fastmeta.InstanceLabels, case)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        step = fastmeta.MetaStep(model, labels, optimizer, label_lr=5.0, compile=compile)
        step(case.train, case.meta)
        step((case.x[:5], case.index[:5]), (case.x_meta[:7], case.y_meta[:7]))
        assert not step._untraced
        assert {type(t) for t in [*model.kept.values(), model.last]} == {torch.Tensor}
        kept.append(model(case.x[:3]))
    assert relative(*kept) < 1e-12
    calls = model.calls
    assert graph_bytes(Network(model), case.x[:4], 4, None) is not None
    assert model.calls == calls
    assert type(model.last) is torch.Tensor


def test_what_torch_compile_returned_is_run_without_it():
    """Its backward has no derivative; inductor's forward has no tangent either."""
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    truth = label_gradient(case.model, labels, case.train, case.meta, lr=0.3)
    compiled = torch.compile(case.model, backend="aot_eager")
    out = label_gradient(compiled, labels, case.train, case.meta, lr=0.3)
    assert out.plan == truth.plan
    assert torch.equal(out.grad, truth.grad)
    step = fastmeta.MetaStep(compiled, labels, torch.optim.SGD(compiled.parameters(), lr=0.3), label_lr=5.0)
    before = copy.deepcopy(case.model.state_dict())
    step(case.train, case.meta)
    assert not any(torch.equal(p, before[k]) for k, p in case.model.named_parameters())
    assert "the model's own torch.compile is set aside" in step.explain()
    assert fastmeta.check(compiled, labels, case.train, case.meta, 0.3, timing=False).ok


def test_wrappers_that_no_function_sees_through_are_named():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    kind = nn.parallel.DistributedDataParallel
    ranked = kind.__new__(kind)  # its own __init__ wants other ranks
    nn.Module.__init__(ranked)
    with pytest.warns((DeprecationWarning, FutureWarning), match="script"):  # the latter from torch 2.14 on
        script = torch.jit.script(case.model)
    for model, words in (
        (ranked, "model must not be DistributedDataParallel.*pass model.module, and process_group="),
        (nn.DataParallel(case.model), "which DataParallel cannot; pass model.module"),
        (script, "which RecursiveScriptModule cannot; pass the module it is made of"),
        (lambda x: x, "model must be a torch.nn.Module, got function"),
    ):
        with pytest.raises(TypeError, match=words):
            fastmeta.MetaStep(model, labels, torch.optim.SGD(case.model.parameters(), lr=0.3))
        with pytest.raises(TypeError, match=words):
            label_gradient(model, labels, case.train, case.meta, lr=0.3)
        with pytest.raises(TypeError, match=words):
            fastmeta.check(model, labels, case.train, case.meta, 0.3)


def test_a_model_without_a_copy_cannot_be_checked_and_says_so():
    case = cases.make("mlp")
    case.model.features = case.model(case.x)  # a result with its graph
    with pytest.raises(ValueError, match="check works on copies, and the model has none: Only Tensors created explic"):
        fastmeta.check(case.model, make_labels(fastmeta.InstanceLabels, case), case.train, case.meta, 0.3)


def test_the_callers_grad_mode_does_not_matter():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.3), label_lr=5.0)
    truth = label_gradient(case.model, labels, case.train, case.meta, lr=0.3)
    with torch.no_grad():
        assert torch.equal(label_gradient(case.model, labels, case.train, case.meta, lr=0.3).grad, truth.grad)
        assert fastmeta.check(case.model, labels, case.train, case.meta, 0.3, timing=False).ok
        assert bool(step(case.train, case.meta).finite)
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="nothing has a gradient; call this outside of it"):
        step(case.train, case.meta)


def test_cached_parametrizations_are_refused():
    """theta* would run on the weights that were kept of theta, and the label gradient be another in silence."""
    case = cases.make("mlp")
    nn.utils.parametrizations.weight_norm(case.model[0])
    labels = make_labels(fastmeta.InstanceLabels, case)
    with nn.utils.parametrize.cached(), pytest.raises(RuntimeError, match=r"parametrize\.cached\(\) would keep"):
        label_gradient(case.model, labels, case.train, case.meta, lr=0.3)
    out = label_gradient(case.model, labels, case.train, case.meta, lr=0.3)
    assert relative(out.grad, reference_gradient(case, labels, reference.SGDState(0.3)).grad) < 1e-10


@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm"])
@pytest.mark.parametrize("compile", ["off", "trace"])
def test_weights_that_are_made_of_others(kind, compile):
    """Spectral norm keeps the vectors of its power iteration in buffers, which move in every training forward."""
    case = cases.make("resnet")
    made = getattr(nn.utils.parametrizations, kind)
    model = nn.Sequential(made(nn.Conv2d(2, 4, 3)), nn.Tanh(), nn.Flatten(), made(nn.Linear(16, 10))).to(F64)
    truth, labels = copy.deepcopy(model), make_labels(fastmeta.InstanceLabels, case)
    rows, sgd = labels.rows(case.index), reference.SGDState(0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=5.0, compile=compile)
    for _ in range(3):
        step(case.train, case.meta)
        rows, _ = reference.meta_step(
            truth, rows, reference.instance_probs, case.x, *case.meta, label_lr=5.0, optimizer=sgd
        )
    assert not step._untraced
    assert relative(labels.rows(case.index), rows) < 1e-10
    for a, b in zip(model.state_dict().values(), truth.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
