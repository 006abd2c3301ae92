"""Label families as modules: starts, distributions, state, errors."""

import copy

import numpy as np
import pytest
import torch

import fastmeta
from fastmeta import reference
from fastmeta.losses import DenseTable, class_gradient, put_rows_, take_rows

TARGETS = torch.tensor([2, 0, 1, 1, 2])


@pytest.mark.parametrize("p0", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("family", [fastmeta.InstanceLabels, fastmeta.ClassLabels])
def test_start(family, p0):
    labels = family(TARGETS, 4, p0, dtype=torch.float64)
    p = labels.probs()
    given = p.gather(1, TARGETS.unsqueeze(1))
    assert torch.allclose(given, torch.tensor(p0, dtype=torch.float64), rtol=1e-12)
    rest = p.scatter(1, TARGETS.unsqueeze(1), (1 - p0) / 3)
    assert torch.allclose(rest, torch.tensor((1 - p0) / 3, dtype=torch.float64), rtol=1e-12)
    index = torch.tensor([4, 1])
    assert torch.equal(labels.probs(index), p[index])
    assert len(labels) == 5


def test_margin_and_one_hot_start():
    labels = fastmeta.InstanceLabels(TARGETS, 4, 0.7, dtype=torch.float64)
    assert float(labels.label_logits.max()) == pytest.approx(reference.target_margin(0.7, 4))
    assert torch.equal(fastmeta.ClassLabels(TARGETS, 4, 1.0).probs(), torch.nn.functional.one_hot(TARGETS, 4).float())
    with pytest.raises(ValueError, match="a softmax reaches 1 only with an infinite logit"):
        fastmeta.InstanceLabels(TARGETS, 4, 1.0)


def test_modules():
    labels = fastmeta.InstanceLabels(TARGETS.to(torch.int32), 4)
    assert not list(labels.parameters())
    assert set(labels.state_dict()) == {"targets", "label_logits"}
    other = fastmeta.InstanceLabels(torch.zeros(5, dtype=torch.int64), 4)
    other.load_state_dict(labels.state_dict())
    assert torch.equal(other.probs(), labels.probs())
    rows = torch.randn(2, 4)
    copied = copy.deepcopy(labels)
    copied.write_(torch.tensor([3, 0]), rows)
    assert torch.equal(copied.rows(torch.tensor([0, 3])), rows.flip(0))
    assert not torch.equal(copied.label_logits, labels.label_logits)
    assert labels.double().label_logits.dtype == torch.float64
    assert "N=5, num_classes=4" in repr(fastmeta.ClassLabels(TARGETS, 4))


@pytest.mark.parametrize("family", [fastmeta.InstanceLabels, fastmeta.ClassLabels])
def test_errors(family):
    with pytest.raises(ValueError, match="targets must be a vector of class numbers"):
        family(TARGETS.float(), 4)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\] for num_classes=2, got 0 to 2"):
        family(TARGETS, 2)
    for count in (1, 3.0, "3"):
        with pytest.raises(ValueError, match=f"num_classes must be a whole number of at least 2, got {count!r}"):
            family(TARGETS * 0, count)
    for dtype in (torch.int64, torch.float16, "float32", *([torch.bfloat16] if family is fastmeta.ClassLabels else [])):
        with pytest.raises(ValueError, match=r"dtype must be one of torch\.float32, .*, got "):
            family(TARGETS, 4, dtype=dtype)
    assert family(TARGETS, np.int64(4)).num_classes == 4
    with pytest.raises(ValueError, match="target_prob must lie"):
        family(TARGETS, 4, 1.5)
    with pytest.raises(ValueError, match="needs positive lr, batch_size and visits, got 0"):
        family(TARGETS, 4).default_label_lr(0.0, 128)


def test_default_label_rate_lies_in_the_papers_grids():
    instance, smoothing = fastmeta.InstanceLabels(TARGETS, 4), fastmeta.ClassLabels(TARGETS, 4)
    assert 5 <= instance.default_label_lr(0.4, 128, 165) <= 100
    assert 0.01 <= smoothing.default_label_lr(0.4, 128, 165) <= 3
    # lambda / n times the rate, over a run, is one number
    travel = [lr / n * v * instance.default_label_lr(lr, n, v) for lr, n, v in ((0.1, 64, 10), (0.4, 128, 165))]
    assert travel[0] == pytest.approx(travel[1])


def test_alpha_of_another_dtype_is_refused():
    labels = fastmeta.ClassLabels(TARGETS, 4)
    with pytest.raises(TypeError, match=r"alpha must be torch.float64 for logits of torch.float64"):
        labels.batch_loss(torch.randn(2, 4, dtype=torch.float64), torch.tensor([0, 1]))


@pytest.mark.parametrize("index", [[2, 0], [2, -1, 0, 5], [9, 2, 2, -7], [0, 4, 7], [-1, 5], [7]])
def test_rows_out_of_range_are_neither_read_nor_written(index):
    """As on CUDA, where torch's own indexing would end the context."""
    table = torch.arange(15.0).reshape(5, 3)
    index = torch.tensor(index)
    inside = (index >= 0) & (index < 5)
    taken = take_rows(DenseTable(table), index)
    assert torch.equal(taken[inside], table[index[inside]])
    assert taken[~inside].isnan().all()
    want = table.clone()
    want[index[inside]] = 100 + table[index[inside]]
    put_rows_(DenseTable(table), index, 100 + taken)
    assert torch.equal(table, want)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", ["off", "trace", "full"])
@pytest.mark.parametrize("family", [fastmeta.InstanceLabels, fastmeta.ClassLabels])
def test_a_row_out_of_range_on_cuda_is_counted_and_moves_nothing(family, compile):
    model = torch.nn.Linear(6, 3).cuda()
    labels = family(torch.tensor([0, 1, 2, 1]), 3).cuda()
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1), label_lr=1.0, compile=compile)
    x, y_meta = torch.randn(4, 6, device="cuda"), torch.tensor([0, 1, 2, 0], device="cuda")
    before = {k: t.clone() for k, t in {**model.state_dict(), **labels.state_dict()}.items()}
    result = step((x, torch.tensor([0, 1, 99, -1], device="cuda")), (x, y_meta))
    # the loss of two rows is NaN, with it the gradient, and with that u of every row
    assert int(result.skipped) == 4
    assert not bool(result.finite)
    for k, t in {**model.state_dict(), **labels.state_dict()}.items():
        assert torch.equal(t, before[k]), k
    assert bool(step((x, torch.arange(4, device="cuda")), (x, y_meta)).finite)


def test_autocast_rounds_no_label_gradient():
    """Two of them are matrix products, which autocast would take in bfloat16."""
    u, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 1, 0, 0])
    wide = class_gradient(targets, 3, u.double(), 0.5)
    table = fastmeta.InstanceLabels(targets, 3, dtype=torch.bfloat16)
    twin = copy.deepcopy(table)
    twin.move_(targets, u, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(class_gradient(targets, 3, u, 0.5), wide.float())
        table.move_(targets, u, 0.5)
    assert torch.equal(table.label_logits, twin.label_logits)
