"""Under bf16 autocast the products are bf16; weights, label table, u and label gradient are float32, in every mode."""

import copy

import pytest
import torch
from torch import nn

import fastmeta
from tests.support import cases
from tests.support.meta import relative

MODES = [{}, {"compile": "trace"}, {"micro_batch": 3}]


def run(case, labels, bf16, **kw):
    case, labels = copy.deepcopy((case, labels))
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=10.0, **kw)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        results = [step(case.train, case.meta) for _ in range(2)]
    return case, labels, optimizer, results, step


@pytest.mark.parametrize("mode", MODES, ids=["eager", "trace", "pieces"])
@pytest.mark.parametrize("name", ["mlp", "groupnorm"])
def test_what_stays_float32(name, mode):
    case = cases.make(name, dtype=torch.float32)
    start = fastmeta.InstanceLabels(case.targets, 10, 0.8)
    _, exact, _, _, _ = run(case, start, bf16=False)
    moved, labels, optimizer, results, step = run(case, start, bf16=True, **mode)
    assert step._untraced == ""
    assert step.plan.kind != "difference"
    state = [*moved.model.parameters(), labels.label_logits]
    state += [s["momentum_buffer"] for s in optimizer.state.values()]
    assert {t.dtype for t in state} == {torch.float32}
    for r in results:
        assert bool(r.finite)
        floats = {k: v.dtype for k, v in vars(r).items() if v.is_floating_point()}
        assert set(floats.values()) == {torch.float32}, floats
    ours, truth = (t.label_logits - start.label_logits for t in (labels, exact))
    # 8 bits of mantissa: more than float32 could be off, less than a wrong term
    assert 1e-5 < relative(ours, truth) < 0.1


@pytest.mark.parametrize("tangent", ["forward", "reverse"])
def test_the_graph_casts_back_before_the_labels(tangent):
    """The products are bf16 in the graph, too, and the label step takes logits, u and rows in float32."""
    case = cases.make("mlp", dtype=torch.float32)
    labels = fastmeta.InstanceLabels(case.targets, 10, 0.8)
    step = run(case, labels, bf16=True, compile="trace", tangent=tangent)[-1]
    (graph,) = step._graphs.graphs
    calls = [n for n in graph.graph.nodes if n.op == "call_function"]
    products = [n for n in calls if n.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)]
    assert {n.meta["val"].dtype for n in products} == {torch.bfloat16}
    (move,) = [n for n in calls if "instance_label_step" in str(n.target)]
    values = [a.meta["val"] for a in move.args if isinstance(a, torch.fx.Node)]
    matrices = [v for v in values if v.is_floating_point() and v.ndim == 2]
    assert len(matrices) == 3
    assert {v.dtype for v in matrices} == {torch.float32}


class Guarded(nn.Module):
    """Its middle layer runs in float32 whatever autocast says."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        with torch.autocast("cpu", enabled=False):
            h = torch.tanh(self.middle(h.float()))
        return self.last(h)


def test_a_region_without_autocast_stays_one_in_a_graph():
    """Its product was cast when the graph was traced a second time, and again when it ran."""
    learned = []
    for mode in ("off", "trace"):
        torch.manual_seed(0)
        model, case = Guarded(), cases.make("mlp", dtype=torch.float32)
        labels = fastmeta.InstanceLabels(case.targets % 3, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = fastmeta.MetaStep(model, labels, optimizer, label_lr=50.0, compile=mode, tangent="reverse")
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                step(case.train, (case.x_meta, case.y_meta % 3))
        learned.append([*model.parameters(), labels.label_logits])
    products = [n for n in step._graphs.graphs[0].graph.nodes if n.target is torch.ops.aten.addmm.default]
    dtypes = [n.meta["val"].dtype for n in products]
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16] * 2  # train and meta
    for a, b in zip(*learned, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
