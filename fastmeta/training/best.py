"""The best epochs of a stage so far: by the test set itself, and by the validation set, which may choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Best:
    test: tuple[float, int] | None = None  # accuracy, epoch
    val: tuple[float, int, float | None] | None = None  # accuracy, epoch, test accuracy of that epoch

    def look(self, record: Mapping[str, Any], epoch: int) -> None:
        """At the figures of an epoch; the first of equal ones stays."""
        test, val = record.get("test_accuracy"), record.get("val_accuracy")
        if test is not None and (self.test is None or test > self.test[0]):
            self.test = test, epoch
        if val is not None and (self.val is None or val > self.val[0]):
            self.val = val, epoch, test

    def summary(self, last: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of a run's summary; `last` are those of the last epoch. Without a validation set none of it."""
        found: dict[str, Any] = {
            "test_accuracy_last": last.get("test_accuracy"),
            "test_accuracy_best": None if self.test is None else self.test[0],
            "test_accuracy_best_epoch": None if self.test is None else self.test[1],
        }
        if self.val is not None:
            found |= {
                "val_accuracy_last": last.get("val_accuracy"),
                **dict(
                    zip(
                        ("val_accuracy_best", "val_accuracy_best_epoch", "test_accuracy_at_best_val"),
                        self.val,
                        strict=True,
                    )
                ),
            }
        return found

    def state(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"best": self.test, "best_val": self.val}

    @classmethod
    def of_state(cls, values: Mapping[str, Any]) -> Best:
        def row(name: str) -> Any:
            return None if values[name] is None else tuple(values[name])

        return cls(row("best"), row("best_val"))
