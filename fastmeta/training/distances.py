"""How far approximate steps were from exact ones: sums over an epoch and over a run, which stay on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastmeta.meta import Distance

_SUMS = ("looks", "cosine", "length", "error")
#: in lines of metrics.jsonl, by what they are
KEYS = {
    "cosine": "cosine_to_exact",
    "least": "cosine_to_exact_least",
    "length": "length_to_exact",
    "error": "error_to_exact",
    "looks": "looks_at_exact",
}


class Distances:
    """Means of what :attr:`fastmeta.meta.StepResult.distance` tells, and the least cosine; what is NaN is left out."""

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(2, len(_SUMS) + 1, dtype=torch.float64, device=device)  # of the epoch, of the run
        self.values[:, -1] = torch.inf

    def add(self, distance: Distance) -> None:
        """One step more; nothing waits for the device."""
        found = torch.stack([distance.cosine, distance.length, distance.error])
        counts = found.isfinite().all()
        sums = torch.where(counts, torch.cat([torch.ones_like(found[:1]), found]), 0.0)
        least = torch.where(counts, found[0], torch.inf)
        self.values[:, :-1] += sums
        self.values[:, -1] = self.values[:, -1].minimum(least)

    def end_epoch(self) -> dict[str, float | None]:
        """Of the epoch, for its line of metrics, None where nobody looked; waits for the device."""
        told = _told(self.values[0])
        self.values[0] = 0
        self.values[0, -1] = torch.inf
        return {key: told[name] for name, key in KEYS.items()}

    def of_run(self) -> dict[str, float | None]:
        return _told(self.values[1])


def _told(values: Tensor) -> dict[str, Any]:
    looks, *sums, least = values.tolist()
    means = {name: total / looks if looks else None for name, total in zip(_SUMS[1:], sums, strict=True)}
    return {**means, "least": least if looks else None, "looks": int(looks)}


def in_words(told: Mapping[str, Any]) -> str:
    """What a summary has under `distance`."""
    if not told["looks"]:
        return f"{told['approx']} beside the exact step: nobody could look"
    looks = f"{told['looks']:,} look{'s' * (told['looks'] != 1)} (watch_every={told['every']})"
    return (
        f"{told['approx']} beside the exact step: cosine {told['cosine']:.3f} (worst {told['least']:.3f}), "
        f"length {told['length']:.3f}; {looks}"
    )
