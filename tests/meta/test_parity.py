"""32 steps beside the reference's in fp32 and under bf16 autocast: no further from float64 than that is itself.

No tolerance is picked by hand: how far rounding carries a run in so many steps is what the reference shows.
"""

import copy
import functools

import torch
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.functional.call import pick_logits
from tests.support.pairs import parametrize_some

STEPS, N, ROWS, META, CLASSES = 32, 40, 10, 12, 5
#: how much more than the reference's rounding error ours may be: both are a draw of the same size
FACTOR = 2.0


class Gelu(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 24), nn.GELU("tanh"))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x):
        return self.head(self.body(x))


@functools.cache
def problem():
    g = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    model = Gelu().double()
    x = torch.randn(N + META, 6, generator=g, dtype=torch.float64)
    y = torch.randint(CLASSES, (N + META,), generator=g)
    batches = [torch.randperm(N, generator=g)[:ROWS] for _ in range(STEPS)]
    return model, x, y, batches


def start(family, dtype):
    model, x, y, batches = problem()
    labels = getattr(fastmeta, family)(y[:N], CLASSES, 0.7).to(dtype)
    return copy.deepcopy(model).to(dtype), labels, x.to(dtype), y, batches


def rate(family):
    return 30.0 if family == "InstanceLabels" else 1.0


def by_reference(family, dtype, bf16):
    model, labels, x, y, batches = start(family, dtype)
    instance, momenta = family == "InstanceLabels", None
    param = labels.label_logits if instance else labels.alpha
    for index in batches:
        sgd = reference.SGDState(0.1, momentum=0.9, nesterov=True, weight_decay=1e-3, buffers=momenta)
        targets = y[index]
        if instance:
            of, probs_of, constrain = param[index], lambda rows: rows.softmax(1), lambda rows: rows
        else:
            of, constrain = param, lambda alpha: alpha.clamp(0, 1)

            def probs_of(alpha, targets=targets):
                a = alpha[targets].unsqueeze(1)
                return (a / (CLASSES - 1)).expand(-1, CLASSES).scatter(1, targets.unsqueeze(1), 1 - a)

        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            new, momenta = reference.meta_step(
                model,
                of,
                probs_of,
                x[index],
                x[N:],
                y[N:],
                label_lr=rate(family),
                optimizer=sgd,
                constrain=constrain,
                logits_of=(lambda z: z.float()) if bf16 else pick_logits,
            )
        if instance:
            param[index] = new
        else:
            param.copy_(new)
    return state(model, param)


def by_step(family, bf16, **options):
    model, labels, x, y, batches = start(family, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=rate(family), unique_index=True, **options)
    for index in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            step((x[index], index), (x[N:], y[N:]))
    assert int(step.nonfinite_steps) == 0
    return state(model, labels.label_logits if family == "InstanceLabels" else labels.alpha)


def state(model, label):
    weights = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    return {"labels": label.double().flatten(), "model": weights}


@functools.cache
def truth(family):
    return by_reference(family, torch.float64, False)


@functools.cache
def rounded(family, bf16):
    """How far the reference's own arithmetic takes it from float64."""
    ours, exact = by_reference(family, torch.float32, bf16), truth(family)
    return {k: float((ours[k] - exact[k]).norm()) for k in exact}


@parametrize_some(
    2,
    family=["InstanceLabels", "ClassLabels"],
    bf16=[False, True],
    tangent=["reverse", "forward"],
    compile=["off", "trace"],
)
def test_32_steps(family, bf16, tangent, compile):
    got, exact, bound = by_step(family, bf16, tangent=tangent, compile=compile), truth(family), rounded(family, bf16)
    begin = start(family, torch.float64)
    moved = state(begin[0], begin[1].label_logits if family == "InstanceLabels" else begin[1].alpha)
    for part, value in exact.items():
        error = float((got[part] - value).norm())
        assert 0 < bound[part] < 0.1 * float((value - moved[part]).norm()), part  # the runs are the same run
        assert error <= FACTOR * bound[part], f"{part}: {error:.2e} from float64, the reference {bound[part]:.2e}"
