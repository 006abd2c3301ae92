"""How many calls a step hands to the device: what its overhead is made of, beside arithmetic and memory."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta.measure import Body


def launches(body: Body, device: torch.device) -> int:
    """Calls of one step that compute something.

    CUDA: kernels and copies that the device ran, captured ones included. CPU: ATen and custom operations below autograd
    that are neither views nor allocations, and calls of the loops that inductor has generated. Raises RuntimeError
    under another profiler of Python, which would be lost.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            body()
            torch.cuda.synchronize()
        return sum(e.device_type() == DeviceType.CUDA for e in profiler.profiler.kineto_results.events())
    calls = _Calls()

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        if event not in ("c_call", "c_return", "c_exception"):
            return
        if arg.__name__ == "kernel":  # the entry of a library that inductor has compiled of one loop
            calls.count += event == "c_call"
        elif arg.__name__ == "inductor_entry_cpp":  # and of a whole graph, which passes dispatch by
            calls.sees = event != "c_call"
            calls.count += 0 if calls.sees else _calls_in(arg.__self__.__file__)

    if sys.getprofile() is not None:
        raise RuntimeError("launches cannot be counted while another profiler of Python runs")
    with calls:
        sys.setprofile(watch)
        try:
            body()
        finally:
            sys.setprofile(None)
    return calls.count


@functools.cache
def _calls_in(library: str) -> int:
    """Of loops and operations, in the source that inductor leaves beside the library: each has a line to itself."""
    call = r"^\s+(cpp_fused\w*|AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_cpu_\w+|aoti_torch_call_dispatcher)\("
    return len(re.findall(call, Path(library).with_suffix(".cpp").read_text(), re.MULTILINE))


class _Calls(TorchDispatchMode):
    """Counts operations below autograd that are neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.sees = 0, True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += (
            self.sees and not func.is_view and not func._schema.name.startswith(("aten::empty", "aten::new_empty"))
        )
        return func(*args, **(kwargs or {}))
