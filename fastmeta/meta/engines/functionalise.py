"""A traced graph without writes: every operation in place becomes the one that makes a new tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fastmeta.functional.copies import same_form

aten = torch.ops.aten


def functionalise(graph: fx.Graph) -> bool:
    """Take the writes out of `graph`, in place, one by one; False where it has one that is not understood here.

    A write into t becomes a new value, which all later users of t are given. That is all of it where nobody else knows
    the memory: a view made before the write would have to be made again after it, and a tensor of the caller's to be
    written at the end. Models that write into their activations and running statistics do neither.
    (``torch.func.functionalize`` takes any graph, and runs it once more for that: a third of a trace.)

    Nodes need ``meta["val"]``, fake tensors that share memory where the real ones would. After False the graph
    computes what it did, with its writes or some of them.
    """
    memory = _Memory(graph)
    for write in [n for n in graph.nodes if n.op == "call_function" and _of_schema(n, "is_mutable")]:
        found = _without_write(write)
        if found is None:
            return False
        function, targets = found
        if len(set(map(_key, targets))) < len(targets) or not all(memory.is_own(t, write) for t in targets):
            return False
        made = function(*fx.map_arg(write.args, _value), **fx.map_arg(write.kwargs, _value))
        grown = made[-len(targets) :] if isinstance(made, tuple) else (made,)
        if not all(_same_layout(_value(t), value) for t, value in zip(targets, grown, strict=True)):
            return False
        # they keep the fake tensors of what they stand for, which tell of the views that follow
        kept = tuple(_value(t) for t in targets)
        with graph.inserting_before(write):
            new = graph.call_function(function, write.args, write.kwargs)
            new.meta["val"] = (*made[: -len(targets)], *kept) if isinstance(made, tuple) else kept[0]
            values = [new]
            if isinstance(made, tuple):
                first = len(made) - len(targets)
                values = [graph.call_function(operator.getitem, (new, first + k)) for k in range(len(targets))]
        memory.put((new, *values), write)
        for target, value, fake in zip(targets, values, kept, strict=True):
            value.meta["val"] = fake
            memory.replace(target, value)
        write.replace_all_uses_with(new)
        graph.erase_node(write)
    return True


class _Memory:
    """Which nodes are names for the same memory, and where in the order they are used."""

    def __init__(self, graph: fx.Graph) -> None:
        self._place = {node: k for k, node in enumerate(graph.nodes)}
        self._names: dict[int, list[fx.Node]] = {}
        for node in graph.nodes:
            if (key := _key(node)) is not None:
                self._names.setdefault(key, []).append(node)

    def is_own(self, target: fx.Node, write: fx.Node) -> bool:
        """Whether the graph has made the memory, and nobody looks at it by another name after the write."""
        key, now = _key(target), self._place[write]
        if key is None or not _makes_memory(self._names[key][0]):
            return False
        before = [node for node in self._names[key] if self._place[node] < now]
        return all(node is target or all(self._place[user] <= now for user in node.users) for node in before)

    def put(self, nodes: Iterable[fx.Node], where: fx.Node) -> None:
        self._place |= dict.fromkeys(nodes, self._place[where])

    def replace(self, target: fx.Node, value: fx.Node) -> None:
        """Give `value` to all users of `target` that come after it."""
        for user in list(target.users):
            if self._place[user] > self._place[value]:
                user.replace_input_with(target, value)
        key = _key(target)
        assert key is not None
        self._names[key].append(value)


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def _key(node: fx.Node) -> int | None:
    value = _value(node)
    strided = isinstance(value, Tensor) and value.layout == torch.strided
    return value.untyped_storage()._cdata if strided else None


def _of_schema(node: fx.Node, of: str) -> Any:
    return getattr(getattr(node.target, "_schema", None), of, None)


def _makes_memory(node: fx.Node) -> bool:
    """Whether the first name of a memory is a result of its own: no input, no constant, no view of one."""
    if node.target is operator.getitem:
        node = node.all_input_nodes[0]
    returns = _of_schema(node, "returns")
    return returns is not None and all(r.alias_info is None for r in returns)


def _same_layout(a: Tensor, b: Tensor) -> bool:
    return same_form(a, b) and a.stride() == b.stride()


def _without_write(node: fx.Node) -> tuple[Callable[..., Any], list[Any]] | None:
    """The operation that makes new tensors, the last of its results, of what `node` writes into, and these."""
    if node.target is aten._native_batch_norm_legit.default and len(node.args) >= 5:
        return aten._native_batch_norm_legit_functional.default, list(node.args[3:5])
    name, overload, arguments = (_of_schema(node, of) for of in ("name", "overload_name", "arguments"))
    if not (name.startswith("aten::") and name.endswith("_") and isinstance(next(iter(node.args), None), fx.Node)):
        return None
    function = getattr(getattr(aten, name[6:-1], None), overload or "default", None)
    if function is None:
        return None
    other = function._schema
    same = [(a.name, str(a.type)) for a in arguments] == [(a.name, str(a.type)) for a in other.arguments]
    written = [k for k, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    makes_one = not other.is_mutable and [r.alias_info for r in other.returns] == [None]
    return (function, [node.args[0]]) if same and written == [0] and makes_one else None
