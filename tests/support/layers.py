"""Layers whose rules for derivatives are wrong or missing."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class SilentZero(torch.autograd.Function):
    """tanh whose forward derivative is there, and wrong."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        ctx.save_for_forward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)

    @staticmethod
    def jvp(ctx, t):
        return torch.zeros_like(t)


class SilentOnce(SilentZero):
    """tanh whose double backward drops a term, as a detached activation does."""

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad.detach() * (1 - y * y).detach() + 0 * grad


class Activation(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.a, self.b, self.head, self.reentrant = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 10), reentrant

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.head(checkpoint(lambda t: torch.tanh(self.b(t)), h, use_reentrant=self.reentrant))


class OnceDifferentiable(torch.autograd.Function):
    """sin: a right backward that cannot be differentiated in turn, and no forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()
