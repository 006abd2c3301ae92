"""A network of many classes and its labels, for measurements of label tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastmeta
from fastmeta.data import EpochSampler
from fastmeta.losses import LabelTable, Start
from fastmeta.training.coming_rows import ComingRows

FEATURES, HIDDEN, BATCH = 512, 512, 64
#: rows of features that samples are taken from, whatever their number
_POOL = 4096


class Learner:
    """Steps of :class:`fastmeta.MetaStep` on an MLP 512-512-C, batches of 64 and 64, through N rows again and again.

    Args:
        table: as :class:`fastmeta.InstanceLabels` takes it.
        steps: so many at most.
        device: of all but the table.
        prefetch: whether the table hears of the next batch before it is asked for.
    """

    def __init__(
        self,
        rows: int,
        classes: int,
        table: Callable[[Start], LabelTable] | None,
        steps: int,
        device: str = "cpu",
        prefetch: bool = True,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.prefetch = torch.device(device), prefetch
        began = time.perf_counter()
        targets = torch.randint(0, classes, (rows,)).to(self.device)
        self.labels = fastmeta.InstanceLabels(targets, classes, table=table)
        self.start_seconds = time.perf_counter() - began
        model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)).to(self.device)
        self.x, meta = (torch.randn(n, FEATURES).to(self.device) for n in (_POOL, BATCH))
        self.meta = meta, torch.randint(0, classes, (BATCH,)).to(self.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.step = fastmeta.MetaStep(model, self.labels, optimizer, label_lr=5.0, unique_index=True)
        sampler = EpochSampler(rows, BATCH, seed=0, stream="bench", device=self.device)
        self.batches = sampler.batches
        self.coming = ComingRows(self.labels, sampler, self.device, steps)
        self.number = 0

    def __call__(self) -> float:
        """Seconds of the next step, with all that its table does around it."""
        self._wait()
        began = time.perf_counter()
        index, _ = self.coming(self.number)
        self.step((self.x[index % _POOL], index), self.meta)
        if self.prefetch:
            self.coming.ahead()
        self._wait()
        self.number += 1
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def checkpoint(self) -> tuple[dict[str, Any], float]:
        """A state that counts, and the seconds that the table took for it."""
        began = time.perf_counter()
        state = self.labels.state_dict()
        self.coming.saved()
        return state, time.perf_counter() - began


def written(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint has it: copies."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
