"""Label tables from outside of the package: the same bits as a dense tensor, wherever the rows lie."""

import copy
import gc

import pytest
import torch

import fastmeta
from fastmeta.losses import table as tables
from fastmeta.losses.label_heads import FetchedHead
from tests.support import cases
from tests.support.capture import Recorder
from tests.support.label_tables import REPEATED, WAYS, Halves, Sparse, after, index_of, problem
from tests.support.meta import relative


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("table", [Sparse, Halves])
def test_the_bits_of_a_dense_table(table, dtype, way):
    want, _ = after(None, dtype=dtype, **WAYS[way])
    got, labels = after(table, dtype=dtype, **WAYS[way])
    assert labels.table is not None
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    assert not torch.equal(want["rows"], problem(None, dtype=dtype)[1].label_logits)


@pytest.mark.parametrize("seed", [5, None])
def test_rows_of_bfloat16_are_rounded_alike(seed):
    made = []
    for table in (None, Sparse, Halves):
        case = cases.make("mlp", dtype=torch.float32)
        given = case.targets, case.num_classes, 0.6
        labels = fastmeta.InstanceLabels(*given, dtype=torch.bfloat16, seed=seed, table=table)
        step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1), label_lr=5.0)
        for _ in range(3):
            step((case.x, index_of(case, "repeated")), case.meta)
        made.append((labels.rows(torch.arange(len(labels))), labels.counters()))
    assert all(torch.equal(rows, made[0][0]) and counters == made[0][1] for rows, counters in made[1:])


def test_a_step_reads_its_rows_once_and_writes_them_once():
    for kw in ({}, {"micro_batch": 5}, {"compile": "trace"}):
        case, labels, step = problem(Sparse, **kw)
        step(case.train, case.meta)
        labels.table.calls.clear()
        step(case.train, case.meta)
        index = case.index.tolist()
        assert labels.table.calls == [("rows", index), ("write_", index)], kw
    labels.table.calls.clear()
    fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=0.1)
    assert {what for what, _ in labels.table.calls} == {"rows"}


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_a_step_that_does_not_count_leaves_the_rows(compile):
    case, labels, step = problem(Sparse, compile=compile)
    step(case.train, case.meta)
    before = labels.rows(torch.arange(len(labels)))
    assert not step((case.x * float("nan"), case.index), case.meta).finite
    assert torch.equal(labels.rows(torch.arange(len(labels))), before)

    def broken(grads):
        raise KeyError("of the user's")

    if compile == "off":
        step.on_grad = broken
        with pytest.raises(KeyError):
            step(case.train, case.meta)
        assert torch.equal(labels.rows(torch.arange(len(labels))), before)


def test_the_gradient_and_the_checker():
    case, labels, _ = problem(Sparse)
    dense = fastmeta.InstanceLabels(case.targets, case.num_classes, 0.6)
    train = case.x, index_of(case, "repeated")
    want, got = (fastmeta.label_gradient(case.model, own, train, case.meta, lr=0.1) for own in (dense, labels))
    assert torch.equal(got.grad, want.grad)
    # in float64, of a table that holds float32
    assert fastmeta.check(case.model, labels, train, case.meta, lr=0.1).ok
    assert not labels.table.moved


def test_a_gradient_that_is_there_moves_repeated_rows_by_the_sum():
    """As ranks do it."""
    index, grad = torch.tensor(REPEATED), torch.randn(len(REPEATED), 3)
    moved = []
    for table in (None, Sparse, Halves):
        for seed in (None, 3):
            dtype = torch.float32 if seed is None else torch.bfloat16
            labels = fastmeta.InstanceLabels(torch.arange(12) % 3, 3, dtype=dtype, seed=seed, table=table)
            labels.move_(index, grad, 0.3)
            moved.append(labels.rows(torch.arange(12)))
    assert all(torch.equal(rows, moved[k % 2]) for k, rows in enumerate(moved))
    assert relative(moved[0][3], fastmeta.InstanceLabels(torch.zeros(1, dtype=torch.int64), 3).label_logits[0]) > 0


