"""How a model is called on the x of a batch, and where its logits lie. The reference calls models so, too."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor, nn


def call_model(model: nn.Module, x: Any) -> Any:
    """The model's output on `x`.

    A Mapping goes to forward as keyword arguments, as Hugging Face's tokenizers give them and its models want them; a
    tuple goes as positional arguments; everything else, lists and named tuples included, as the one argument. A Mapping
    or a tuple that does not fit forward's arguments goes as the one argument too. ``({...},)``, a tuple of one, gives a
    forward the whole dict although its keys would fit.

    Raises:
        TypeError: forward takes `x` in neither way; the message says how it can be given.
    """
    if isinstance(x, Tensor):
        return model(x)
    args, kwargs = arguments(model, x)
    if not args or args[0] is not x or not isinstance(x, Mapping):
        return model(*args, **kwargs)
    try:
        return model(x)
    except (TypeError, AttributeError, KeyError) as error:
        if len(_named(model)) < 2:  # there is one argument that the dict can be
            raise
        raise TypeError(f"{_misfit(model, x)} (as the one argument: {type(error).__name__}: {error})") from error


def arguments(model: nn.Module, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of forward that `x` stands for; a TypeError as of :func:`call_model`."""
    how = way(model, x)
    if how == "none":
        raise TypeError(_misfit(model, x))
    return (tuple(x) if how == "positions" else () if how == "keywords" else (x,)), dict(x) if how == "keywords" else {}


def plain(model: nn.Module, x: Any) -> Any:
    """`x`, or a dict of it where it is another Mapping that goes as keyword arguments (a tokenizer's BatchEncoding).

    Structures of tensors are then seen through by torch, which knows dicts alone.
    """
    other = isinstance(x, Mapping) and not isinstance(x, dict)
    return dict(x) if other and way(model, x) == "keywords" else x


def way(model: nn.Module, x: Any) -> str:
    """How `x` reaches forward: as "keywords", "positions", "one" argument; or "none", where it fits in no way."""
    given: frozenset[Any] | int
    if isinstance(x, Mapping):
        given = frozenset(x)
    elif type(x) is tuple:  # and no named tuple, such as a PackedSequence
        given = len(x)
    else:
        return "one"
    forward = _forward(model)
    method = getattr(forward, "__func__", None)
    # a function of the class lives as long as that; one of the module alone may hold the module, and is not kept
    return _fits(forward, (), given) if method is None else _fits_method(method, given)


@lru_cache(maxsize=256)
def _fits_method(method: Any, given: frozenset[Any] | int) -> str:
    return _fits(method, (None,), given)


def _fits(forward: Any, first: tuple[Any, ...], given: frozenset[Any] | int) -> str:
    """`first` stands for the module, where `forward` takes it."""
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # of a builtin
        return "one"
    tries: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [("one", (*first, None), {})]
    if isinstance(given, int):
        tries.insert(0, ("positions", (*first, *range(given)), {}))
    elif all(isinstance(name, str) for name in given):
        tries.insert(0, ("keywords", first, dict.fromkeys(given)))
    for how, args, kwargs in tries:
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            continue
        return how
    return "none"


def _forward(model: nn.Module) -> Any:
    """What the user wrote: torch.compile hides its arguments. `_orig_mod` is the only way to the module inside."""
    return getattr(model, "_orig_mod", model).forward


def _named(model: nn.Module) -> list[str]:
    """Arguments of forward by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, p in inspect.signature(_forward(model)).parameters.items() if p.kind in kinds]


def _misfit(model: nn.Module, x: Any) -> str:
    forward = f"{type(model).__name__}.forward({', '.join(_named(model))})"
    if isinstance(x, Mapping):
        return (
            f"x has the keys {', '.join(map(str, x))}, which do not fit the arguments of {forward}: name them so, "
            "give a tuple for positional arguments, or ({...},) for a forward that takes the whole dict"
        )
    return (
        f"x is a tuple of {len(x)}, which do not fit the arguments of {forward}: give as many as it takes, or a dict "
        "for keyword arguments"
    )


def pick_logits(output: Any) -> Tensor:
    """The default ``logits_of``: the output itself if it is a tensor, else its ``.logits`` or ``["logits"]``."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the model must return logits as a tensor, as .logits or as ['logits'], got {type(output).__name__}; "
        "pass logits_of=lambda output: ... to pick them"
    )
