"""Look-ahead updates over parameters of all sizes: empty, within a chunk, over several, aligned and not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastmeta import reference
from tests.support.emulation.cases import BF16, F16, F32, F64, Case, Maker, acc, assert_close
from tests.support.emulation.emulator import DTYPES, Call

SIZES = (3, 0, 4096, 1, 9000, 257, 8192)


def lookahead_update() -> Iterator[Case]:
    kinds = [
        # dtype, gain, carry, weight decay, offset of the operands in memory, of the results
        (F32, 1.0, 0.0, 0.0, 0, 0),
        (F32, 1.9, 0.81, 5e-4, 3, 0),
        (F32, 1.0, 0.9, 5e-4, 1, 1),
        (BF16, 1.9, 0.81, 5e-4, 5, 5),
        (F16, 1.0, 0.0, 5e-4, 0, 3),
        (F64, 1.0, 0.9, 1e-2, 1, 0),
    ]
    for seed, (dtype, gain, carry, decay, start, out_start) in enumerate(kinds):
        yield case(seed, dtype, gain, carry, decay, start, out_start, SIZES)
    yield case(7, F32, 1.0, 0.9, 0.0, 1, 2, [5] * 800)  # more than the small table holds, and than the large one


def case(
    seed: int, dtype: torch.dtype, gain: float, carry: float, decay: float, start: int, out_start: int, sizes: tuple
) -> Case:
    make = Maker(seed)

    def operand(size: int) -> Tensor:
        return torch.cat([torch.full((start,), 7.0, dtype=F64), make.normal(size)]).to(dtype)[start:]

    tensors = [
        {
            "param": operand(size),
            "grad": operand(size),
            "buffer": operand(size) if carry else None,
            "out": torch.full((size + out_start + 2,), -77.0, dtype=dtype)[out_start : size + out_start],
        }
        for size in sizes
    ]
    rate = 0.25 if seed % 2 else torch.tensor(0.25, dtype=acc(dtype))
    call = Call(
        "lookahead_update", tensors=tensors, count=len(tensors), dtype=DTYPES[dtype], lr=rate, gain=gain, carry=carry,
        weight_decay=decay,
    )  # fmt: skip

    def check(out: dict) -> None:
        wide = {role: [t[role].double() for t in tensors] for role in ("param", "grad")}
        buffers = [t["buffer"].double() for t in tensors] if carry else ()
        truth = reference.lookahead_update(
            wide["param"], wide["grad"], buffers, lr=0.25, gain=gain, carry=carry, weight_decay=decay
        )
        for k, expected in enumerate(truth):
            assert_close(f"out{k}", out[f"out{k}"], expected, 1.0)
            whole = torch.empty(0, dtype=dtype).set_(out[f"out{k}"].untyped_storage())
            assert (whole == -77).sum() == out_start + 2, "written outside"

    return Case(f"{dtype} gain={gain} carry={carry} start={start},{out_start} x{len(sizes)}", call, check)
