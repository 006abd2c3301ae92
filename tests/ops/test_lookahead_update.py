"""theta* of many parameters at once: against plain torch in float64, over dtypes, layouts, rates and step rules."""

import pytest
import torch

from fastmeta import ops, reference
from tests.support.ops import acc, double

SHAPES = [(7,), (), (0, 3), (64, 3, 3, 3), (33, 129), (100_003,)]
RULES = {
    "sgd": {},
    "decay": {"weight_decay": 5e-4},
    "momentum": {"carry": 0.9, "weight_decay": 5e-4},
    "nesterov": {"gain": 1.9, "carry": 0.81, "weight_decay": 1e-2},
}


def operands(dtype, device, shapes=SHAPES):
    rng = torch.Generator().manual_seed(0)
    return [[torch.randn(s, generator=rng, dtype=torch.float64).to(dtype).to(device) for s in shapes] for _ in range(3)]


def check(params, grads, buffers, rule, got):
    wide = [[double(t) for t in tensors] for tensors in (params, grads, buffers)]
    truth = reference.lookahead_update(*wide, lr=0.1, **rule)
    dtype = params[0].dtype
    for p, out, expected in zip(params, got, truth, strict=True):
        assert (out.dtype, out.device, out.shape) == (p.dtype, p.device, p.shape)
        # half an ulp of the result, and four roundings in acc(T) of terms that are at most |theta*| + 1
        bound = torch.finfo(dtype).eps / 2 * expected.abs() + 4 * torch.finfo(acc(dtype)).eps * (expected.abs() + 1)
        bound += torch.finfo(dtype).smallest_normal
        assert (((double(out) - expected).abs()) <= bound).all()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_truth(rule, dtype, device):
    params, grads, buffers = operands(dtype, device)
    buffers = buffers if "carry" in rule else []
    before = [t.clone() for t in (*params, *grads, *buffers)]
    got = ops.lookahead_update(params, grads, buffers, lr=0.1, **rule)
    check(params, grads, buffers, rule, got)
    assert all(map(torch.equal, (*params, *grads, *buffers), before)), "an operand was written"
    again = ops.lookahead_update(params, grads, buffers, lr=0.1, **rule)
    assert all(map(torch.equal, got, again))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_it_is_the_step_of_torchs_sgd(momentum, nesterov, device):
    if nesterov and not momentum:
        pytest.skip("Nesterov needs momentum")
    params, grads, buffers = operands(torch.float64, device)
    leaves = [p.clone().requires_grad_() for p in params]
    sgd = torch.optim.SGD(leaves, lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=1e-2)
    for p, g, b in zip(leaves, grads, buffers, strict=True):
        p.grad = g.clone()
        if momentum:
            sgd.state[p]["momentum_buffer"] = b.clone()
    sgd.step()
    rule = {"gain": 1 + momentum, "carry": momentum**2} if nesterov else {"carry": momentum}
    got = ops.lookahead_update(params, grads, buffers if momentum else [], lr=0.1, weight_decay=1e-2, **rule)
    torch.testing.assert_close(got, [p.detach() for p in leaves], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_rate_as_a_tensor(kind, device):
    params, grads, _ = operands(torch.float32, device)
    expected = ops.lookahead_update(params, grads, lr=0.25)
    for where in ("cpu", device):
        rate = torch.tensor(0.25, dtype=kind, device=where)
        assert all(map(torch.equal, ops.lookahead_update(params, grads, lr=rate), expected))


def test_a_rate_of_zero_leaves_every_bit(dtype, device):
    params, grads, buffers = operands(dtype, device)
    for t in grads:
        t.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])[: t.numel()]
    got = ops.lookahead_update(params, grads, buffers, lr=torch.zeros((), device=device), carry=0.9)
    assert all(map(torch.equal, got, params))


def channels_last(t):
    return t.to(memory_format=torch.channels_last) if t.ndim == 4 else t


def transposed(t):
    return t.t().contiguous().t() if t.ndim == 2 else t


def gaps(t):
    return torch.nn.functional.pad(t, (1, 2))[..., 1:-2] if t.ndim else t


def offset(t):
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


