"""One pass of a model on a copy of its state: given to the holders before, collected from them after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
from torch import Tensor

from fastmeta.functional.copies import State, Tensors, Writes, copies, same_memory
from fastmeta.functional.holders import HolderWalk, all_exchanged, exchanged, holder_stands, put_holder, read_holder
from fastmeta.functional.inventory import Inventory
from fastmeta.functional.random_state import is_generator


class _Pass:
    """What a pass was given: in dicts by key, in lists as a whole."""

    def __init__(self, state: State, memo: dict[int, Tensor], aliases: Tensors, writes: Writes | None) -> None:
        self.state, self.memo, self.aliases, self.writes = state, memo, aliases, writes
        self.slots: list[tuple[Any, Any, Tensor]] = []  # holder, key, the model's tensor
        self.carriers: list[tuple[Any, Any, Any, Any]] = []  # holder, key, the model's value, the pass's
        self.lists: list[tuple[Any, Any, Any]] = []  # holder, the model's contents, the pass's
        self.expected: dict[int, Any] = {}  # contents by holder, where the state has some; else the model's


class Passes(Inventory):
    """Passes of a model that move a copy of its state; the model itself stands."""

    def run(self, params: Tensors, state: State, call: Callable[[], Any]) -> Any:
        """``call()`` while the model has `params` and `state`, which then has what was moved; the model stands."""
        there = self._begin(params, state, watch=not state.repeats)
        versions = {name: self.watched[name]._version for name in there.aliases} if state.repeats else {}
        try:
            with there.writes or nullcontext():
                out = call()
            for name, version in versions.items():
                if self.watched[name]._version != version:
                    raise RuntimeError(
                        f"the model has moved {name} in a forward, and not in the same forward before; "
                        "move it in both, or in none"
                    )
            self._collect(there)
        finally:
            self._end(there)
        if any(name in state for name in self.watched):
            self.look()
        return out

    @contextmanager
    def held(self, params: Tensors, state: State) -> Iterator[None]:
        """Inside, the model has `params` and `state`, which may be written into; then it stands."""
        there = self._begin(params, state, watch=False)
        try:
            yield
        finally:
            self._end(there)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """An error inside puts back what the model has in its dicts and containers."""
        if not self.stands():
            self.look()
        try:
            yield
        except BaseException:
            for holder, contents in self._holders:
                if not holder_stands(holder, contents):
                    put_holder(holder, contents)
            raise

    def _begin(self, params: Tensors, state: State, *, watch: bool) -> _Pass:
        """Give every holder what it has in a pass."""
        memo: dict[int, Tensor] = {}
        for which, name in self._all:
            if (value := params.get(name)) is not None or (value := state.get(name)) is not None:
                memo[which] = value
            elif name in self.own:  # seen to move since `state` was taken
                memo[which] = state[name] = copies({name: self.own[name]})[name]
        for name, t in state.new.items():
            memo[id(t)] = state[name]
        aliases = {name: t.detach() for name, t in self.watched.items() if id(t) not in memo}
        for name, alias in aliases.items():  # another tensor of the memory: ``p.data = ...`` leaves the model's alone
            memo[id(self.watched[name])] = alias
        for t in self._graded:
            if t.requires_grad and (value := memo.get(id(t))) is not None and value.is_leaf:
                value.requires_grad_()
        writes = Writes({k: self.watched[k] for k in aliases}, self.together) if aliases and watch else None
        there = _Pass(state, memo, aliases, writes)
        for holder, key, t in self._places:
            holder[key] = memo.get(id(t), t)
        if state.contents:
            there.expected = {id(h): c for h, c in self._holders} | {k: c for k, (_, c) in state.contents.items()}
            there.slots = [entry for entry in self._slots if id(entry[0]) not in state.contents]
        else:
            there.slots = self._slots
        for holder, key, value in there.slots:
            holder[key] = memo.get(id(value), value)
        for holder, key, v in self._carriers:
            if id(holder) not in state.contents:
                holder[key] = given = exchanged(v, memo)
                there.carriers.append((holder, key, v, given))
        for holder, contents in self._lists:
            if id(holder) not in state.contents:
                put_holder(holder, now := all_exchanged(contents, memo))
                there.lists.append((holder, contents, now))
        for holder, contents in state.contents.values():
            put_holder(holder, now := all_exchanged(contents, memo))
            if isinstance(holder, dict):
                for key, v in contents.items():
                    if isinstance(v, Tensor) and id(v) in memo:
                        there.slots.append((holder, key, v))
                    elif now[key] is not v:
                        there.carriers.append((holder, key, v, now[key]))
            elif not isinstance(holder, np.ndarray):
                there.lists.append((holder, contents, now))
        return there

    def _end(self, there: _Pass) -> None:
        """The model has its own again, whatever happened."""
        for holder, key, t in self._places:
            holder[key] = t
        for holder in self._resized():
            put_holder(holder, self._contents(holder))
        for holder, key, value in self._slots:
            holder[key] = value
        for holder, key, v, _ in there.carriers:
            holder[key] = v
        for holder, contents, _ in there.lists:
            put_holder(holder, contents)
        for holder, contents in there.state.contents.values():  # some are the model's, some hang in the state alone
            put_holder(holder, self._contents(holder, contents))
        for holder in self._altered():
            put_holder(holder, self._contents(holder))
        if there.writes is not None:
            for name, before in there.writes.before.items():
                self.watched[name].data = before

    def _collect(self, there: _Pass) -> None:
        """Take what the pass has moved into its state."""
        state, memo, odd = there.state, there.memo, []
        for entry in there.slots:
            holder, key, value = entry
            if holder.get(key) is memo.get(id(value), value):
                holder[key] = value
            else:
                odd.append(entry)
        for holder, key, value, given in there.carriers:
            if holder.get(key) is given:
                holder[key] = value
        for holder, contents, given in there.lists:
            if len(holder) == len(given) and all(map(is_, holder, given)):
                put_holder(holder, contents)
        tensors = list(chain(self.own.items(), self.watched.items(), state.new.items()))
        others = self._take_replaced(there, odd, {id(t): name for name, t in tensors}) if odd else []
        for name, t in there.aliases.items():
            own = self.watched[name]
            if name in state or (there.writes is not None and name in there.writes.before) or not same_memory(own, t):
                state.setdefault(name, t)
                self._moving.append(own)
        if not there.expected:
            altered = list({id(h): h for h in [*self._altered(), *others]}.values())
        else:
            pairs = chain(self._holders, list(state.contents.values()))
            unique = {id(h): h for h, _ in pairs}
            altered = [h for which, h in unique.items() if not holder_stands(h, there.expected[which])]
        for holder, contents in self._holders if altered else ():
            if isinstance(holder, dict) and any(holder is h for h in altered):  # a random state is kept elsewhere
                contents.update({k: v for k, v in holder.items() if is_generator(v)})
        if altered:
            back = {id(memo[id(t)]): t for t in chain(self._trained.values(), (t for _, t in tensors)) if id(t) in memo}
            for holder in altered:
                self._take_contents(holder, state, back)

    def _take_replaced(self, there: _Pass, odd: list[tuple[Any, Any, Tensor]], names: dict[int, str]) -> list[Any]:
        """What is under the keys of tensors now: new values of these, or other contents of the holders returned."""
        state, known = there.state, set(map(id, there.memo.values()))
        given_anew: dict[int, list[tuple[Any, Any, Any, Tensor]]] = {}
        for holder, key, value in odd:
            now = holder.get(key)
            if id(value) not in names:
                holder[key] = value  # a trained parameter was replaced
            elif isinstance(now, Tensor) and id(now) not in known:
                given_anew.setdefault(id(value), []).append((holder, key, value, now))
        for which, places in given_anew.items():
            name, now = names[which], places[0][3]
            # a plain attribute that is a result with its graph stays one; a tie that is torn makes two tensors
            result = now.grad_fn is not None and self._kinds.get(name, "attribute") == "attribute"
            if result or any(t is not now for *_, t in places) or len(places) < self._ties[which]:
                continue
            state[name] = now.detach()
            state.replaced.add(name)
            for holder, key, value, _ in places:
                holder[key] = value
        return [holder for holder, key, value in odd if holder.get(key) is not value]

    def _take_contents(self, holder: Any, state: State, back: dict[int, Tensor]) -> None:
        """The contents of a holder that was changed, and all that has come with them."""
        known = [*(h for h, _ in self._holders), *(h for h, _ in state.contents.values()), *back.values()]
        walk = HolderWalk([*known, *state.new.values(), *self._modules])
        state.contents[id(holder)] = holder, (contents := all_exchanged(read_holder(holder), back))
        for key, value in contents.items() if isinstance(contents, dict) else enumerate(contents):
            walk.value(value, str(key))
        for other in walk.holders:
            state.contents[id(other)] = other, all_exchanged(read_holder(other), back)
            put_holder(other, state.contents[id(other)][1])
        for name, t, _ in walk.tensors:
            name = f"{name} ({len(state.new)})"  # unlike any that the model has
            state.new[name] = state[name] = t
