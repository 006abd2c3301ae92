"""How CUDA multiplies float32 numbers: in full, or with factors rounded to 11 bits (TF32) for tensor cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

_backends: Any = torch.backends
_MATMUL, _CONV, _RNN = _backends.cuda.matmul, _backends.cudnn.conv, _backends.cudnn.rnn


@contextmanager
def float32_products(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Inside, float32 products and convolutions on a CUDA `device` run in TF32, or in full where `tf32` is False.

    The switches are the process's: other threads see them. torch by itself lets cuDNN's convolutions use TF32 and
    matrix products not. On a CPU nothing changes. What was set before is set again at the end.
    """
    if device.type != "cuda":
        yield
        return
    # Torch has two sets of switches. Here the older one is turned, because inductor reads it, and reading raises where
    # the newer one was turned; a caller who did that gets those values back.
    new = _MATMUL.fp32_precision, _CONV.fp32_precision, _RNN.fp32_precision
    matmul = convolutions = None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        else:
            _MATMUL.fp32_precision = new[0]
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        else:
            _CONV.fp32_precision, _RNN.fp32_precision = new[1:]


@contextmanager
def without_autocast() -> Iterator[None]:
    """Inside, autocast is off on every device: for labels, which are never rounded, and for traced graphs.

    A graph's casts are operations of its own. Traced again or run under autocast it would get more of them, in the very
    regions where the model forbids autocast.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
