"""Every reduction, 250 times over, on four threads: the same bits each time, whichever thread takes which rows."""

import pytest
import torch

from tests.support.ops import OPS, Batch


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(40, 3001), pytest.param((512, 10007), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_same_bits_250_times(op, shape, threads):
    b = Batch(*shape)  # the table has 50 rows, so that in the larger batch most stand there many times
    first = op.fused(b)
    for _ in range(249):
        again = op.fused(b)
        assert all(torch.equal(t.nan_to_num(9), again[name].nan_to_num(9)) for name, t in first.items())
