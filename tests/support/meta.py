"""A label gradient and whole steps by the reference, and by the library, on the cases of tests/support/cases.py."""

import torch

import fastmeta
from fastmeta import reference

F64 = torch.float64


def reference_gradient(case, labels, lookahead, weight=None):
    if isinstance(labels, fastmeta.InstanceLabels):
        param, probs_of = labels.label_logits[case.index], reference.instance_probs
    else:
        param, probs_of = labels.alpha, lambda a: reference.class_probs(a, case.targets[case.index])
    return reference.label_gradient(
        case.model, param, probs_of, case.x, case.x_meta, case.y_meta, lookahead=lookahead, weight=weight
    )


def make_labels(family, case):
    p0 = 0.8 if case.num_classes > 2 else 0.7
    return family(case.targets, case.num_classes, p0, dtype=F64)


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


FAMILIES = [fastmeta.InstanceLabels, fastmeta.ClassLabels]


def optimizers(params):
    sgd = torch.optim.SGD
    return {
        "plain": sgd(params, lr=0.2),
        "momentum": sgd(params, lr=0.2, momentum=0.9, weight_decay=0.01),
        "dampened": sgd(params, lr=0.2, momentum=0.9, dampening=0.3, weight_decay=0.01),
        "nesterov": sgd(params, lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01),
    }


ETA = {"instance": 40.0, "class": 3.0}


def run_reference(case, labels, lookahead, group, steps):
    """`steps` reference iterations, in place on case.model; the final label parameter."""
    instance = labels.family == "instance"
    table = (labels.label_logits if instance else labels.alpha).clone()
    keys = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    buffers = None
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        index, x, x_meta, y_meta = draw(case, generator)
        state = reference.SGDState(**{k: group[k] for k in keys}, buffers=buffers)
        look = {"sgd": None, "optimizer": state}.get(lookahead, reference.SGDState(lookahead) if lookahead else None)
        targets = labels.targets[index]
        param, buffers = reference.meta_step(
            case.model,
            table[index] if instance else table,
            reference.instance_probs if instance else lambda a, t=targets: reference.class_probs(a, t),
            x,
            x_meta,
            y_meta,
            label_lr=ETA[labels.family],
            optimizer=state,
            lookahead=look,
            constrain=(lambda t: t) if instance else (lambda a: a.clamp(0, 1)),
        )
        if instance:
            table[index] = param
        else:
            table = param
    return table


def draw(case, generator):
    """A fresh batch of each kind: permuted rows, meta batch distributed differently from the train batch."""
    n, m = len(case.index), len(case.y_meta)
    index = torch.randperm(len(case.targets), generator=generator)[:n]
    if not case.x.is_floating_point():
        return index, case.x[torch.randperm(n, generator=generator)], case.x_meta, case.y_meta
    x = torch.randn(case.x.shape, generator=generator, dtype=F64)
    x_meta = 2 * torch.randn(case.x_meta.shape, generator=generator, dtype=F64) + 0.5
    return index, x, x_meta, torch.randint(case.num_classes, (m,), generator=generator)


def run_fast(case, labels, optimizer, steps, **kw):
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=ETA[labels.family], unique_index=True, **kw)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        index, x, x_meta, y_meta = draw(case, generator)
        result = step((x, index), (x_meta, y_meta))
        assert bool(result.finite)
        assert int(result.skipped) == 0
    return step


def bad_batches(case):
    x = case.x.clone()
    x[2, 0] = torch.nan
    x_meta = case.x_meta.clone()
    x_meta[0, 0] = torch.inf
    return {"train": ((x, case.index), case.meta), "meta": (case.train, (x_meta, case.y_meta))}