@pytest.mark.parametrize("layout", [channels_last, transposed, gaps, offset])
@pytest.mark.parametrize("which", ["all", "params", "grads", "buffers"])
def test_layouts(layout, which, dtype, device):
    plain = operands(dtype, device)
    names = ("params", "grads", "buffers")
    laid = [
        [layout(t) for t in tensors] if which in ("all", name) else tensors
        for name, tensors in zip(names, plain, strict=True)
    ]
    rule = RULES["nesterov"]
    got = ops.lookahead_update(*laid, lr=0.1, **rule)
    assert all(map(torch.equal, got, ops.lookahead_update(*plain, lr=0.1, **rule)))
    for p, out in zip(laid[0], got, strict=True):
        kept = p.stride() if layout is not gaps or which not in ("all", "params") else p.contiguous().stride()
        assert out.stride() == kept


def test_threads_do_not_change_a_bit():
    params, grads, buffers = operands(torch.float32, "cpu", [(1000, 300), (5,), (70_000,)])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(ops.lookahead_update(params, grads, buffers, lr=0.1, **RULES["momentum"]))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_nothing_to_do(device):
    assert ops.lookahead_update([], [], lr=0.1) == []


def test_more_parameters_than_a_launch_takes(device):
    params, grads, _ = operands(torch.float32, device, [(3,)] * 1500)
    got = ops.lookahead_update(params, grads, lr=0.1)
    torch.testing.assert_close(torch.stack(got), torch.stack(params) - 0.1 * torch.stack(grads))


@pytest.mark.parametrize("layout", [channels_last, gaps], ids=["channels_last", "gaps"])
def test_compiles_as_one_operation(layout, device):
    torch._dynamo.reset()
    params, grads, buffers = ([layout(t) for t in tensors] for tensors in operands(torch.float32, device))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def star(params, grads, buffers, lr):
        return ops.lookahead_update(params, grads, buffers, lr=lr, **RULES["momentum"])

    with torch._dynamo.config.patch(error_on_recompile=True):
        for rate in (0.1, 0.2):
            lr = torch.tensor(rate, device=device)
            got = star(params, grads, buffers, lr)
            expected = ops.lookahead_update(params, grads, buffers, lr=lr, **RULES["momentum"])
            assert all(map(torch.equal, got, expected))
            assert [t.stride() for t in got] == [t.stride() for t in expected]


P = torch.zeros(2, 3)
ERRORS = {
    "count": (([P], [P, P]), {}, "grads must hold one gradient per parameter, 1, got 2"),
    "no buffers": (([P], [P]), {"carry": 0.9}, "buffers must hold one momentum per parameter, got 0 for 1 parameters"),
    "buffers": (([P], [P], [P]), {}, "buffers must hold none with carry = 0, got 1"),
    "shape": (
        ([P, P], [P, P[:, :2]]),
        {},
        r"grads\[1\] must have the shape of params\[1\], \(2, 3\), got \(2, 2\)",
    ),
    "rank": (([P], [P[0]]), {}, r"grads\[0\] must have the shape of params\[0\], \(2, 3\), got \(3,\)"),
    "gradient's dtype": (([P], [P.double()]), {}, r"grads\[0\] must be float32 as params\[0\], got float64"),
    "dtypes": (
        ([P, P.double()], [P, P.double()]),
        {},
        "params must have one dtype, got float32 and float64; call once for each dtype",
    ),
    "integers": (([P.long()], [P.long()]), {}, "params must be float64, float32, bfloat16 or float16, got int64"),
    "rate": (([P], [P]), {"lr": torch.ones(1)}, r"lr must be a 0-dim float64 or float32 tensor, got shape \(1,\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_argument(case, device):
    lists, keywords, match = ERRORS[case]
    moved = [[t.to(device) for t in tensors] for tensors in lists]
    with pytest.raises(RuntimeError, match=match):
        ops.lookahead_update(*moved, **{"lr": 0.1, **keywords})


def test_device_mix():
    with pytest.raises(ValueError, match=r"grads\[0\] is on meta but params on cpu; move one of them"):
        ops.lookahead_update([P], [P.to("meta")], lr=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_more_than_caches_hold(dtype):
    """32 MiB of results and more are written past the caches, in the same bits as in pieces."""
    sizes = [2**25 // dtype.itemsize, 1, 70_001, 63]
    params, grads, buffers = ([torch.randn(n).to(dtype) for n in sizes] for _ in range(3))
    for rates in ({}, {"carry": 0.9, "weight_decay": 0.1}):
        given = buffers if rates else ()
        got = ops.lookahead_update(params, grads, given, lr=0.1, **rates)
        for k, result in enumerate(got):
            pieces = [
                ops.lookahead_update([p], [g], [b] if rates else (), lr=0.1, **rates)[0]
                for p, g, b in zip(*(x[k].split(2**20) for x in (params, grads, buffers)), strict=True)
            ]
            assert torch.equal(result, torch.cat(pieces))
