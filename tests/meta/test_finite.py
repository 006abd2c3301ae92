"""What counts as finite: the one test that every step has to pass."""

import pytest
import torch

from fastmeta.functional.finite import all_finite, stay_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_entry_is_enough(value, dtype):
    tensors = [torch.randn(7, 3).to(dtype), torch.randn(4).to(dtype), torch.tensor(3)]
    assert bool(all_finite(tensors))
    tensors[0][5, 1] = value
    flag = all_finite(tensors)
    assert flag.dtype == torch.bool
    assert flag.shape == ()
    assert not bool(flag)


def test_opposite_infinities_and_large_sums():
    assert not bool(all_finite([torch.tensor([float("inf"), -float("inf")])]))
    assert bool(all_finite([torch.full((1000,), 6e4, dtype=torch.float16), torch.full((1000,), 1e35)]))
    assert bool(all_finite([]))
    sparse = torch.tensor([3.0, float("nan"), 0.0]).to_sparse()
    assert not bool(all_finite([sparse]))


def test_buffers():
    before = {
        "mask": torch.full((3, 3), -float("inf")).triu(1),
        "mean": torch.zeros(4),
        "count": torch.tensor(2),
        "half": torch.zeros(2, dtype=torch.bfloat16),
    }

    def verdict(**changed):
        flags = stay_finite(before, {k: t.clone() for k, t in before.items()} | changed)
        return all(map(bool, flags))

    assert verdict()
    assert verdict(mean=torch.full((4,), 3e38))
    assert not verdict(mean=torch.tensor([0, float("inf"), 0, 0]))
    assert not verdict(half=torch.tensor([0, float("nan")], dtype=torch.bfloat16))
    assert not verdict(mask=torch.full((3, 3), -float("inf")))
    assert verdict(mask=torch.zeros(3, 3))
    assert verdict(mean=torch.zeros(6))
    assert not verdict(mean=torch.full((6,), float("inf")))
    assert stay_finite(before, before) == []
    assert stay_finite({"count": torch.tensor(1)}, {"count": torch.tensor(2)}) == []
