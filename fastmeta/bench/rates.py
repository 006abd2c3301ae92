"""What the device can do at most: the rates that figures are put beside."""

from __future__ import annotations

import torch

from fastmeta.measure import interleave


def copy_bandwidth(device: torch.device, *, seconds: float = 0.5) -> float:
    """Bytes per second, read plus written, of a large tensor copy: what no memory-bound kernel can beat."""
    elements = (1 << 28) if device.type == "cuda" else (1 << 25)  # 1 GiB, 128 MiB: beyond any cache
    source, target = torch.ones(elements, device=device), torch.zeros(elements, device=device)
    timing = interleave({"copy": [lambda: target.copy_(source)]}, device, seconds=seconds)["copy"]
    return 2 * elements * source.element_size() / timing.median


def matrix_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5, rounds: int | None = None) -> float:
    """FLOPs per second of a large square matrix product: what no step of this dtype can beat."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = [lambda: torch.mm(a, b, out=out)]
    timing = interleave({"product": product}, device, seconds=seconds, rounds=rounds)["product"]
    return 2 * size**3 / timing.median
