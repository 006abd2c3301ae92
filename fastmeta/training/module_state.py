"""All that training moves of a module, as tensors and JSON: its state_dict, and what forward keeps beside that.

A forward may move more than parameters and persistent buffers: buffers that are not persistent, tensors and numbers in
plain attributes (a moving average, a count), random generators of the module's own. A run that goes on without them is
another run, and a model that is loaded without them another model. They are found by comparing the module with what it
was when its stage began, and are put back into a fresh copy at the same place.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import types
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmeta._text import printable, reason
from fastmeta.training.encoding import Decoder, Encoder, Unsaved

LOCKS = (type(threading.Lock()), type(threading.RLock()))
#: what has no state that forward could read back
_FIXED = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.CodeType, Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, io.IOBase, *LOCKS),
)
#: what torch keeps in every module, hooks and modes among it
_OF_TORCH = frozenset(vars(nn.Module()))
#: a module may hold on to half of a program: what is looked at ends somewhere
_MOST_OBJECTS = 100_000

#: a module's name, then (kind, key) from it inwards, where a kind is buffer, attribute or item
Place = tuple[Any, ...]

#: what damaged or hostile values make the way back raise
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


class ModuleState(NamedTuple):
    """What :meth:`Watch.state` gives and :func:`load_state` takes."""

    state: dict[str, Tensor]  # the tensors of state_dict
    beside: dict[str, Tensor]  # others, by number
    values: dict[str, Any]  # as JSON holds them; empty where state_dict is all


class _Seen(NamedTuple):
    """What stood at a place when watching began."""

    digest: str  # of a value that has a form
    value: Any  # one that has none


class Watch:
    """Remembers what the modules of `model` hold now, and later says what of it has moved."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        #: after :meth:`state`, in words: what has moved and is of a kind that only its own code could save
        self.unsaved: list[str] = []
        self._begun = {p: _Seen(_digest(form, t), value) for p, value, form, t, _ in _places(model)}

    def state(self, constants: bool = True) -> ModuleState:
        """As it stands now; ValueError in one line for a state_dict that cannot be saved.

        With `constants`, tensors and generators beside state_dict are in it whether or not they have moved: what made
        them may not make the same again.
        """
        encoder = Encoder()
        state: dict[str, Tensor] = {}
        others, moved, unsaved, present = [], [], [], set()
        for name, value in self.model.state_dict().items():
            if is_plain(value):
                state[name] = value
                continue
            try:
                others.append([name, encoder(value)])
            except Unsaved as error:
                raise ValueError(
                    f"its state_dict holds {name!r}, {error}, and the files of a run take tensors, numbers, texts, "
                    "bytes, and lists and dicts of these"
                ) from error
        for place, value, form, tensors, settable in _places(self.model):
            present.add(place)
            seen = self._begun.get(place)
            if form is None:
                if not _is_same(seen, value):
                    unsaved.append(words(place))
            elif seen is None or seen.digest != _digest(form, tensors) or (constants and tensors):
                if settable:
                    moved.append([list(place), _renumbered(form, tensors, encoder.tensors)])
                else:
                    unsaved.append(words(place))
        # what a place held has gone unless the place, or one that it lies in, or one inside of it is there
        around = {place[:k] for place in present for k in range(2, len(place))}
        gone = [list(p) for p in self._begun if p not in around and not _lies_in(p, present)]
        self.unsaved = unsaved
        values = {k: v for k, v in (("others", others), ("moved", moved), ("gone", gone)) if v}
        return ModuleState(state, encoder.tensors, values)


def load_state(model: nn.Module, saved: ModuleState) -> None:
    """Bring a module that was built as the saved one to its state, made anew where a buffer has grown.

    Raises:
        ValueError: it does not fit, in one line that names what; the module is as it was.
    """
    try:
        decode = Decoder(saved.beside, device=_device(model))
        state = {**saved.state, **{name: decode(form) for name, form in saved.values.get("others", [])}}
        moved, gone = saved.values.get("moved", []), saved.values.get("gone", [])
    except _DAMAGE as error:
        raise ValueError(f"what it holds beside tensors is damaged ({one_line(error)})") from error
    with _put_back_on_error(model):
        expected = _fit_buffers(model, state)
        try:
            model.load_state_dict(state)
        except OSError:  # of a file that a module keeps: it says what to do
            raise
        except Exception as error:  # a module of the user's may raise anything
            raise ValueError(misfit(expected, state) or one_line(error)) from error
        try:
            _put_beside(model, moved, gone, saved.beside)
        except _DAMAGE as error:
            raise ValueError(f"what it holds beside state_dict cannot be put back ({one_line(error)})") from error


