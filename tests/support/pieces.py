"""Steps whose batches are cut, beside whole ones."""

import copy

import torch

import fastmeta
from tests.support.meta import make_labels, relative


def steps(case, family, count=2, weight=None, index=None, **kw):
    """Model, labels and results after `count` steps from the case's start."""
    case, labels = copy.deepcopy((case, make_labels(family, case)))
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=5.0, **kw)
    batch = (case.x, case.index if index is None else index)
    return case.model, labels, [step(batch, case.meta, weight=weight) for _ in range(count)], step


def learned(labels):
    return labels.label_logits if labels.family == "instance" else labels.alpha


def assert_equal(one, other, bound=1e-10):
    (model, labels, results, _), (model2, labels2, results2, _) = one, other
    assert relative(learned(labels), learned(labels2)) < bound
    for a, b in zip(model.state_dict().values(), model2.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=bound, atol=1e-3 * bound)
    for a, b in zip(results, results2, strict=True):
        for key, value in vars(a).items():
            # per-row figures are float32 by the kernels' choice where they are no gradients
            assert torch.allclose(
                value.double(), vars(b)[key].double(), rtol=max(bound, 1e-6), atol=1e-9, equal_nan=True
            ), key
