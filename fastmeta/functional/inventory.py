"""What a model has that its forward may move, found and named: tensors, and the holders that they lie in."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from fastmeta.functional.copies import State, Tensors, copies
from fastmeta.functional.holders import PLAIN, HolderWalk, holder_stands, overlapping, read_holder, tensors_in

#: Tensors that are no buffers are copied for each pass up to so many bytes, all together. Beyond, such as the weights
#: of a frozen backbone, a write is waited for instead: its operations then cost some microseconds more each.
COPIED_BYTES = 4 << 20


class Inventory:
    """What `model` has that its forward may move, beside the parameters `trained` ({name: parameter}).

    Attributes:
        own: {name: tensor}, the model's own, of which every pass gets copies: buffers, and the others where they are
            small or have been seen to move.
        watched: {name: tensor}: the others. A pass sees them where they lie, and a write is seen.
        together: groups of names whose tensors overlap in memory.
        structure: grows when the names do not stay the same.
    """

    def __init__(self, model: nn.Module, trained: Tensors) -> None:
        self.model, self._trained = model, trained
        self._moving: list[Tensor] = []
        self.structure = 0
        self.own: Tensors = {}
        self.watched: Tensors = {}
        self.look()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(copy.deepcopy(self.model, memo), copy.deepcopy(self._trained, memo))

    def look(self) -> None:
        """Find everything anew."""
        walk = HolderWalk()
        walk.module(self.model, "")
        self._modules = walk.modules
        names = list(self.own), list(self.watched)
        trained = {id(p) for p in self._trained.values()}
        found = {id(t) for _, t, _ in walk.tensors}
        #: parameters that were trained and are the model's no more
        self.gone = [name for name, p in self._trained.items() if id(p) not in found]
        rest = {name: t for name, t, _ in walk.tensors if id(t) not in trained}
        self._kinds = {name: kind for name, t, kind in walk.tensors if name in rest}
        groups = overlapping([*((("trained", name), p) for name, p in self._trained.items()), *rest.items()])  # type: ignore[list-item]
        bound = [group for group in groups if any(isinstance(name, tuple) for name in group)]
        for name in chain.from_iterable(bound):  # what lies in a trained parameter moves with it, and only with it
            rest.pop(name, None)
        self.together = [group for group in groups if group not in bound]
        size = sum(t.nbytes for name, t in rest.items() if self._kinds[name] != "buffer" and t.layout == torch.strided)
        few = size <= COPIED_BYTES
        self._moving = [t for t in self._moving if id(t) in found]
        moving = {id(t) for t in self._moving}
        self.own = {k: t for k, t in rest.items() if few or self._kinds[k] == "buffer" or id(t) in moving}
        self.watched = {name: t for name, t in rest.items() if name not in self.own}
        self._all = [(id(t), name) for name, t in chain(self._trained.items(), rest.items())]
        self._known = {id(t) for t in chain(self._trained.values(), rest.values())}
        # buffers hardly ever require one
        self._graded = [t for name, t in rest.items() if t.requires_grad or self._kinds[name] != "buffer"]
        self._holders = [(h, read_holder(h)) for h in walk.holders]
        self._places = [(h, key, h[key]) for h, key in walk.places if id(h[key]) in self._known]
        # what has to be exchanged while a pass runs
        self._slots: list[tuple[Any, Any, Tensor]] = []
        self._carriers: list[tuple[Any, Any, Any]] = []
        self._lists: list[tuple[Any, Any]] = []
        for h, contents in self._holders:
            if isinstance(h, dict):
                carriers = [(h, key, v) for key, v in contents.items() if self._carries(v)]
                self._slots += [entry for entry in carriers if isinstance(entry[2], Tensor)]
                self._carriers += [entry for entry in carriers if not isinstance(entry[2], Tensor)]
            elif not isinstance(h, np.ndarray) and any(map(self._carries, contents)):
                self._lists.append((h, contents))
        slots = Counter(id(h) for h, _, _ in self._slots)
        # of a holder that has nothing else the size tells
        full = [(h, c) for h, c in self._holders if not isinstance(h, np.ndarray) and slots[id(h)] == len(c)]
        self._sized, self._sizes = [h for h, _ in full], [len(c) for _, c in full]
        full_ids = set(map(id, self._sized))
        self._looked_at = [(h, c) for h, c in self._holders if id(h) not in full_ids]
        self._ties = Counter(id(v) for _, _, v in self._slots)
        others = chain((v for _, _, v in self._carriers), chain.from_iterable(c for _, c in self._lists))
        self._ties.update(id(t) for v in others for t in tensors_in(v))
        self.structure += names != (list(self.own), list(self.watched))

    def _carries(self, value: Any) -> bool:
        return type(value) not in PLAIN and any(id(t) in self._known for t in tensors_in(value))

    def stands(self) -> bool:
        """Whether the model still has what was found last."""
        return all(h.get(key) is t for h, key, t in self._slots) and not self._altered()

    def state(self) -> State:
        """A copy of what the model has, for one pass to move."""
        if not self.stands():
            self.look()
        return State(copies(self.own, self.together), self.together)

    def _contents(self, holder: Any, otherwise: Any = None) -> Any:
        """What was found last in a holder of the model's."""
        return next((contents for h, contents in self._holders if h is holder), otherwise)

    def _altered(self) -> list[Any]:
        """The model's holders that have not what was found last, but for tensors under their keys."""
        return [*(h for h, contents in self._looked_at if not holder_stands(h, contents)), *self._resized()]

    def _resized(self) -> list[Any]:
        if list(map(len, self._sized)) == self._sizes:
            return []
        return [h for h, size in zip(self._sized, self._sizes, strict=True) if len(h) != size]
