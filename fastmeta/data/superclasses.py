"""Which classes belong together: of CIFAR-100 by their names, of others by a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._text import printable, reason, shown
from fastmeta.data.errors import InputError

#: the 20 superclasses of CIFAR-100, in the order of its own numbers
CIFAR100 = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
#: bytes of a file of them
_MOST = 2**22
WANTED = (
    'superclasses are one for each class: a list of C numbers or names, {"class": "superclass"}, or '
    '{"superclass": ["class", ...]}'
)


def known_superclasses(class_names: Sequence[str]) -> np.ndarray | None:
    """(C,) int64 where these are the classes of CIFAR-100, in any order; None for others."""
    group_of = {name: number for number, names in enumerate(CIFAR100.values()) for name in names.split()}
    if set(class_names) != group_of.keys() or len(class_names) != len(group_of):
        return None
    return np.array([group_of[name] for name in class_names])


def read_superclasses(path: Path, class_names: Sequence[str]) -> np.ndarray:
    """(C,) int64 of a JSON file. InputError unless it names a superclass for every class."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
        if len(content) > _MOST:
            raise ValueError(f"it has more than {_MOST:,} bytes")
        told = json.loads(content)
    except OSError as error:
        raise InputError(f"data.superclasses: {path} cannot be read ({error.strerror}); {WANTED}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"data.superclasses: {path} is no JSON ({reason(error)}); {WANTED}") from error
    return as_superclasses(told, class_names, str(path))


def as_superclasses(told: Any, class_names: Sequence[str], name: str) -> np.ndarray:
    """(C,) int64 of one of the forms in `WANTED`."""
    if isinstance(told, Mapping):
        if all(isinstance(members, list) for members in told.values()):
            pairs = [(str(member), str(group)) for group, members in told.items() for member in members]
        else:
            pairs = [(str(member), str(group)) for member, group in told.items()]
        of = dict(pairs)
        missing = [c for c in class_names if c not in of]
        others = [member for member, _ in pairs if member not in class_names]
        if missing or others or len(of) != len(pairs):
            what = (
                f"has none for class {printable(missing[0], 40)!r}"
                if missing
                else f"names class {printable(others[0], 40)!r}, which there is not"
                if others
                else "names a class twice"
            )
            raise InputError(f"data.superclasses: {name} {what}; {WANTED}")
        told = [of[c] for c in class_names]
    if not isinstance(told, list | tuple) or len(told) != len(class_names):
        got = f"{len(told)} of them for {len(class_names)} classes" if isinstance(told, list | tuple) else shown(told)
        raise InputError(f"data.superclasses: {name} holds {got}; {WANTED}")
    if not all(isinstance(v, str | int) and not isinstance(v, bool) for v in told):
        raise InputError(f"data.superclasses: {name} holds what is neither number nor name; {WANTED}")
    return np.unique(np.array([str(v) for v in told]), return_inverse=True)[1].astype(np.int64)