def test_a_captured_step_leaves_the_table_outside_of_its_graph():
    case, _, step = problem(Sparse, compile="trace")
    step(case.train, case.meta)
    step._graphs.record = record = Recorder()
    step(case.train, case.meta)
    assert record.replays == 0
    assert "Sparse is read and written from the host" in step.explain()


def test_looks_at_all_labels_come_in_pieces(monkeypatch):
    monkeypatch.setattr(tables, "_AT_ONCE", 12)
    labels = fastmeta.InstanceLabels(torch.arange(10) % 3, 3, table=Sparse)
    dense = fastmeta.InstanceLabels(torch.arange(10) % 3, 3)
    for own in (labels, dense):
        own.write_(torch.tensor([9, 2]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    labels.table.calls.clear()
    assert torch.equal(labels.probs(), dense.probs())
    assert max(len(index) for _, index in labels.table.calls) == 4
    assert torch.equal(labels.dense().label_logits, dense.label_logits)
    assert labels.finite()
    labels.write_(torch.tensor([9]), torch.full((1, 3), torch.inf))
    assert not labels.finite()
    assert labels.movement(0.9) is not None
    assert "in a Sparse" in repr(labels)
    empty = fastmeta.InstanceLabels(torch.zeros(0, dtype=torch.int64), 3, table=Sparse)
    assert empty.probs().shape == (0, 3)


@pytest.mark.parametrize("table", [Sparse, Halves])
def test_state_and_copies(table):
    labels = fastmeta.InstanceLabels(torch.arange(10) % 3, 3, table=table)
    index = torch.tensor([9, 2])
    labels.write_(index, torch.randn(2, 3))
    other = fastmeta.InstanceLabels(torch.arange(10) % 3, 3, table=table)
    other.load_state_dict(labels.state_dict())
    copied = copy.deepcopy(labels)
    for own in (other, copied):
        assert torch.equal(own.probs(), labels.probs())
        own.write_(index, torch.zeros(2, 3))
    assert not torch.equal(other.probs(), labels.probs())
    if table is Halves:
        assert labels.double().rows(index).dtype == torch.float64
        assert labels.bfloat16().seed == 0


class Short(Sparse):
    def rows(self, index):
        return super().rows(index)[:, :2]


class Wide(Sparse):
    @property
    def shape(self):
        return 10, 4


def test_tables_that_cannot_be_used_are_refused():
    make = lambda table: fastmeta.InstanceLabels(torch.arange(10) % 3, 3, table=table)  # noqa: E731
    with pytest.raises(TypeError, match=r"table must make a fastmeta.LabelTable with rows and write_, got "):
        make(lambda start: torch.zeros(start.shape))
    with pytest.raises(TypeError, match=r"table must be a subclass of fastmeta.LabelTable, which is made here, got "):
        make(make(Sparse).table)
    with pytest.raises(TypeError, match="abstract"):
        make(fastmeta.LabelTable)
    with pytest.raises(ValueError, match=r"Wide must have shape \(10, 3\), got \(10, 4\)"):
        make(Wide)
    with pytest.raises(ValueError, match=r"Short.rows\(index\) must give \(1, 3\) of torch.float32 .* got \(1, 2\)"):
        make(Short).rows(torch.tensor([1]))
    with pytest.raises(AttributeError, match=r"the label logits lie in a Sparse; read them by labels.rows\(index\)"):
        _ = make(Sparse).label_logits


def test_a_step_leaves_no_rows_behind_until_garbage_is_collected():
    """Rows of 21,841 classes are 87 kB each."""
    case = cases.make("mlp", dtype=torch.float32)
    labels = fastmeta.InstanceLabels(case.targets, case.num_classes, 0.6, table=Halves)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1), label_lr=5.0)
    step((case.x, index_of(case, "repeated")), case.meta)
    gc.collect()
    gc.disable()
    try:
        step((case.x, index_of(case, "repeated")), case.meta)
        assert not [held for held in gc.get_objects() if type(held) is FetchedHead]
    finally:
        gc.enable()
