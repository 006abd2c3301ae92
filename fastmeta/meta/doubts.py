"""What a step finds out about itself: does a repeated forward give the same logits, is u still the adjoint of J'v?

A plan is chosen for the model as it is at the first step. A schedule may switch on a layer that draws numbers which
nothing can replay, or one that has no rule for the planned tangent. Both show in what a step has at hand anyway, at the
cost of a few sums. On CUDA, where nothing may wait for the device, a step in doubt changes nothing and a later one says
so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastmeta.distributed import Ranks
from fastmeta.functional.finite import PLAIN

#: relative, by the arithmetic: what two forwards of one model may differ by, in kernels that add in another order
_REPEAT = {torch.float64: 1e-7, torch.float32: 1e-3}
#: of <v, u> = <J'v, d>, relative to |v| |u|
_ADJOINT = {torch.float64: (1e-8, 1e-4), torch.float32: (1e-3, 2e-2)}


class Unrepeatable(RuntimeError):
    """The train batch has other logits in a second forward; nothing was changed."""

    def __init__(self) -> None:
        super().__init__(
            "the model gives one batch other logits in a second forward of the same step: it draws random numbers that "
            "cannot be replayed (os.urandom, random.SystemRandom, the clock, another thread), or draws from a "
            "generator, or keeps a state, that is out of sight; draw from torch's, Python's or NumPy's generators, or "
            "from one that is an attribute of a module. Nothing was changed"
        )


class Unfit(RuntimeError):
    """The tangent is not the adjoint of the gradient; nothing was changed. `wrong`: by more than rounding can do."""

    def __init__(
        self,
        kind: str,
        wrong: bool,
        way_out: str = 'use tangent="auto", and run fastmeta.check on the model as it is',
    ) -> None:
        self.wrong = wrong
        super().__init__(
            f"the {kind} tangent is not the adjoint of the gradient of the same step: a layer that the model runs by "
            "now has a wrong rule for it, or a hook clamps gradients by now, with which the backward is not linear; "
            f"{way_out}. Nothing was changed"
        )


def adjoint_bounds(arithmetic: torch.dtype) -> tuple[float, float]:
    """From where a plan is tried again, and what is wrong whatever that says."""
    return _ADJOINT.get(arithmetic, (0.05, 0.3))


def repeats(first: Tensor, again: Tensor, arithmetic: torch.dtype, spread: Tensor | float = 0.0) -> Tensor:
    """0-d bool: whether the logits `again` are those of `first`, up to rounding and `spread`; NaN passes."""
    first, again = first.detach(), again.detach()
    return ~((again - first).norm() > _REPEAT.get(arithmetic, 0.1) * first.norm() + spread)


#: of :func:`adjoint`: numbers of the host, or a vector on CUDA
Found = Tensor | list[float]


def adjoint(v: Tensor, u: Tensor, gradient: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Found:
    """What <v, u> = <J'v, d> is judged by, see :func:`gap_of`: <v, u>, |v|, |u|, then <J'v, d> of each parameter.

    None of these is finite where v, u, or a gradient or direction that both have, holds a NaN or an infinity.
    """
    v = v if v.dtype == u.dtype else v.to(u.dtype)
    norm = torch.linalg.vector_norm
    found = [torch.dot(v.reshape(-1), u.reshape(-1)), norm(v), norm(u)]
    for name, g in gradient.items():
        if (d := direction.get(name)) is not None:
            g = g if g.layout == torch.strided else g.to_dense()
            d = d if d.dtype == g.dtype else d.to(g.dtype)
            product = torch.dot(g, d) if g.ndim == 1 else torch.dot(g.reshape(-1), d.reshape(-1))
            found.append(product if product.dtype == u.dtype else product.to(u.dtype))
    return torch.stack(found) if u.is_cuda else [t.item() for t in found]


def tells_finite(g: Mapping[str, Tensor], u: Tensor, gradient: Mapping[str, Tensor]) -> bool:
    """Whether :func:`adjoint` of the direction `g` is finite only where `u` and all of `g` are.

    On CUDA, and in 16 bits, sums in a wider type are looked at instead, which overflow later.
    """
    return not u.is_cuda and all(name in gradient and t.dtype in PLAIN for name, t in g.items())


def gap_of(found: Found) -> Tensor | float:
    """|<v, u> - <J'v, d>| relative to the size of either: rounding, unless u is not J d. It waits for no device."""
    if not isinstance(found, Tensor):
        made, size_v, size_u, *products = found
        known = sum(products)
        size = max(size_v * size_u, abs(known))
        return abs(made - known) / size if size else 0.0
    found = found.double()
    along = found[3:].sum()
    return (found[0] - along).abs() / torch.maximum(found[1] * found[2], along.abs())


def _not(flag: Tensor | bool) -> Tensor | bool:
    return ~flag if isinstance(flag, Tensor) else not flag


class Doubts:
    """What the steps of one model found out."""

    def __init__(self) -> None:
        self._room = 1.0  # grows where a plan was tried again for the sake of rounding
        self.bends = False  # hooks bend the backward, which double-vjp follows: <v, u> = <J'v, d> says nothing
        self._asked: tuple[str, Tensor, torch.cuda.Event] | None = None

    def __deepcopy__(self, memo: object) -> Doubts:
        return Doubts()

    def settle(
        self,
        kind: str,
        same: Tensor | None,
        found: Found | None,
        arithmetic: torch.dtype,
        finite: Tensor,
        ranks: Ranks,
    ) -> Tensor:
        """0-d bool, the same on all ranks: whether the step may move anything. Raises, or on CUDA the next step does.

        `same` is of :func:`repeats`, `found` of :func:`adjoint`; None where there was nothing to see. `finite` says
        whether this rank's numbers are.
        """
        found = None if self.bends and kind == "reverse" else found
        if same is None and found is None and ranks.size == 1:
            return finite
        bound, wrong = adjoint_bounds(arithmetic)
        gap = 0.0 if found is None else gap_of(found)
        flags = [True if same is None else same, _not(gap > bound * self._room), _not(gap > wrong)]
        if not finite.is_cuda and ranks.size == 1:
            self._raise(kind, *map(bool, flags))
            return finite
        # one vote for all of it, on every rank in every step
        votes = ranks.all(torch.stack([*(torch.as_tensor(f, device=finite.device) for f in flags), finite]))
        if votes.is_cuda:
            done = torch.cuda.Event()
            self._asked = kind, votes[:3].to("cpu", non_blocking=True), done
            done.record()
            return votes[0] & votes[2] & votes[3]
        self._raise(kind, *votes[:3].tolist())
        return votes[3]

    def recall(self) -> None:
        """Raise what the last step on CUDA found out, if that is known by now."""
        if self._asked is not None and self._asked[2].query():
            (kind, found, _), self._asked = self._asked, None
            self._raise(kind, *found.tolist())

    def rounding(self) -> None:
        """The plan was right: look less closely."""
        self._room *= 4

    @staticmethod
    def _raise(kind: str, same: bool, fits: bool, nearly: bool) -> None:
        if not same:
            raise Unrepeatable
        if not fits:
            raise Unfit(kind, wrong=not nearly)
