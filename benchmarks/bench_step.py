"""pytest-benchmark over whole steps: ``pytest benchmarks/bench_step.py --benchmark-group-by=group``.

``fastmeta bench step`` is the paired measurement, with its check against the reference; this one follows a variant
over commits.
"""

import pytest
import torch

from fastmeta.bench.step_problem import Problem, StepConfig
from fastmeta.bench.step_variants import VARIANTS, chosen

CASES = {
    "mlp": StepConfig(model="mlp", batch=128, meta_batch=256, classes=10),
    "resnet20": StepConfig(model="resnet20", batch=32, meta_batch=64, classes=100),
}


@pytest.mark.parametrize("variant", chosen(["default"], "cpu"))
@pytest.mark.parametrize("case", CASES)
def test_step(benchmark, case, variant):
    torch.set_num_threads(1)
    built = VARIANTS[variant](Problem(CASES[case], torch.float32))
    if isinstance(built, str):
        pytest.skip(built)
    benchmark.group = case
    benchmark.pedantic(built.step, rounds=7, warmup_rounds=2)
    assert built.finite()
