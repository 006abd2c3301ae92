"""What a meta step asks of an optimizer and of parameters, said at the start and not from inside of torch."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastmeta._numbers import as_whole, shown
from fastmeta.distributed import Ranks
from fastmeta.functional.fsdp_units import is_dtensor, is_sharded, local
from fastmeta.losses import LearnableLoss
from fastmeta.meta.approximation import Approximation
from fastmeta.meta.tangents import TangentChoice


def check_optimizer(optimizer: torch.optim.Optimizer, name: str = "optimizer") -> None:
    """Raise a TypeError for an optimizer whose step cannot be taken along one given gradient, dense and detached."""
    kind = type(optimizer).__name__
    closure = inspect.signature(inspect.unwrap(type(optimizer).step)).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"{name} must step along one gradient, but {kind} evaluates the loss again and again (its step needs a "
            "closure); take SGD or Adam"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise TypeError(f"{name} must take dense gradients, but SparseAdam takes sparse ones alone; take Adam")
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise TypeError(
            f"{kind} has differentiable=True, whose step records itself; a meta step needs no such record: leave it out"
        )


def most_rows(micro_batch: Any) -> int | None:
    """`micro_batch` as a number of rows; None for no limit."""
    rows = None if micro_batch is None else as_whole(micro_batch)
    if micro_batch is not None and (rows is None or rows < 1):
        raise ValueError(f"micro_batch must be None or a whole number of rows from 1 on, got {shown(micro_batch)}")
    return rows


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError that names the first parameter, buffer or layer that a meta step cannot have."""
    tensors = {name: t for named in (model.named_parameters(), model.named_buffers()) for name, t in named}
    lazy = [name for name, t in tensors.items() if is_lazy(t)]
    if lazy:
        raise ValueError(
            f"{lazy[0]} has no shape yet (a lazy layer); run the model once on a batch, then make the optimizer"
        )
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse and layer.weight.requires_grad:
            raise ValueError(
                f"layer {name!r} ({type(layer).__name__}) has sparse=True: a meta step needs dense gradients; "
                "set sparse=False"
            )
    own = {id(p) for p in model.parameters()}
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    strange = [p for p in optimized if id(p) not in own]
    if strange and len(strange) < len(optimized):
        shapes = ", ".join(str(tuple(p.shape)) for p in strange[:3])
        raise ValueError(
            f"the optimizer holds {len(strange)} parameters that are not the model's (of shape {shapes}), which a meta "
            "step would never move; give it model.parameters() alone, and another optimizer for the rest"
        )
    held = {id(p) for p in optimized}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) in held}
    sharded = is_sharded(model)  # what its DTensors must be is said elsewhere
    for name, p in trained.items():
        if (kind := _strange_kind(local(p) if sharded else p)) is not None:
            raise ValueError(f"parameter {name} is {kind}; a meta step trains real dense tensors on one device")
    devices = {str(p.device): name for name, p in trained.items()}
    if len(devices) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise ValueError(f"the model's parameters must be on one device, got {where}; move the model to one")
    half = [name for name, p in trained.items() if p.dtype in (torch.bfloat16, torch.float16)]
    if half:
        warnings.warn(
            f"parameter {half[0]} is {trained[half[0]].dtype}: steps below its rounding are lost, in the look-ahead "
            "too, whose gradient is then not exact; keep parameters in float32 and use torch.autocast",
            stacklevel=3,
        )


def approximation_of(
    approx: str | None, loss: LearnableLoss, tangent: TangentChoice
) -> tuple[Approximation, TangentChoice]:
    """What `approx` stands for, and the tangent that it takes.

    ValueError where it trains on the loss of before, and `loss` has none, and for a tangent that it does not take.
    """
    parsed = Approximation.parse(approx)
    if loss.for_one_step and parsed.kind in ("delayed", "every"):
        raise ValueError(
            f"approx={approx!r} trains on the loss of an earlier step, and {type(loss).__name__} is made anew in each; "
            "take None, 'last:L' or 'difference'"
        )
    if parsed.kind != "difference":
        return parsed, tangent
    if tangent not in ("auto", "difference"):
        raise ValueError(f"approx='difference' makes the tangent by differences, got tangent={tangent!r}")
    return parsed, "difference"


