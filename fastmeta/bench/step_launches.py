"""How many calls a step hands to the device: what its overhead is made of, beside arithmetic and memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
    loops = 0

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal loops
        # the entry of a library that inductor has compiled is a builtin of this name
        loops += event == "c_call" and arg.__name__ == "kernel"

    if sys.getprofile() is not None:
        raise RuntimeError("launches cannot be counted while another profiler of Python runs")
    with _Calls() as calls:
        sys.setprofile(watch)
        try:
            body()
        finally:
            sys.setprofile(None)
    return calls.count + loops


class _Calls(TorchDispatchMode):
    """Counts operations below autograd that are neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += not func.is_view and not func._schema.name.startswith(("aten::empty", "aten::new_empty"))
        return func(*args, **(kwargs or {}))
