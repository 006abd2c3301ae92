"""What a forward may move besides trained parameters, and passes that move a copy of it.

Buffers are the least of it. A momentum encoder moves parameters that require no gradient, a codebook too; a running
mean may be a plain attribute, a memory bank a list, a schedule a counter. A plain loop calls the model once per step,
a meta step several times. So every pass is given a :class:`State`, runs on it in the place of what the model has, and
leaves it as the model would have been left; the model itself stands as before. The step writes the state of its one
train forward into the model, or does not.

What a model keeps values in is a *holder*: see :mod:`fastmeta.functional.holders`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import Tensor, nn

from fastmeta.functional.copies import State, Tensors, fits, same_form, same_memory
from fastmeta.functional.holders import PLAIN, alike, all_exchanged, holder_stands, plain_equal, put_holder, read_holder
from fastmeta.functional.passes import Passes

__all__ = ["State", "StateOf", "alike", "fits", "same_form"]


class StateOf(Passes):
    """What a pass has moved, given to the model itself."""

    def in_place(self, state: State) -> tuple[list[Tensor], list[Tensor], Tensors]:
        """The model's tensors to write into, the values, and what has to take another's place, by name."""
        targets, values, others = [], [], {}
        for name, own in chain(self.own.items(), self.watched.items(), state.new.items()):
            value = state.get(name)
            if value is None or same_memory(own, value):
                continue
            if fits(own, value) and not (name in state.replaced and self._kinds.get(name) == "attribute"):
                targets.append(own)
                values.append(value)
            else:
                others[name] = value
        return targets, values, others

    def caches(self, state: State) -> list[str] | None:
        """Names of tensors that a pass has made for the model to keep; None where it has moved values alone."""
        own = self.own | self.watched
        others = [name for name, t in own.items() if name in state and not same_form(t, state[name])]
        return [*others, *state.new] if others or state.contents else None

    def registers(self, state: State) -> str:
        """A buffer or parameter that a pass has made, dropped or given another form, or ""."""
        for name, t in (self.own | self.watched).items():
            if name in state and self._kinds[name] != "attribute" and not same_form(t, state[name]):
                return name
        for module in self._modules:
            for holder in (module._parameters, module._buffers):
                if id(holder) in state.contents:
                    now = state.contents[id(holder)][1]
                    return str(next((k for k in now if holder.get(k) is not now[k]), "a buffer that is gone"))
        return ""

    def counters(self, state: State) -> list[tuple[int, Any, Any]]:
        """Plain values that a pass has moved: where in ``state.contents``, the key, and what it is now."""
        moved = []
        for holder, contents in self._holders:
            if isinstance(holder, dict) and id(holder) in state.contents:
                now = state.contents[id(holder)][1]
                moved += [
                    (id(holder), k, v)
                    for k, v in now.items()
                    if type(v) in PLAIN and not plain_equal(v, contents.get(k))
                ]
        return moved

    def note_moved(self, before: State, after: State) -> None:
        """Plain attributes that a pass has moved are state, and no settings."""
        for name, t in self.own.items():
            if self._kinds[name] == "attribute" and (name in after.replaced or not alike(before[name], after[name])):
                self._moving.append(t)

    def moving(self) -> list[Tensor]:
        """Buffers, parameters, and the plain attributes that were seen to move."""
        seen = {id(t) for t in self._moving}
        return [t for name, t in self.own.items() if self._kinds[name] != "attribute" or id(t) in seen]

    def count(self, state: State) -> None:
        """Let plain numbers be what they are in `state`; nothing is looked for anew."""
        for holder, contents in self._holders:
            _, now = state.contents.get(id(holder), (None, None))
            if isinstance(holder, dict) and now is not None:
                moved = {
                    k: v for k, v in now.items() if type(v) in (int, float) and type(contents.get(k)) in (int, float)
                }
                holder.update(moved)
                contents.update(moved)
            elif isinstance(holder, list) and now is not None and len(now) == len(contents):
                for k, v in enumerate(now):
                    if type(v) in (int, float) and type(contents[k]) in (int, float):
                        holder[k] = contents[k] = v

    def keep(self, state: State) -> None:
        """Give the model what a pass has made for it to keep: containers and plain tensors, but no plain values."""
        were = {id(h): contents for h, contents in self._holders}
        kept = state.clone()
        for which, (holder, contents) in state.contents.items():
            was = were.get(which, {})
            if isinstance(contents, dict):
                now = {k: was.get(k, v) if type(v) in PLAIN else v for k, v in contents.items()}
                kept.contents[which] = holder, now
        own = self.own | self.watched
        self.settle(
            kept, {name: kept[name] for name, t in own.items() if name in kept and not same_form(t, kept[name])}
        )

    def settle(self, state: State, others: Tensors) -> None:
        """Give the model `others` and the contents that `state` has for its holders."""
        if not others and not state.contents:
            return
        were = {id(h): contents for h, contents in self._holders}
        for holder, contents in state.contents.values():
            was = were.get(id(holder))
            if isinstance(holder, dict) and was is not None:  # what somebody else has changed meanwhile stays
                for key in was.keys() - contents.keys():
                    holder.pop(key, None)
                holder.update({k: v for k, v in contents.items() if k not in was or was[k] is not v})
            else:
                put_holder(holder, contents)
        memo: dict[int, Tensor] = {}
        for name, own in chain(self.own.items(), self.watched.items(), state.new.items()):
            if name in others:
                value = others[name]
                whole = isinstance(own, nn.Parameter)
                memo[id(own)] = nn.Parameter(value.detach(), own.requires_grad) if whole else value.detach()
        if memo:
            for holder, key, t in self._places:
                holder[key] = memo.get(id(t), t)
            for holder in [*(h for h, _ in self._holders), *(h for h, _ in state.contents.values())]:
                contents = read_holder(holder)
                changed = all_exchanged(contents, memo)
                if not holder_stands(holder, changed):
                    put_holder(holder, changed)
        self.look()
