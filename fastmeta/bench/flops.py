"""FLOPs of calls as they run without a counter."""

from __future__ import annotations

from typing import Self

from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker


class Flops(FlopCounterMode):
    """Torch's counter without its figures by module, `get_total_flops()` after the calls inside.

    The hooks by which it tells modules apart would change what is counted: a model with hooks takes the general step,
    and a loss that is a network fails under them.
    """

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = _OneModule()


class _OneModule(ModuleTracker):
    """The whole is "Global", the name under which torch sums up; nothing is hooked."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...
