"""Cheaper steps that are not Algorithm 1, each named, with what it changes. F is one train forward, m = 2n.

| approx       | cost              | what it changes                                                            |
|--------------|-------------------|----------------------------------------------------------------------------|
| None         | 13 F              | nothing                                                                    |
| "delayed"    | 11 F              | Eq. (6) takes the gradient of the look-ahead, of the labels before the     |
|              |                   | step: theta - lambda/n sum_i grad L_i(theta, p_i_old); the new labels      |
|              |                   | serve the next visit                                                       |
| "every:k"    | (13 + 3(k-1))/k F | labels move on every k-th step, the others are plain training              |
| "last:L"     | 5-7 F             | theta* moves the last L layers alone: g and u are those of their parameters|
| "difference" | 13-14 F           | u is a central difference of the logits, see fastmeta.meta.tangents         |
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastmeta.functional.network import Network


@dataclass(frozen=True)
class Approximation:
    """One of the rows above; `number` is k or L."""

    kind: str
    number: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Approximation:
        """From ``None``, ``"delayed"``, ``"every:4"``, ``"last:1"`` or ``"difference"``; else a ValueError."""
        if text is None:
            return cls("exact")
        kind, colon, number = text.partition(":")
        plain, counted = kind in ("delayed", "difference") and not colon, kind in ("every", "last") and bool(colon)
        if plain:
            return cls(kind)
        if counted and number.isdecimal() and int(number) >= 1:
            return cls(kind, int(number))
        raise ValueError(
            f'approx must be None, "delayed", "every:k", "last:L" or "difference" with k, L >= 1, got {text!r}'
        )

    def __str__(self) -> str:
        return {
            "exact": "none",
            "delayed": "delayed: the model moves by the labels of before this step",
            "every": f"labels move on one step in {self.number}",
            "last": f"look-ahead and tangent through the last {self.number} layers alone",
            "difference": "the tangent is a difference",
        }[self.kind]

    @property
    def period(self) -> int:
        """Steps after which it begins anew: 1, and k of "every:k"."""
        return self.number if self.kind == "every" else 1

    def moving(self, network: Network) -> list[str]:
        """Names of the parameters that theta* moves: all, or those of the last L modules that own trained ones.

        The last in the order in which the model registers them. ValueError where there are fewer than L.
        """
        names = list(network.params)
        if self.kind != "last":
            return names
        own = {id(p): name for name, p in network.params.items()}
        owners: list[tuple[nn.Module, list[str]]] = []
        for module in network.model.modules():
            mine = [own.pop(id(p)) for p in module.parameters(recurse=False) if id(p) in own]
            if mine:
                owners.append((module, mine))
        if self.number > len(owners):
            raise ValueError(
                f"approx='last:{self.number}' asks for more layers than there are: {len(owners)} modules of the model "
                f"own parameters that are trained; take last:1 to last:{len(owners)}, or leave approx out"
            )
        last = {name for _, mine in owners[-self.number :] for name in mine}
        return [name for name in names if name in last]


EXACT = Approximation("exact")


EXACT = Approximation("exact")
