"""The update that a traced step takes on CUDA: SGD of all parameters by one operation for each term."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastmeta.meta.engines.graph import trace
from fastmeta.meta.engines.pure import GroupNumbers, Terms, move
from fastmeta.meta.lookahead import PreparedLookAhead, Rule, fused_plus

PLAIN, DECAY = Terms(0, False, False, False), Terms(1, False, False, True)
HEAVY, NESTEROV = Terms(0, True, False, False), Terms(1, True, True, True)
NUMBERS = (0.1, 0.9, 0.0), (0.03, 0.8, 1e-2)  # lr, momentum, weight decay


def problem(rules, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    thetas, grads, buffers = (
        [torch.randn(3 + k, 5, generator=rng, dtype=torch.float64).to(dtype) for k in range(len(rules))]
        for _ in range(3)
    )
    buffers = [b if rule.momentum else None for b, rule in zip(buffers, rules, strict=True)]
    groups = [GroupNumbers(*(torch.tensor(x, dtype=dtype) for x in numbers)) for numbers in NUMBERS]
    return thetas, grads, buffers, groups


def by_torch(theta, grad, buffer, rule):
    """torch.optim.SGD on one parameter."""
    lr, momentum, decay = NUMBERS[rule.group]
    p = torch.nn.Parameter(theta.clone())
    p.grad = grad
    optimizer = torch.optim.SGD(
        [p],
        lr=lr,
        momentum=momentum if rule.momentum else 0.0,
        nesterov=rule.nesterov,
        weight_decay=decay if rule.weight_decay else 0.0,
    )
    if buffer is not None:
        optimizer.state[p]["momentum_buffer"] = buffer.clone()
    optimizer.step()
    return p.detach(), optimizer.state[p].get("momentum_buffer") if rule.momentum else None


@pytest.mark.parametrize(
    "rules",
    [[PLAIN] * 3, [HEAVY] * 3, [NESTEROV] * 2, [PLAIN, NESTEROV, DECAY, HEAVY, NESTEROV]],
    ids=["plain", "heavy ball", "Nesterov", "mixed"],
)
def test_it_is_the_rule_of_each_parameter(rules):
    thetas, grads, buffers, groups = problem(rules)
    grads[1] = None
    new, kept = move(rules, thetas, grads, buffers, groups, fused_plus, torch.tensor(True))
    expected = [
        (theta, b) if g is None else by_torch(theta, g, b, rule)
        for rule, theta, g, b in zip(rules, thetas, grads, buffers, strict=True)
    ]
    torch.testing.assert_close(new, [theta for theta, _ in expected], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(kept, [b for _, b in expected if b is not None], rtol=1e-14, atol=1e-14)
    assert new[1] is thetas[1]


def test_a_step_that_is_not_finite_leaves_every_bit():
    rules = [PLAIN, HEAVY, NESTEROV, DECAY]
    thetas, grads, buffers, groups = problem(rules, torch.float32)
    for g in grads:
        g[0, 0], g[1, 1] = torch.nan, torch.inf
    new, kept = move(rules, thetas, grads, buffers, groups, fused_plus, torch.tensor(False))
    assert all(map(torch.equal, new, thetas))
    assert all(map(torch.equal, kept, [b for b in buffers if b is not None]))


def updates(graph):
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return calls.count("fastmeta.lookahead_update.default"), calls


@pytest.mark.parametrize(
    ("rule", "launches"), [(PLAIN, 1), (DECAY, 2), (HEAVY, 3), (NESTEROV, 5)], ids=["plain", "decay", "momentum", "all"]
)
def test_on_cuda_the_graph_holds_one_operation_for_all_parameters(rule, launches):
    """No GPU is needed to see what is traced for one."""
    with FakeTensorMode():
        tensors = [torch.empty(3 + k, 5, device="cuda") for k in range(20) for _ in "tgb"]
        rates = [torch.empty((), device="cuda"), torch.empty((), device="cuda", dtype=torch.bool)]

        def step(lr, finite, *flat):
            thetas, grads, buffers = flat[::3], flat[1::3], flat[2::3] if rule.momentum else [None] * 20
            numbers = GroupNumbers(lr, lr, lr)
            new, kept = move([rule] * 20, thetas, grads, buffers, [numbers, numbers], fused_plus, finite)
            return [*new, *kept]

        count, calls = updates(trace(step, [*rates, *tensors]))
    assert count == launches
    assert calls.count("aten.where.self") == 1 + rule.momentum  # masks of the rates, none of a parameter
    assert not [c for c in calls if "mul" in c], calls


@pytest.mark.parametrize("lookahead", ["sgd", "optimizer"])
def test_on_cuda_the_look_ahead_is_one_operation_for_each_term(lookahead):
    with FakeTensorMode():
        tensors = [torch.empty(3 + k, 5, device="cuda") for k in range(20) for _ in "tgb"]

        def star(lr, *flat):
            names = [str(k) for k in range(20)]
            params, grads, buffers = (dict(zip(names, flat[k::3], strict=True)) for k in range(3))
            rules = {name: Rule(lr, lr, 0.0, True, lr, buffers[name]) for name in names}
            if lookahead == "sgd":
                rules = dict.fromkeys(names, Rule(lr))
            return list(PreparedLookAhead(rules).ahead(params, grads).values())

        count, calls = updates(trace(star, [torch.empty((), device="cuda"), *tensors]))
    assert count == (4 if lookahead == "optimizer" else 1)
    assert not [c for c in calls if "mul" in c], calls
