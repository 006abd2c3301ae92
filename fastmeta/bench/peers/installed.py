"""Libraries that a user could take instead: imported where used, and skipped by name with the reason."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch


def load(name: str) -> ModuleType | str:
    """The module, or one line that says why it is skipped."""
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed (pip install {name.replace('_', '-')})"
    try:
        return importlib.import_module(name)
    except Exception as error:  # old libraries fail in many ways under a new torch
        first = (str(error) or type(error).__name__).splitlines()[0]
        return f"{name} does not import with torch {torch.__version__}: {first}"


def liger_cross_entropy() -> Callable[..., Any] | str:
    """Liger-Kernel's cross-entropy with hard labels, which leaves the gradient in the logits' memory."""
    if not torch.cuda.is_available():
        return "liger_kernel runs on a GPU only"
    module = load("liger_kernel")
    if isinstance(module, str):
        return module
    functional = importlib.import_module("liger_kernel.transformers.functional")

    def both(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits.detach().requires_grad_()
        loss = functional.liger_cross_entropy(logits, targets)
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    return both
