"""What only a GPU can show: every geometry on real blocks and clusters, streams, graphs, devices, errors.

``benchmarks/gpu_checks.sh`` runs this file, and all tests of the operations, also under compute-sanitizer.
"""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from fastmeta import ops
from tests.support.ops import BY_NAME, OPS, Batch, Op, check

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# every geometry of csrc/cuda/launch.cuh, rows on and off 16-byte boundaries; the large ones are clusters on sm_90
CLASSES = [10, 100, 257, 1000, 2000, 3000, 4097, 10_000, 21_841, 50_257, 65_536, 70_001]
ROWS = {10: 200, 100: 1100, 257: 300, 1000: 300, 2000: 100}  # as many as keep their own geometry; of others 9


def batch(num_classes: int, dtype: torch.dtype, seed: int, **changes) -> Batch:
    rows = ROWS.get(num_classes, 9)
    return Batch(rows, num_classes, dtype, "cuda", **{"size": rows + 3, "seed": seed, **changes})


def poison() -> None:
    """Fill what the allocator will hand out next with NaN, so that an element left unwritten shows."""
    torch.cuda.empty_cache()
    blocks = [
        torch.full((size,), torch.nan, device="cuda") for size in (2**7, 2**12, 2**17, 2**20, 2**22) for _ in "1234"
    ]
    del blocks


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kernels_of(launch: Callable[[], object]) -> list[str]:
    """What the device ran for it: kernels, copies, memory set."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        launch()
        torch.cuda.synchronize()
    return [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]


class Unique(Op):
    """instance_label_step_ with the promise of unique rows: the one-pass kernels."""

    def _run(self, module, args):
        keywords = {"unique": True} if module is ops else {}
        table = args[0].clone()
        result = getattr(module, self.name)(table, *args[1:], **keywords)
        return {**dict(zip(self.outputs, result, strict=False)), "written": table}


UNIQUE = Unique(**vars(BY_NAME["instance_label_step_"]))
ALL = [*OPS, UNIQUE]
NAMES = [*BY_NAME, "instance_label_step_ unique"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("op", ALL, ids=NAMES)
def test_every_element_against_float64(op, num_classes, dtype):
    b = batch(num_classes, dtype, seed=torch.seed() % 2**31, distinct=op is UNIQUE)
    poison()
    try:
        check(op, b)
    except AssertionError as error:
        raise AssertionError(f"seed {b.seed}: {error}") from error


@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("op", ALL, ids=NAMES)
def test_same_bits_twice(op, num_classes):
    b = batch(num_classes, torch.float32, seed=1, distinct=op is UNIQUE)
    first = op.fused(b)
    poison()
    assert same(first, op.fused(b))


def test_clusters_and_streamed_rows_agree():
    """unique=False streams such rows on every device."""
    for num_classes in (21_841, 50_257, 65_536):
        b = batch(num_classes, torch.float32, seed=2, distinct=True)
        one, two = UNIQUE.fused(b), BY_NAME["instance_label_step_"].fused(b)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ALL, ids=NAMES)
def test_on_a_stream_of_its_own(op):
    """The operation waits for what its stream holds, and for nothing else."""
    b = batch(1000, torch.float32, seed=3, distinct=op is UNIQUE)
    expected, logits = op.fused(b), b.logits.clone()
    b.logits.fill_(torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        b.logits.copy_(logits)
        got = op.fused(b)
    stream.synchronize()
    assert same(got, expected)


@pytest.mark.parametrize("num_classes", [100, 21_841])
@pytest.mark.parametrize("op", ALL, ids=NAMES)
def test_in_a_captured_graph(op, num_classes):
    """Replays follow their inputs, and a rate on the device."""
    b, other = (batch(num_classes, torch.float32, seed=s, distinct=op is UNIQUE) for s in (4, 5))
    op.fused(b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = op.fused(b)
    for name in ("logits", "u", "probs", "table", "alpha", "index", "targets", "weight"):
        getattr(b, name).copy_(getattr(other, name))
    for _ in range(2):
        graph.replay()
    assert same(got, op.fused(other))


@pytest.mark.parametrize("count", [62, 300])
def test_the_lookahead_in_a_captured_graph(count):
    """The table of parameters travels in the launch; the rate is read at each replay."""
    params, grads, buffers = ([torch.randn(1 + 37 * k, device="cuda") for k in range(count)] for _ in range(3))
    rate = torch.tensor(0.1, device="cuda")
    rule = {"gain": 1.9, "carry": 0.81, "weight_decay": 5e-4}
    ops.lookahead_update(params, grads, buffers, lr=rate, **rule)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.lookahead_update(params, grads, buffers, lr=rate, **rule)
    rate.fill_(0.3)
    torch._foreach_mul_(grads, 2.0)
    graph.replay()
    assert all(map(torch.equal, got, ops.lookahead_update(params, grads, buffers, lr=rate, **rule)))


@pytest.mark.parametrize("count", [62, 300])
def test_the_lookahead_is_one_launch(count):
    params, grads = ([torch.randn(5000, device="cuda") for _ in range(count)] for _ in range(2))
    ops.lookahead_update(params, grads, lr=0.1)
    kernels = kernels_of(lambda: ops.lookahead_update(params, grads, lr=0.1))
    assert len(kernels) == 1, kernels


def test_loss_and_step_of_instance_labels_are_one_launch_each():
    b = batch(1000, torch.float32, seed=7, distinct=True)
    launches = {
        "loss": lambda: ops.instance_loss(b.logits, b.table, b.index, b.weight),
        "step": lambda: ops.instance_label_step_(b.table, b.index, b.logits, b.u, 0.1, 5.0, b.weight, unique=True),
    }
    for name, launch in launches.items():
        launch()
        assert len(kernels_of(launch)) == 1, name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("op", ALL, ids=NAMES)
def test_on_the_second_device(op):
    """The tensors' device counts, not the current one."""
    first, second = (Batch(9, 21_841, device=f"cuda:{i}", size=12, distinct=op is UNIQUE) for i in (0, 1))
    with torch.cuda.device(0):
        expected, got = op.fused(first), op.fused(second)
    assert all(t.device.index == 1 for t in got.values())
    assert same({k: t.cpu() for k, t in got.items()}, {k: t.cpu() for k, t in expected.items()})


def test_compiled_in_one_graph():
    torch._dynamo.reset()
    b = batch(1000, torch.float32, seed=6, distinct=True)

    @torch.compile(fullgraph=True)
    def step(rows, logits, u, label_lr):
        before = ops.instance_loss(logits * 2, rows, torch.arange(len(rows), device="cuda"))
        after = ops.instance_label_step(rows + 1, b.index, logits * 2, u, 0.1, label_lr, unique=True)
        return before.loss, after.new_rows, after.v * 3

    rows, label_lr = b.table[b.index], torch.tensor(5.0, device="cuda")
    expected = torch._dynamo.disable(step._torchdynamo_orig_callable)(rows, b.logits, b.u, label_lr)
    torch.testing.assert_close(step(rows, b.logits, b.u, label_lr), expected)


def test_a_launch_error_is_raised_where_it_happens():
    """In a process of its own, whose device a failed assertion has taken down."""
    script = """
import torch
from fastmeta import ops
x = torch.randn(8, 100, device="cuda")
kept = ops.row_dot(x, x)
del kept  # its block serves the next result, so that no allocation fails before the launch
torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
try:
    torch.cuda.synchronize()
except RuntimeError:
    pass
try:
    ops.row_dot(x, x)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert "fastmeta: CUDA error in row_dot" in done.stdout, done.stdout + done.stderr
