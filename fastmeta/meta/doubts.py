"""What a step finds out about itself: does a repeated forward give the same logits, is u still the adjoint of J'v?

A plan is chosen for the model as it is at the first step. A schedule may switch on a layer that draws numbers which
nothing can replay, or one that has no rule for the planned way. Both show in what a step has at hand anyway, at the
cost of a few sums. On CUDA, where nothing may wait for the device, a step in doubt changes nothing and a later one says
so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastmeta.meta.distributed import Ranks

#: relative, by the arithmetic: what two forwards of one model may differ by, in kernels that add in another order
_REPEAT = {torch.float64: 1e-7, torch.float32: 1e-3}
#: of <v, u> = <J'v, d>, relative to |v| |u|: from where a plan is tried again, and what is wrong whatever that says
_ADJOINT = {torch.float64: (1e-8, 1e-4), torch.float32: (1e-3, 2e-2)}


class Unrepeatable(RuntimeError):
    """The train batch has other logits in a second forward; nothing was changed."""

    def __init__(self) -> None:
        super().__init__(
            "the model gives one batch other logits in a second forward of the same step: it draws random numbers that "
            "cannot be replayed (os.urandom, random.SystemRandom, the clock, another thread), from a generator that is "
            "out of sight, or keeps a state that is no buffer; draw from torch's, Python's or NumPy's generators, or "
            "from one that is an attribute of a module. Nothing was changed"
        )


class Unfit(RuntimeError):
    """The tangent is not the adjoint of the gradient; nothing was changed. `wrong`: by more than rounding can do."""

    def __init__(self, way: str, wrong: bool) -> None:
        self.wrong = wrong
        super().__init__(
            f"the {way} tangent is not the adjoint of the gradient of the same step: a layer that the model runs by "
            'now has a wrong rule for it; use tangent="auto", or run fastmeta.check on the model as it is. '
            "Nothing was changed"
        )


def repeats(first: Tensor, again: Tensor, arithmetic: torch.dtype, spread: Tensor | float = 0.0) -> Tensor:
    """0-d bool: whether the logits `again` are those of `first`, up to rounding and `spread`; NaN passes."""
    first, again = first.detach(), again.detach()
    return ~((again - first).norm() > _REPEAT.get(arithmetic, 0.1) * first.norm() + spread)


def adjoint(v: Tensor, u: Tensor, gradient: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Tensor:
    """0-d, |<v, u> - <J'v, d>| relative to the size of either: rounding, unless u is not J d."""
    known = torch.zeros((), dtype=torch.float64, device=u.device)
    for name, g in gradient.items():
        if (d := direction.get(name)) is not None:
            g = g if g.layout == torch.strided else g.to_dense()
            known = known + torch.dot(g.reshape(-1), d.to(g.dtype).reshape(-1))
    v, u = v.detach().to(u.dtype).reshape(-1), u.detach().reshape(-1)
    return (torch.dot(v, u) - known).abs() / torch.maximum(v.norm() * u.norm(), known.abs())


class Doubts:
    """What the steps of one model found out."""

    def __init__(self) -> None:
        self._room = 1.0  # grows where a plan was tried again for the sake of rounding
        self._asked: tuple[str, Tensor, torch.cuda.Event] | None = None

    def __deepcopy__(self, memo: object) -> Doubts:
        return Doubts()

    def settle(self, way: str, same: Tensor | None, gap: Tensor | None, arithmetic: torch.dtype, ranks: Ranks) -> Any:
        """Whether the step may move anything: on CUDA a 0-d bool, elsewhere True, or the error is raised.

        `same` is of :func:`repeats`, `gap` of :func:`adjoint`; None where there was nothing to see.
        """
        if same is None and gap is None:
            return True
        bound, wrong = _ADJOINT.get(arithmetic, (0.05, 0.3))
        there = same if gap is None else gap
        assert there is not None
        true = torch.ones((), dtype=torch.bool, device=there.device)
        flags = [true] if same is None else [same]
        flags += [true, true] if gap is None else [~(gap > bound * self._room), ~(gap > wrong)]
        found = ranks.all(torch.stack(flags))
        if found.is_cuda:
            done = torch.cuda.Event()
            self._asked = way, found.to("cpu", non_blocking=True), done
            done.record()
            return found[0] & found[2]
        self._raise(way, found)
        return True

    def recall(self) -> None:
        """Raise what the last step on CUDA found out, if that is known by now."""
        if self._asked is not None and self._asked[2].query():
            (way, found, _), self._asked = self._asked, None
            self._raise(way, found)

    def rounding(self) -> None:
        """The plan was right: look less closely."""
        self._room *= 4

    @staticmethod
    def _raise(way: str, found: Tensor) -> None:
        same, fits, nearly = found.tolist()
        if not same:
            raise Unrepeatable
        if not fits:
            raise Unfit(way, wrong=not nearly)
