"""pytest-benchmark over the operations: ``pytest benchmarks/bench_ops.py --benchmark-group-by=group``.

Statistics per variant and comparison between commits (``--benchmark-compare``); ``fastmeta bench ops`` is the paired
measurement that figures are quoted from. Outputs are compared with the float64 truth before anything is timed.
"""

import pytest
import torch

from fastmeta.bench import ops_run as ops

CONFIG = ops.OpsConfig(compile=False, threads=1)


@pytest.mark.parametrize("variant", ["fused", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("n", "C"), [(128, 100), (4096, 1000)], ids=lambda size: str(size))
@pytest.mark.parametrize("name", ops.OPERATIONS)
def test_operation(benchmark, name, n, C, dtype, variant):
    torch.set_num_threads(1)
    case = ops.prepare(name, n, C, dtype, CONFIG)
    benchmark.group = f"{name} {n}x{C} {dtype}"
    benchmark.extra_info["bytes"] = case.moved_bytes
    benchmark(case.bodies[variant][0])
