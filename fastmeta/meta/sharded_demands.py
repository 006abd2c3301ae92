"""What a meta step asks of a model under FSDP2, said at the start."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.distributed import Ranks
from fastmeta.functional.fsdp_units import is_dtensor, is_sharded, is_unit, reshard
from fastmeta.functional.network import functional_module

#: where the forward hooks are made that FSDP has itself
_OWN = "torch.distributed.fsdp."


def check_sharded(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    compile: str,
    tangent: str,
    micro_batch: Any,
    approx: str | None,
    watch_every: Any,
) -> None:
    """Raise a ValueError for what a step cannot do with a model that is sharded; nothing has moved."""
    if not is_sharded(model):
        return
    model = functional_module(model, sharded=True)  # what torch.compile has wrapped is set aside
    reshard(model)  # what it calls its parameters are the shards then
    refused = {
        f"compile={compile!r}": compile != "off",
        "micro_batch": micro_batch is not None,
        f"tangent={tangent!r}": tangent not in ("auto", "forward"),
        f"approx={approx!r}": approx == "difference",
        "watch_every": watch_every is not None,
    }
    for name, asked in refused.items():
        if asked:
            raise ValueError(
                f"{name} is not for a model under fully_shard, whose passes run through FSDP's own hooks, one whole "
                "batch at a time with dual numbers for the tangent; leave it out"
            )
    if not is_unit(model):
        raise ValueError(
            f"fully_shard was called on parts of the model, but not on the {type(model).__name__} that is given, whose "
            "other parameters nobody would average; call fully_shard on it too, last"
        )
    for name, module in model.named_modules():
        if is_unit(module) and (hook := _strange_hook(module)):
            raise ValueError(
                f"{name or 'the model itself'} is a unit of fully_shard and has a forward hook of somebody else, "
                f"{hook}, which may run on parameters that are not gathered, or without their tangents; put the hook "
                "on a module inside of the unit, or remove it"
            )
        if isinstance(module, nn.RNNBase) and any(map(is_dtensor, module.parameters())):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) keeps a list of its weights, made anew whenever FSDP "
                "gathers them; take cells (nn.LSTMCell), or leave the layer out of fully_shard (ignored_params) and "
                "freeze it"
            )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad and p._post_accumulate_grad_hooks:
            raise ValueError(
                f"parameter {name} has a post-accumulate-grad hook, which would run in each of a step's three "
                "backwards; remove it, and give the optimizer or the clipping to MetaStep (optimizer=, on_grad=)"
            )
        if p.requires_grad and (reason := _misplaced(p, ranks, trained=id(p) in held)):
            raise ValueError(f"parameter {name} {reason}")


def _strange_hook(module: nn.Module) -> str:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for hook in hooks.values():
            if not str(getattr(hook, "__module__", "")).startswith(_OWN):
                return str(getattr(hook, "__qualname__", type(hook).__name__))
    return ""


def _misplaced(p: Tensor, ranks: Ranks, *, trained: bool) -> str:
    """Why a parameter does not lie as FSDP2 and its replicas (HSDP) put it, or ""."""
    if not is_dtensor(p):
        if not trained:
            return ""
        return (
            "is trained and no shard (ignored_params, or added after fully_shard), so that nobody averages its "
            "gradient; let fully_shard have it, or freeze it"
        )
    mesh, placements = p.device_mesh, p.placements  # type: ignore[attr-defined]
    shard, whole = sys.modules["torch.distributed.tensor"].Shard, sys.modules["torch.distributed.tensor"].Replicate
    kinds = tuple(map(type, placements))
    if kinds not in ((shard,), (whole, shard)):
        return (
            f"lies as {placements}: a meta step takes what fully_shard alone has made, of whole parameters (FSDP2, "
            "or HSDP on a mesh of two dimensions); tensor parallelism and other layouts are refused"
        )
    if mesh.size() != ranks.size:
        return (
            f"lies on a mesh of {mesh.size()} ranks, and process_group has {ranks.size}: they must be the same ranks; "
            "pass process_group=mesh.get_group(), or the group of all ranks of a mesh of two dimensions"
        )
    if p.device.type != mesh.device_type:
        return (
            f"lies on {p.device}, and is gathered on {mesh.device_type} (CPUOffloadPolicy): a step on offloaded "
            "shards is not tested; leave offload_policy out"
        )
    return ""
