"""Under bf16 autocast the products are bf16; weights, label table, u and label gradient are float32, in every mode."""

import copy

import pytest
import torch

import fastmeta
from tests.meta import cases
from tests.meta.test_label_gradient import relative

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
    assert step.plan.way != "difference"
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
