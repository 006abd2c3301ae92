"""Which rows micro_batch cuts out of a structure: those of what is per row, by what the caller says."""

import collections
import copy
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.functional.network import Network
from fastmeta.meta.graph_memory import graph_bytes
from fastmeta.meta.rows import take
from tests.support import cases
from tests.support.meta import F64, make_labels
from tests.support.pieces import assert_equal, steps

N = 6
X, OTHER, TABLE = torch.arange(12.0).reshape(N, 2), torch.arange(6.0), torch.arange(24.0).reshape(N, 4)
ROWS = slice(2, 4)


@dataclasses.dataclass(frozen=True)
class Batch:
    x: Any
    table: Any
    scale: float = 2.0


class Pair(NamedTuple):
    x: Any
    table: Any


class Encoding(collections.UserDict):
    """As tokenizers give it."""


@pytest.mark.parametrize(
    ("x", "per_row", "get"),
    [
        ((X, TABLE), (True, False), lambda t: (t[0], t[1])),
        ([X, TABLE], [True, False], lambda t: (t[0], t[1])),
        ({"x": X, "table": TABLE}, {"x": True, "table": False}, lambda t: (t["x"], t["table"])),
        (Encoding(x=X, table=TABLE), {"x": True, "table": False}, lambda t: (t["x"], t["table"])),
        (collections.OrderedDict(x=X, table=TABLE), {"x": True, "table": False}, lambda t: (t["x"], t["table"])),
        (Batch(X, TABLE), {"x": True, "table": False, "scale": False}, lambda t: (t.x, t.table)),
        (Batch(X, TABLE), Batch(True, False, False), lambda t: (t.x, t.table)),
        (Pair(X, TABLE), Pair(True, False), lambda t: (t.x, t.table)),
        (Pair(X, TABLE), (True, False), lambda t: (t.x, t.table)),
        ({"a": [(X, None)], "b": {"c": TABLE}}, {"a": True, "b": False}, lambda t: (t["a"][0][0], t["b"]["c"])),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_is_per_row_is_cut_and_the_rest_is_whole(x, per_row, get):
    taken = take(x, ROWS, N, per_row)
    assert type(taken) is type(x)
    cut, whole = get(taken)
    assert torch.equal(cut, X[ROWS])
    assert whole is TABLE
    assert torch.equal(get(x)[0], X)  # the caller's stays
    assert take(x, slice(0, N), N) is x


def test_all_and_more_than_tensors():
    x = {"ids": X, "mask": OTHER, "text": list("abcdef"), "array": np.arange(N), "scale": torch.tensor(2.0), "n": 3}
    taken = take(x, ROWS, N, True)
    assert torch.equal(taken["mask"], OTHER[ROWS])
    assert taken["text"] == ["c", "d"]
    assert taken["array"].tolist() == [2, 3]
    assert (taken["scale"], taken["n"]) == (x["scale"], 3)
    assert take(X, ROWS, N).tolist() == take(X, ROWS, N, True).tolist() == X[ROWS].tolist()


def test_one_tensor_of_so_many_rows_needs_no_word():
    assert torch.equal(take({"x": X, "scale": torch.tensor(1.5), "few": X[:3]}, ROWS, N)["x"], X[ROWS])
    assert torch.equal(take((X, None, "mode", [1, 2]), ROWS, N)[0], X[ROWS])


@pytest.mark.parametrize(
    ("x", "per_row", "text"),
    [
        ((X, TABLE), None, r"cut x of 6 rows, a tuple, and x\[0\], x\[1\] may each be per row or shared"),
        ({"x": X, "text": list("abcdef")}, None, r"x\['x'\], x\['text'\] may each be per row"),
        ({"x": X, "other": object()}, None, r"x\['x'\], x\['other'\] may each"),
        ({"x": X, "names": np.arange(N)}, None, r"x\['x'\], x\['names'\] may each"),
        ([X[:2], X[2:]], None, "no tensor in it has 6 rows; say so by per_row="),
        (list("abcdef"), None, "no tensor in it has 6 rows, and x may be anything"),
        (
            {"x": X, "y": X[:5]},
            True,
            r"cuts x\['y'\] by its rows, which must be 6 .*got a Tensor of shape \(5, 2\); for",
        ),
        ((X, list("abc")), True, r"cuts x\[1\] by its rows, .*got a list of length 3"),
        (X[:5], None, r"cuts x by its rows, which must be 6 along the first dimension, got a Tensor of shape \(5, 2\)"),
        ((X, TABLE), (False, False), "cut x, in which per_row says that nothing is per row"),
        (X, False, "nothing is per row"),
        ((X, TABLE), (True,), r"per_row of x must be True, False or a tuple of 2, got \(True,\)"),
        ({"x": X, "y": TABLE}, {"x": True}, "per_row of x must be True, False or a dict of 'x', 'y'"),
        ((X, TABLE), (1, 0), r"per_row of x\[0\] must be True or False, got 1"),
        ((X, torch.eye(N).to_sparse()), True, r"cannot cut x\[1\], a tensor of layout torch.sparse_coo; say per_row=F"),
        ((X, torch.nested.nested_tensor([X, X[:1]])), True, r"cannot cut x\[1\], a nested tensor"),
        ((X, nn.utils.rnn.pack_sequence([X, X])), True, r"cannot cut x\[1\], a PackedSequence"),
        ((X, object()), True, r"cannot cut x\[1\], a object"),
        ((X, {1, 2}), True, r"cannot cut x\[1\], a set"),
    ],
)
def test_what_is_not_said_or_wrong_is_refused_by_name(x, per_row, text):
    with pytest.raises(ValueError, match=text) as error:
        take(x, ROWS, N, per_row)
    assert "\n" not in str(error.value)


class Support(nn.Module):
    """Scores by likeness to the embeddings of a support set."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 10)

    def forward(self, batch):
        x, support = batch
        return torch.tanh(self.embed(x)) @ torch.tanh(self.embed(support)).T


def support_case():
    case = cases.make("mlp", 8)
    case.model = Support().double()
    support = torch.randn(8, 6, dtype=F64)  # as many rows as the batch
    case.x, case.x_meta = (case.x, support), (case.x_meta, support)
    return case


@pytest.mark.parametrize("tangent", ["forward", "reverse"])
def test_a_support_set_of_as_many_rows_is_not_cut(tangent):
    case = support_case()
    whole = steps(case, fastmeta.InstanceLabels, tangent=tangent)
    assert_equal(steps(case, fastmeta.InstanceLabels, tangent=tangent, micro_batch=3, per_row=(True, False)), whole)
    with pytest.raises(ValueError, match=r"x\[0\], x\[1\] may each be per row or shared"):
        steps(case, fastmeta.InstanceLabels, tangent=tangent, micro_batch=3)
    # wrong by what the caller said, and found out: the rows that are left have other logits
    with pytest.raises(ValueError, match=r"3 rows of x alone give logits of shape \(3, 3\)"):
        steps(case, fastmeta.InstanceLabels, tangent=tangent, micro_batch=3, per_row=True)
    assert graph_bytes(Network(case.model), case.x, 8, 3, (True, False)) is not None


def test_meta_input_of_another_structure():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cases.mlp(10)

        def forward(self, x):
            return self.inner(x["x"] * x["scale"] if isinstance(x, dict) else x)

    case = cases.make("mlp")
    case.model = Either().double()
    case.x = {"x": case.x, "scale": torch.rand(8, 6, dtype=F64)}
    whole = steps(case, fastmeta.InstanceLabels)
    kw = {"micro_batch": 3, "per_row": {"x": True, "scale": True}}
    assert_equal(steps(case, fastmeta.InstanceLabels, per_row_meta=True, **kw), whole)
    with pytest.raises(ValueError, match="per_row of x_meta must be True or False, got"):
        steps(case, fastmeta.InstanceLabels, **kw)


class Sequences(nn.Module):
    """An LSTM that takes its first dimension for time."""

    def __init__(self, first):
        super().__init__()
        self.first, self.rnn, self.head = first, nn.LSTM(6, 7), nn.Linear(7, 10)

    def forward(self, x):
        h = self.rnn(x)[0]
        return self.head(h[-1] if self.first else h[:, -1])


@pytest.mark.parametrize("first", [True, False])
def test_rows_that_are_not_along_the_first_dimension_or_hang_together_are_found_out(first):
    case = cases.make("mlp")
    case.model, case.x, case.x_meta = (
        Sequences(first).double(),
        torch.randn(8, 8, 6, dtype=F64),
        torch.randn(12, 12, 6, dtype=F64),
    )
    before = copy.deepcopy(case.model.state_dict())
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, micro_batch=3, tangent="reverse")
    state = torch.get_rng_state()
    with pytest.raises(
        ValueError,
        match=r"micro_batch: 3 rows of x alone give (logits of shape .8, 10.|other logits than among all 8):",
    ):
        step(case.train, case.meta)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in case.model.state_dict().items())
    fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, tangent="reverse")(case.train, case.meta)
