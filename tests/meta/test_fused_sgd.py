"""The update that a traced step takes on CUDA: SGD of all parameters by one operation, or two with momentum."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastmeta.meta.graph import trace
from fastmeta.meta.lookahead import PreparedLookAhead, Rule
from fastmeta.meta.pure import SGDRule, fused_sgd

PLAIN, DECAY = SGDRule(0, 0.0, False, 0.0), SGDRule(1, 0.0, False, 1e-2)
HEAVY, NESTEROV = SGDRule(0, 0.9, False, 0.0), SGDRule(1, 0.9, True, 1e-2)


def problem(rules, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    thetas, grads, buffers = (
        [torch.randn(3 + k, 5, generator=rng, dtype=torch.float64).to(dtype) for k in range(len(rules))]
        for _ in range(3)
    )
    buffers = [b if rule.momentum else None for b, rule in zip(buffers, rules, strict=True)]
    return thetas, grads, buffers, [torch.tensor(x, dtype=dtype) for x in (0.1, 0.03)]


@pytest.mark.parametrize(
    "rules",
    [[PLAIN] * 3, [HEAVY] * 3, [NESTEROV] * 2, [PLAIN, NESTEROV, DECAY, HEAVY, NESTEROV]],
    ids=["plain", "heavy ball", "Nesterov", "mixed"],
)
def test_it_is_the_rule_of_each_parameter(rules):
    thetas, grads, buffers, lrs = problem(rules)
    grads[1] = None
    new, kept = fused_sgd(rules, thetas, grads, buffers, lrs, torch.tensor(True))
    expected = [
        (theta, b) if g is None else rule(theta, g, b, lrs[rule.group])
        for rule, theta, g, b in zip(rules, thetas, grads, buffers, strict=True)
    ]
    torch.testing.assert_close(new, [theta for theta, _ in expected], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(kept, [b for _, b in expected if b is not None], rtol=1e-14, atol=1e-14)
    assert new[1] is thetas[1]


def test_a_step_that_is_not_finite_leaves_every_bit():
    rules = [PLAIN, HEAVY, NESTEROV, DECAY]
    thetas, grads, buffers, lrs = problem(rules, torch.float32)
    for g in grads:
        g[0, 0], g[1, 1] = torch.nan, torch.inf
    new, kept = fused_sgd(rules, thetas, grads, buffers, lrs, torch.tensor(False))
    assert all(map(torch.equal, new, thetas))
    assert all(map(torch.equal, kept, [b for b in buffers if b is not None]))


def updates(graph):
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return calls.count("fastmeta.lookahead_update.default"), calls


@pytest.mark.parametrize(("rule", "launches"), [(DECAY, 1), (NESTEROV, 2)], ids=["plain", "momentum"])
def test_on_cuda_the_graph_holds_one_operation_for_all_parameters(rule, launches):
    """No GPU is needed to see what is traced for one."""
    with FakeTensorMode():
        tensors = [torch.empty(3 + k, 5, device="cuda") for k in range(20) for _ in "tgb"]
        rates = [torch.empty((), device="cuda"), torch.empty((), device="cuda", dtype=torch.bool)]

        def step(lr, finite, *flat):
            thetas, grads, buffers = flat[::3], flat[1::3], flat[2::3] if rule.momentum else [None] * 20
            new, kept = fused_sgd([rule] * 20, thetas, grads, buffers, [lr, lr], finite)
            return [*new, *kept]

        count, calls = updates(trace(step, [*rates, *tensors]))
    assert count == launches
    assert calls.count("aten.where.self") == launches  # masks of the rates, none of a parameter
    assert not [c for c in calls if "mul" in c], calls


def test_on_cuda_the_look_ahead_is_one_operation():
    with FakeTensorMode():
        tensors = [torch.empty(3 + k, 5, device="cuda") for k in range(20) for _ in "tgb"]

        def star(lr, *flat):
            names = [str(k) for k in range(20)]
            params, grads, buffers = (dict(zip(names, flat[k::3], strict=True)) for k in range(3))
            rules = {name: Rule(lr, 0.9, 0.0, True, 5e-4, buffers[name]) for name in names}
            return list(PreparedLookAhead(rules).star(params, grads).values())

        count, calls = updates(trace(star, [torch.empty((), device="cuda"), *tensors]))
    assert count == 1
    assert not [c for c in calls if "mul" in c], calls
