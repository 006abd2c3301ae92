"""What runs would cost on this machine: their steps are counted, and one plain step of each network is timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy

from fastmeta import models
from fastmeta.paper.data_parts import rows_of
from fastmeta.paper.wanted import Wanted
from fastmeta.training import TrainConfig
from fastmeta.training.outlook import clock, plain_share

__all__ = ["Costs", "clock", "run_costs"]

#: rows of the step that is timed on a CPU, where a whole batch may take minutes
_ROWS = 8
_STEPS = 3
#: seconds of a step that is not timed whole
_LONG = 1.0


@dataclass
class Costs:
    device: str
    seconds: dict[str, float] = field(default_factory=dict)  # of a plain step, by network and batch size
    total: float = 0.0

    def of(self, one: Wanted) -> float:
        """Seconds of a run, or of all folds."""
        config = one.config
        rows, classes, shape = rows_of(config.dataset)
        if one.folds:
            rows = rows * (one.folds - 1) // one.folds
        batch = min(config.data.batch_size or 128, rows)
        steps = (config.epochs or 1) * (rows // batch)
        if config.max_steps is not None:
            steps = config.max_steps if config.epochs is None else min(steps, config.max_steps)
        name = f"{config.model}/{batch}"
        if name not in self.seconds:
            self.seconds[name] = _seconds(str(config.model), batch, classes, shape, self.device)
        return steps * _plain_steps(config) * max(1, one.folds) * self.seconds[name]


def run_costs(runs: Sequence[Wanted]) -> Costs:
    """Of all runs together, in `total`. A rough figure: augmentation, measuring and a busy machine are left out."""
    found = Costs("cuda" if torch.cuda.is_available() else "cpu")
    found.total = sum(map(found.of, runs))
    return found


def _plain_steps(config: TrainConfig) -> float:
    """What a step of a run costs, with its baselines beside it, in plain steps."""
    method = config.method_class()
    exact = method.uses_meta_batch and config.label_update == "exact"
    networks = 2 if config.method == "coteaching" else 1
    return networks / plain_share(exact, config.approx) + len(config.baseline_names())


def _seconds(model: str, batch: int, classes: int, shape: tuple[int, ...], device: str) -> float:
    network = models.build(model, num_classes=classes, input_shape=shape).to(device)

    def timed(rows: int) -> float:
        x, y = torch.randn(rows, *shape, device=device), torch.randint(0, classes, (rows,), device=device)
        best = float("inf")
        for _ in range(_STEPS):
            began = time.perf_counter()
            cross_entropy(network(x), y).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        return best

    few = min(batch, _ROWS)
    seconds = timed(few) * batch / few
    return seconds if device == "cpu" and seconds > _LONG else timed(batch)
