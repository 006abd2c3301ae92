"""What a model moves in its forward, beside a plain loop."""

import copy
from collections import deque
from types import SimpleNamespace

import torch
from torch import nn

import fastmeta
from fastmeta import reference
from tests.support import cases
from tests.support.meta import F64, make_labels, relative

LR, ETA = 0.3, 5.0


class Average:
    """An object of the user's, no module, that moves one layer after another."""

    def __init__(self, mine, theirs):
        self.pairs = {"all": [(mine, theirs)]}

    @torch.no_grad()
    def move(self):
        for mine, theirs in self.pairs["all"]:
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                a.lerp_(b.detach(), 0.1)


def snapshot(model):
    """Everything that hangs on the model, plain attributes and unregistered modules included."""

    def plain(value, depth=0):
        if isinstance(value, torch.Tensor):
            return value.detach().clone()
        if isinstance(value, nn.Module):
            return {k: plain(v) for k, v in vars(value).items() if not k.endswith("hooks") and k != "_modules"} | {
                k: plain(v) for k, v in value._modules.items()
            }
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple | deque):
            return [plain(v) for v in value]
        if isinstance(value, Average | SimpleNamespace):
            return plain(vars(value))
        return value if isinstance(value, bool | int | float | str | set) else None

    return plain(model)


def same(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape, (path, a.shape, b.shape)
        assert a.dtype == b.dtype, path
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11, equal_nan=True), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), (path, a.keys() ^ b.keys())
        for k in a:
            same(a[k], b[k], f"{path}.{k}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for k, (u, v) in enumerate(zip(a, b, strict=True)):
            same(u, v, f"{path}[{k}]")
    else:
        assert a == b, path


def plainest(model):
    return model.plainest() if hasattr(model, "plainest") else copy.deepcopy(model)


def plain_step(model, case, labels, rows, move=True):
    """Algorithm 1 as a plain loop: label gradient on a copy, then one forward of the model itself."""
    if move:
        out = reference.label_gradient(
            plainest(model), rows, reference.instance_probs, case.x, *case.meta, lookahead=reference.SGDState(LR)
        )
        rows = rows - ETA * out.grad
    loss = reference.soft_cross_entropy(model(case.x), reference.instance_probs(rows))
    params = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, params)
    with torch.no_grad():
        for p, g in zip(params, grads, strict=True):
            p.sub_(g, alpha=LR)
    return rows


def compare(model, steps=3, tolerance=1e-10, name="mlp", traced=None, **kw):
    """Steps of the model, each held against a plain loop on a copy; the MetaStep."""
    case = cases.make(name)
    model = model.to(F64)
    twin, labels = copy.deepcopy(model), make_labels(fastmeta.InstanceLabels, case)
    rows = labels.rows(case.index)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=ETA, **kw)
    for _ in range(steps):
        assert bool(step(case.train, case.meta).finite)
        rows = plain_step(twin, case, labels, rows)
        same(snapshot(model), snapshot(twin))
        assert relative(labels.rows(case.index), rows) < tolerance
    return step


IN_TURN = [{"micro_batch": 12}, {"tangent": "reverse", "micro_batch": 12}]


EXACT = [{"tangent": "reverse"}, {"tangent": "forward"}]