def _put_beside(model: nn.Module, moved: Any, gone: Any, tensors: Mapping[str, Tensor]) -> None:
    modules = dict(model.named_modules())
    # buffers first, because others may stand for them
    for kind in (True, False):
        decode = Decoder(tensors, dict(_own(model)), _device(model))
        for place, form in moved:
            if (place[1][0] == "buffer") == kind:
                _put(modules[place[0]], place[1:], form, decode)
    for place in gone:
        _drop(modules[place[0]], place[1:])


def misfit(expected: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """How the entries of two state_dicts differ, in one line; "" where they do not."""
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    shapes = [
        f"{k} is {tuple(state[k].shape)} and not {tuple(expected[k].shape)}"
        for k in expected
        if k in state
        and isinstance(state[k], Tensor)
        and isinstance(expected[k], Tensor)
        and not nn.parameter.is_lazy(expected[k])
        and state[k].shape != expected[k].shape
    ]
    parts = [("it lacks", missing), ("it has too many:", unexpected), ("of another shape:", shapes)]
    return "; ".join(f"{what} {_few(found)}" for what, found in parts if found)


def one_line(error: BaseException) -> str:
    """Type and first sentence of an error of the user's code, as much of it as a message has room for."""
    text = reason(error, 300)
    return printable(" ".join(f"{type(error).__name__}: {error}".split()), 300) if text.endswith(":") else text


def words(place: Place | list[Any]) -> str:
    """A place for people: layer 'norm', attribute mean."""
    inner = "".join(f".{key}" if kind == "attribute" else f"[{key!r}]" for kind, key in place[2:])
    kind, key = place[1]
    return f"{kind} {key}{inner} of {f'layer {place[0]!r}' if place[0] else 'the model'}"


def attributes(module: nn.Module) -> Iterator[tuple[tuple[str, str], Any]]:
    """What a module holds beside parameters, modules and the buffers of its state_dict."""
    for name in sorted(module._non_persistent_buffers_set):
        yield ("buffer", name), module._buffers.get(name)
    for name, value in list(vars(module).items()):
        if name not in _OF_TORCH:
            yield ("attribute", name), value


def inside(value: Any) -> list[tuple[tuple[str, Any], Any]]:
    """What a container or an object of the user's holds."""
    if isinstance(value, _FIXED):
        return []
    found: list[tuple[tuple[str, Any], Any]] = []
    if isinstance(value, Mapping):
        found += [(("item", k), v) for k, v in value.items() if type(k) in (bool, int, float, str, type(None))]
    elif isinstance(value, list | tuple | deque):
        found += [(("item", k), v) for k, v in enumerate(value)]
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        found += [(("attribute", k), v) for k, v in list(held.items())]
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found.append((("attribute", name), getattr(value, name)))
    return found


def _places(model: nn.Module) -> Iterator[tuple[Place, Any, Any, dict[str, Tensor], bool]]:
    """(place, value, form or None, tensors of the form, whether it can be set) of all that is no parameter or buffer.

    The inside of what has no form as a whole comes one by one, each object once.
    """
    own = {id(t): name for name, t in _own(model)}
    met = {id(m) for m in model.modules()}

    def walk(place: Place, value: Any, settable: bool) -> Iterator[tuple[Place, Any, Any, dict[str, Tensor], bool]]:
        # a buffer that is not persistent is one of the own tensors, and here is where it is kept
        encoder = Encoder({} if place[1][0] == "buffer" else own)
        try:
            form = encoder(value)
        except Unsaved:
            if id(value) in met or len(met) > _MOST_OBJECTS or len(place) > 32:
                return
            held = inside(value)
            if not isinstance(value, _FIXED):
                met.add(id(value))
            if not held:
                yield place, value, None, {}, settable
            for key, item in held:
                yield from walk((*place, key), item, settable and not isinstance(value, tuple))
            return
        yield place, None, form, encoder.tensors, settable

    for name, module in model.named_modules():
        for key, value in attributes(module):
            yield from walk((name, key), value, True)


def _lies_in(place: Place, places: set[Place]) -> bool:
    return any(place[:k] in places for k in range(2, len(place) + 1))


def _is_same(seen: _Seen | None, value: Any) -> bool:
    """Of a value without form, as far as can be seen: an iterator moves with every look."""
    if seen is None or isinstance(value, Iterator):
        return isinstance(value, io.IOBase)
    return seen.value is value or (isinstance(value, _FIXED) and isinstance(value, Hashable) and seen.value == value)


def _own(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _device(model: nn.Module) -> torch.device:
    return next((t.device for _, t in _own(model)), torch.device("cpu"))


def is_plain(value: Any) -> bool:
    """What safetensors holds."""
    return (
        type(value) in (Tensor, nn.Parameter, nn.Buffer)
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_quantized or value.is_nested or value.is_meta)
    )


def _digest(form: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(form).encode(), digest_size=16)
    for t in tensors.values():
        digest.update(repr((str(t.dtype), tuple(t.shape))).encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _renumbered(form: Any, tensors: Mapping[str, Tensor], into: dict[str, Tensor]) -> Any:
    """`form` with its tensors added to those of `into`."""
    if not tensors:
        return form
    names = {}
    for name, t in tensors.items():
        names[name] = str(len(into))
        into[names[name]] = t

    def walk(f: Any) -> Any:
        if isinstance(f, list):
            return [walk(v) for v in f]
        if not isinstance(f, dict):
            return f
        ((kind, content),) = f.items()
        if kind in ("tensor", "array"):
            return {kind: [names[content[0]], *content[1:]]}
        return {kind: walk(content)}

    return walk(form)


def _fit_buffers(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Make room for buffers of other shapes than the fresh model's; returns its state_dict then.

    Those of torch's own layers, such as running statistics, keep their shape.
    """
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        for key, b in module._buffers.items():
            t = state.get(f"{path}.{key}" if path else key)
            lazy = b is not None and nn.parameter.is_lazy(b)
            if not isinstance(t, Tensor) or lazy or key in module._non_persistent_buffers_set:
                continue
            alike = b is not None and b.shape == t.shape and b.is_floating_point() == t.is_floating_point()
            if not alike or (b is not None and 0 in b.stride() and b.numel() > 1):
                module._buffers[key] = torch.empty_like(t, device=_device(model) if b is None else b.device)
    return dict(model.state_dict())


class _put_back_on_error:
    """A module that does not fit stays as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.buffers = [(m, dict(m._buffers)) for m in self.model.modules()]
        self.tensors = [(t, t.detach().clone()) for _, t in _own(self.model) if not nn.parameter.is_lazy(t)]

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            with torch.no_grad():
                for module, buffers in self.buffers:
                    module._buffers.update(buffers)
                for t, value in self.tensors:
                    t.copy_(value)
        del self.tensors


def _holder(module: nn.Module, place: list[Any]) -> tuple[Any, str, Any]:
    """What the last step of a place leads into, with its kind and key.

    A file says the places, and it may be anybody's: only what a module or an object of its holds by itself is reached,
    never a class, a function or what these hold.
    """
    at: Any = module
    for step in place[:-1]:
        kind, key = step
        at = dict(attributes(at) if at is module else inside(at))[kind, key]
    kind, key = place[-1]
    if kind == "attribute":
        if (
            not isinstance(key, str)
            or key.startswith("__")
            or key in _OF_TORCH
            or callable(getattr(type(at), key, None))
        ):
            raise ValueError(f"{key!r} is no attribute that holds a value")
        if isinstance(at, _FIXED):
            raise ValueError(f"a {type(at).__name__} has no attributes of its own")
    elif kind == "buffer":
        if at is not module or key not in module._non_persistent_buffers_set:
            raise ValueError(f"{key!r} is no buffer beside state_dict")
    elif not isinstance(at, dict | list | deque):
        raise ValueError(f"a {type(at).__name__} has no items that can be set")
    return at, kind, key


def _put(module: nn.Module, place: list[Any], form: Any, decode: Decoder) -> None:
    at, kind, key = _holder(module, place)
    old = dict(attributes(at) if at is module else inside(at)).get((kind, key))
    new = decode(form, old)
    if old is not None and _fits(old, new):
        with torch.no_grad():
            old.copy_(new)  # others may share it
    elif kind == "attribute":
        object.__setattr__(at, key, new)
    else:
        (module._buffers if kind == "buffer" else at)[key] = new


def _drop(module: nn.Module, place: list[Any]) -> None:
    try:
        at, kind, key = _holder(module, place)
        if kind == "attribute":
            object.__delattr__(at, key)
        else:
            del (module._buffers if kind == "buffer" else at)[key]
    except (LookupError, AttributeError):  # gone with what held it
        pass


def _fits(old: Any, new: Any) -> bool:
    """Whether a tensor can be written into the one that is there."""
    return (
        is_plain(old)
        and is_plain(new)
        and (old.shape, old.dtype) == (new.shape, new.dtype)
        and not (0 in old.stride() and old.numel() > 1)
    )


def _few(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
