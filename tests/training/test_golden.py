"""Loss curves of every method, eager and traced, against recorded ones: float64, to 1e-9.

``python -m tests.training.test_golden`` records them anew; a change of theirs is a change of what training computes.
Nothing here draws from torch's generators, so that the curves are the same under every release of torch.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fastmeta.distributed import ALONE
from fastmeta.methods import METHODS, Batch
from fastmeta.training.metrics import StepTotals
from tests.support.methods import CORE

FILE = Path(__file__).parent / "golden" / "curves.json"
STEPS, ROWS, META, N, CLASSES, FEATURES = 20, 12, 10, 48, 5, 6


def wave(*shape, a, b=0.0):
    """Numbers in [-1, 1] that are spread like random ones, by a formula."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(a * (k + 1) ** 1.5 + b).reshape(shape)


def network(kind):
    first, second = nn.Linear(FEATURES, 9), nn.Linear(9, CLASSES)
    layers = [first, nn.Tanh(), second] if kind == "tanh" else [first, nn.BatchNorm1d(9), nn.GELU(), second]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(wave(*p.shape, a=0.7 + k) / math.sqrt(FEATURES))
        if kind != "tanh":
            model[1].weight += 1
    return model


class Settings:
    """The parts of a config that methods read."""

    class labels:
        update, target_prob, dtype, lookahead_choice, tangent = "exact", 0.7, "float64", "sgd", "auto"
        parametrisation, label_momentum, reset, entropy_weight = "softmax", 0.0, False, "none"
        store, lookahead_steps = "auto", 1

    seed, approx_choice, watch_choice, micro_batch, mixup = 0, None, None, None, None

    def __init__(self, label_lr, compile):
        self.labels.label_lr, self.labels.label_step, self.labels.warmup_epochs = label_lr, None, 0
        self.compile = compile


class Given:
    """The context of a method without a trainer."""

    device, num_classes, ranks = torch.device("cpu"), CLASSES, ALONE

    def __init__(self, model, optimizer, targets, data, config):
        self.made, self.targets, self.config = (model, optimizer), targets, config
        self.transform, self.totals = Rows(data), StepTotals(self.device)

    def network_input(self, x):
        return self.transform(x, self.transform.tensors)

    def model(self):
        return self.made[0]

    def optimizer(self, params):
        assert [id(p) for p in params] == [id(p) for p in self.made[0].parameters()]
        return self.made[1]


class Rows:
    """The transform of the trainer's steps: row numbers into network input."""

    def __init__(self, data):
        self.tensors = (data,)

    def __call__(self, x, tensors):
        return tensors[0][x]


def curve(name, compile, kind):
    """Train loss, meta loss and label entropy of each step, the label gradient's norms; labels and state at the end."""
    model = network(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-3)
    true = (wave(N + META, a=1.3).abs() * CLASSES).long().clamp(max=CLASSES - 1)
    centres = 2 * wave(CLASSES, FEATURES, a=2.9)
    x = centres[true] + 0.5 * wave(N + META, FEATURES, a=0.37)
    targets = true[:N].clone()
    targets[::4] = (targets[::4] + 1) % CLASSES
    rate = 40.0 if name == "instance_labels" else 0.3
    method = METHODS[name]()
    method.setup(Given(model, optimizer, targets, x, Settings(rate, compile)))
    if method.labels is not None:
        method.labels.to(torch.float64)
    records, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * (1 + math.cos(math.pi * step / STEPS)) / 2
        index = (torch.arange(ROWS) * 5 + 7 * step) % N
        meta = (torch.arange(N, N + META), true[N:]) if method.uses_meta_batch else None
        out = method.step(Batch(index, index, meta))
        assert bool(out.finite)
        figures = [out.train_loss, out.meta_loss, None if out.entropy is None else out.entropy.mean()]
        records.append([float(f) for f in figures if f is not None])
        if out.label_grad_norm is not None:
            norms.append(float(out.label_grad_norm))
    labels = [] if method.labels is None else method.labels.probs().max(1).values.tolist()
    state = [float(p.detach().square().sum()) for p in (*model.parameters(), *(b.double() for b in model.buffers()))]
    return {"steps": records, "norms": norms, "labels": labels, "state": state}


CASES = [(n, c, k) for n in CORE for c in ("off", "trace") for k in ("tanh", "gelu")]
CASES = [case for case in CASES if case[:2] != ("onehot", "trace")]  # there is one way of a plain step


def key(name, kind):
    """Eager and traced steps are the same function: one curve."""
    return f"{name}, {kind}"


@pytest.mark.parametrize(("name", "compile", "kind"), CASES)
def test_curves(name, compile, kind):
    wanted, got = json.loads(FILE.read_text())[key(name, kind)], curve(name, compile, kind)
    assert len(got["steps"]) == STEPS
    for part, value in wanted.items():
        a, b = torch.tensor(got[part], dtype=torch.float64), torch.tensor(value, dtype=torch.float64)
        within = 1e-6 if part == "norms" else 1e-9  # the norm is a figure to look at, and summed up in float32
        torch.testing.assert_close(a, b, rtol=within, atol=1e-9, msg=lambda m, part=part: f"{part}: {m}")
    losses = [s[0] for s in got["steps"]]
    assert losses[-1] < losses[0]  # something is learned here


if __name__ == "__main__":
    curves = {key(n, k): curve(n, c, k) for n, c, k in CASES if c == "off"}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(curves, indent=0, sort_keys=True) + "\n")
