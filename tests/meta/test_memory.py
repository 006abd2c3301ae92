"""Running out of memory: what the error says, and that the failed step has left no trace."""

import copy
import weakref

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.functional.network import Network
from fastmeta.meta.graph_memory import OutOfMemory, graph_bytes
from tests.support import cases
from tests.support.meta import F64, FAMILIES, make_labels

CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


LEFT = [None]  # no attribute of the model: a forward that counts does not count where its step moves nothing


class Hungry(nn.Module):
    """Runs out of memory in its `at`-th forward from when `left` is set, or in a backward for at = "backward"."""

    def __init__(self, inner, error):
        super().__init__()
        self.inner, self.error, self.left = inner, error, None
        self.last = None

    @property
    def left(self):
        return LEFT[0]

    @left.setter
    def left(self, value):
        LEFT[0] = value

    def forward(self, x):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise self.error
        z = self.inner(x)
        self.last = weakref.ref(z)
        return z


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(f"{CPU_TEXT} 8 bytes"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu"])
@pytest.mark.parametrize("forward", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_and_what_it_leaves(family, forward, error):
    """In the train forward, the meta forward, the tangent."""
    case = cases.make("resnet")
    case.model = Hungry(case.model, error)
    labels = make_labels(family, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, tangent="forward")
    step(case.train, case.meta)
    before = copy.deepcopy((case.model.state_dict(), labels.state_dict(), optimizer.state_dict()["state"]))
    case.model.left = forward
    with pytest.raises(OutOfMemory, match="out of memory in a step on 8 train and 12 meta rows") as caught:
        step(case.train, case.meta)
    for way in (
        "are about",
        "(train) and",
        "nothing was changed",
        "micro_batch=6;",
        "approx=",
        "bfloat16",
        "compile=",
    ):
        assert way in str(caught.value)
    assert isinstance(caught.value, torch.OutOfMemoryError)
    assert str(error)[:20] in str(caught.value)
    model, table, state = before
    assert all(torch.equal(model[k], v) for k, v in case.model.state_dict().items())
    assert all(torch.equal(table[k], v) for k, v in labels.state_dict().items())
    for key, entry in optimizer.state_dict()["state"].items():
        assert torch.equal(state[key]["momentum_buffer"], entry["momentum_buffer"])
    assert all(p.grad is None for p in case.model.parameters())
    assert case.model.last() is None  # the graph is gone while the error is still held
    case.model.left = None
    assert bool(step(case.train, case.meta).finite)


@pytest.mark.parametrize(
    ("most", "kw", "way_out"),
    [
        (None, {"tangent": "reverse"}, 12),  # the two graphs in turn come before pieces
        (20, {"tangent": "reverse"}, 12),
        (12, {"tangent": "reverse"}, 6),
        (None, {"tangent": "forward"}, 6),
        (None, {"tangent": "forward", "compile": "trace"}, 12),
        (1, {}, 1),
    ],
)
def test_the_way_out_is_the_next_smaller(most, kw, way_out):
    case = cases.make("resnet")
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    case.model = Hungry(case.model.eval(), ERRORS[0])
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, micro_batch=most, **kw)
    step(case.train, case.meta)
    case.model.left = 1
    x = case.x[:6]  # of another shape, so that a compiled step calls the model again
    with pytest.raises(OutOfMemory, match=f"micro_batch={way_out};"):
        step((x, case.index[:6]), case.meta)


class BackwardRunsOut(torch.autograd.Function):
    @staticmethod
    def forward(x, left):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.left = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        ctx.left[0] -= 1
        if ctx.left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return grad, None

    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent.clone()


@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, F64) for family in FAMILIES), (fastmeta.InstanceLabels, torch.bfloat16)]
)
def test_labels_that_had_moved_are_put_back(family, dtype):
    """In the last backward: the third, behind those of the look-ahead and the meta loss."""
    left, wide = [0], F64 if dtype == F64 else torch.float32

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cases.mlp(10).to(wide)

        def forward(self, x):
            return BackwardRunsOut.apply(self.inner(x), left)

    case = cases.make("mlp", dtype=wide)
    case.model = Model()
    labels = make_labels(family, case)
    if dtype != F64:  # which has a counter
        labels = fastmeta.InstanceLabels(case.targets, case.num_classes, dtype=dtype)
    start = copy.deepcopy(labels.state_dict())
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, tangent="forward")
    step(case.train, case.meta)
    moved = copy.deepcopy(labels.state_dict())
    assert any(not torch.equal(start[k], v) for k, v in moved.items())
    left[0] = 3
    with pytest.raises(OutOfMemory):
        step(case.train, case.meta)
    assert left[0] == 0
    assert all(torch.equal(moved[k], v) for k, v in labels.state_dict().items())


def test_other_errors_stay_what_they_are():
    case = cases.make("mlp")
    case.model = Hungry(case.model, RuntimeError("something else"))
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(case.model, make_labels(FAMILIES[0], case), optimizer, label_lr=1.0)
    step(case.train, case.meta)
    case.model.left = 1
    with pytest.raises(RuntimeError, match="something else"):
        step(case.train, case.meta)


def test_no_way_of_the_tangent_is_condemned_for_it():
    """The probe of the first step runs out of memory: an error, not a silent fall back to differences."""
    case = cases.make("mlp")
    case.model = Hungry(case.model, ERRORS[1])
    case.model.left = 3
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(case.model, make_labels(FAMILIES[0], case), optimizer, label_lr=1.0)
    with pytest.raises(OutOfMemory):
        step(case.train, case.meta)
    assert step.plan is None


def test_estimate():
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.Tanh(), nn.Linear(16, 3, bias=False))
    x = torch.zeros(10, 6)
    # tanh keeps its output, which is the input that the second product keeps; the first one's is there anyway
    assert graph_bytes(Network(model), x, 10, None) == 4 * 10 * 16
    assert graph_bytes(Network(model), x, 10, 4) == 4 * 4 * 16
    assert (
        graph_bytes(Network(cases.make("resnet").model), torch.zeros(8, 2, 4, 4, dtype=F64), 8, None) > 8 * 8 * 2 * 16
    )

    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, x):
            return self.inner(x) * float(x.sum())

    assert graph_bytes(Network(Reading()), x, 10, None) is None
