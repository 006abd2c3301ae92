"""The weights of a run as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fastmeta.training.rundir.checkpoint import write
from fastmeta.training.rundir.layout import FINETUNED
from fastmeta.training.rundir.load import BESIDE

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage


def write_models(path: Path, stage: Stage, finetuned: nn.Module | None) -> None:
    """Write model.safetensors of a stage that is done and, where there is one, of the copy that was fine-tuned."""
    values: dict[str, Any] = {"model": stage.config.model, "step": stage.step}
    # what only the forward keeps is beside the state_dict, where training has moved it: see module_state
    module = stage.result.state(constants=False)
    values["beside"] = module.values
    tensors = module.state | {BESIDE + k: v for k, v in module.beside.items()}
    write(path / "model.safetensors", tensors, values, stage.config.max_shard_mb)
    if finetuned is not None:  # evaluation mode moves nothing but parameters
        moved = finetuned.state_dict()
        tensors |= {k: moved[k] for k in module.state}
        write(path / FINETUNED, tensors, values, stage.config.max_shard_mb)
