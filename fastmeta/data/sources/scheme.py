"""What a config says beside the name of a data set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    seed: int = 0  # of a split that the scheme makes
    given: str = "y_train"  # where the labels to train on are
    truth: str = "y_true"  # where the right ones are
