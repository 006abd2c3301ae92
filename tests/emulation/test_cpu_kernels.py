"""The CPU kernels under sanitizers, on four threads, with the cases of the CUDA ones: every layout, dtype and tail."""

from __future__ import annotations

import pytest
import torch

from tests.support.emulation import cases
from tests.support.emulation.emulator import Call, compiler, run
from tests.support.emulation.groups import BOTH, cases_of

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler ($CXX or g++) to build the driver with")


def runs(call: Call) -> bool:
    """What a CPU kernel can be given: its indices are in range, and the number of a step is on the host."""
    if "step" in call.tensors or "rounding" in call.tensors:
        return False
    limits = {"index": getattr(call.args, "N", 0), "targets": getattr(call.args, "C", 0)}
    if getattr(call.args, "functional", False):  # compares indices, and reads nothing by them
        del limits["index"]
    given = [(call.tensors[name], limit) for name, limit in limits.items() if name in call.tensors]
    return all(bool(((t >= 0) & (t < limit)).all()) for t, limit in given)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param("cpu_address", id="address and undefined behaviour"),
        pytest.param("cpu_thread", id="thread"),
    ],
)
def test_kernels(variant: str) -> None:
    todo = [case for group in BOTH for case in cases_of(group) if runs(case.call)]
    assert len(todo) > 150
    assert len({case.call.launcher for case in todo}) == 11  # all of them
    done = run(variant, [case.call for case in todo])
    assert done.returncode == 0, done.stderr[:6000]
    for case in todo:
        try:
            case.check(case.call.out)
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error


def test_an_access_outside_is_noticed() -> None:
    good = next(case.call for case in cases_of(cases.row_dot) if case.call.args.C == 33)
    wrong = Call("row_dot", **{**good.fields, "n": good.args.n + 200})
    done = run("cpu_address", [wrong])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_a_misaligned_element_is_noticed() -> None:
    n, C = 2, 33
    halves = torch.zeros(1 + 2 * n * C, dtype=torch.float16)[1:].view(n, 2 * C)
    call = Call("row_dot", n=n, C=C, a=halves, b=torch.zeros(n, C), out=torch.zeros(n))
    call.args.a.dtype, call.args.a.row_stride = call.args.b.dtype, C  # floats that start two bytes late
    done = run("cpu_address", [call])
    assert done.returncode != 0
    assert "misaligned address" in done.stderr


def test_a_shared_row_is_a_race() -> None:
    """Two batch rows of one label row, promised to be unique: two threads write it."""
    n, C = 8, 33
    make = cases.Maker(3)
    row = {name: make.normal(n, C).float() for name in ("logits", "u")}
    given = {"table": make.normal(1, C).float(), "index": torch.zeros(n, dtype=torch.int64), **row}
    given |= cases.results(row["logits"], "alignment")
    call = Call("instance_label_step", n=n, C=C, N=1, functional=False, unique=True, scale=0.1, label_lr=1.0, **given)
    done = run("cpu_thread", [call])
    assert done.returncode != 0
    assert "data race" in done.stderr
