"""Which steps count: one whose loss, whose gradients and whose new buffers are finite. Another one changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import reduce

import torch
from torch import Tensor

from fastmeta.functional.copies import without_graph

#: whose sums are taken as they are, on a CPU
PLAIN = (torch.float32, torch.float64)


def all_finite(tensors: Iterable[Tensor], device: torch.device | None = None) -> Tensor:
    """0-d bool: none of these holds a NaN or an infinity. It waits for no device.

    Each tensor is read once, by a sum, at the speed of memory (the largest absolute value took 6 times as long on a
    CPU). A sum is not finite either where the number of entries times their size passes 1e38 (1e308 on CUDA, where the
    wider type costs nothing). Without tensors it is true, on `device`.
    """
    sums = [
        without_graph(t).sum() if t.dtype in PLAIN and t.layout == torch.strided and not t.is_cuda else _sum(t)
        for t in tensors
        if t.is_floating_point() or t.is_complex()
    ]
    if not sums:
        return torch.ones((), dtype=torch.bool, device=device)
    dtypes = {t.dtype for t in sums}
    if len(dtypes) > 1:
        wide = reduce(torch.promote_types, dtypes)
        sums = [t.to(wide) for t in sums]
    return torch.stack(sums).isfinite().all()


def finite_here(tensors: Iterable[Tensor]) -> bool:
    """The same of tensors on a CPU, as the host knows it: fewer operations, which is what counts on small networks."""
    return math.isfinite(sum(_sum(t).item().real for t in tensors if t.is_floating_point() or t.is_complex()))


def _sum(t: Tensor) -> Tensor:
    t = without_graph(t)
    if t.layout != torch.strided:
        t = t.coalesce().values() if t.layout == torch.sparse_coo else t.values()
    if t.is_cuda and t.is_floating_point():
        return t.sum(dtype=torch.float64)
    return t.sum(dtype=torch.float32) if t.dtype == torch.float16 else t.sum()


def both(flag: Tensor, others: Iterable[Tensor]) -> Tensor:
    """`flag` and all the others, on its device."""
    for other in others:
        flag = flag & other.to(flag.device)
    return flag


def stay_finite(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Tensor]:
    """0-d bools, one for each device if any: no entry of a buffer that was finite before is NaN or infinite after.

    A mask of minus infinities is as it should be. Buffers are many and small: they are looked at as one vector.
    """
    pairs: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
    for name, new in after.items():
        old = before.get(name)
        if new is not old and new.is_floating_point() and new.dtype.itemsize > 1 and new.layout == torch.strided:
            if old is None or old.shape != new.shape or old.dtype != new.dtype or old.device != new.device:
                old = torch.zeros_like(new)  # one of another form has no entry that was there before
            pairs.setdefault(new.device, []).append((old, new))
    flags = []
    for of_device in pairs.values():
        old, new = (torch.cat([t if t.ndim == 1 else t.reshape(-1) for t in ts]) for ts in zip(*of_device, strict=True))
        flags.append((new.isfinite() | ~old.isfinite()).all())
    return flags