def learned_by(loss: LearnableLoss, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor] | None:
    """The parameters of `loss` that `optimizer` moves now, by name: those that require a gradient. None without one."""
    if optimizer is None:
        return None
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in loss.learned().items() if id(p) in held}


def check_own_rows(loss: LearnableLoss, ranks: Ranks, own_rows: bool) -> None:
    """Raise a ValueError for parameters by row of a loss of the user's, which has rows that no other rank has.

    What ranks learn together is averaged over them, and these are of different rows. A loss that sets `row_state` says
    which are by row; of any other, those that are as long as its targets.
    """
    if ranks.size == 1 or not own_rows or loss.moves_itself:
        return
    learned, count = loss.learned(), loss.row_count()
    if loss.row_state is not LearnableLoss.row_state or type(loss).__module__.startswith("fastmeta.losses."):
        by_row = sorted(learned.keys() & loss.row_state)
    else:
        by_row = [name for name, p in learned.items() if p.ndim and p.shape[0] == count]
    if by_row:
        raise ValueError(
            f"{type(loss).__name__}.{by_row[0]} has a number for each of the {count} rows that this rank alone has, "
            "and what a loss learns is averaged over ranks; give every rank all rows and own_rows=False, or train in "
            "one process (if it is not by row, set row_state to the names in the loss's state_dict that are)"
        )


def check_loss_optimizer(loss: LearnableLoss, optimizer: torch.optim.Optimizer | None, model: nn.Module) -> None:
    """Raise a TypeError or ValueError for an optimizer of the loss that is missing or too much.

    And for parameters that are not the loss's, or that are the model's too.
    """
    name = type(loss).__name__
    if loss.moves_itself:
        if optimizer is not None and loss.for_one_step:
            raise TypeError(
                f"loss_optimizer is for losses that an optimizer moves; {name} is made anew in each step: leave it out"
            )
        if optimizer is not None:
            raise TypeError(
                f"loss_optimizer is for losses that an optimizer moves; {name} move by an SGD of their own: leave it "
                "out, and give label_lr"
            )
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{name} needs loss_optimizer, a torch.optim.Optimizer of its parameters such as "
            f"torch.optim.Adam(loss.parameters(), lr=1e-3), got {type(optimizer).__name__}"
        )
    check_optimizer(optimizer, "loss_optimizer")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    learned = learned_by(loss, optimizer) or {}
    if not learned:
        raise ValueError(f"loss_optimizer moves no parameter of {name}; build it from loss.parameters()")
    if strange := len(held - {id(p) for p in loss.parameters()}):
        raise ValueError(f"loss_optimizer holds {strange} parameters that are not those of {name}; leave them out")
    shared = {id(p) for p in model.parameters()}
    for key, p in loss.named_parameters():
        if id(p) in shared:
            raise ValueError(
                f"{key} of {name} is a parameter of the model too: theta must enter the loss through the logits alone"
            )
        if (kind := _strange_kind(p)) is not None and key in learned:
            raise ValueError(f"parameter {key} of {name} is {kind}; the meta-gradient moves real dense tensors")


def _strange_kind(p: Tensor) -> str | None:
    """What `p` is, for an error, unless a step can train it."""
    if is_dtensor(p):
        return "a DTensor that no fully_shard has made (tensor parallelism), a part of what lies on several devices"
    if p.is_complex():
        return f"complex ({p.dtype})"
    if p.layout != torch.strided:
        return f"of layout {p.layout}"
    if p.is_quantized or p.dtype.itemsize < 2:
        return f"of dtype {p.dtype}"
    return "on the meta device, which holds no numbers" if p.device.type == "meta" else None
