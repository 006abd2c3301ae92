"""Recipe files: found by the name of a shipped one or by their path, read, checked whole."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastmeta._text import shown
from fastmeta._trust import Untrusted
from fastmeta.data import InputError, at_least, within
from fastmeta.methods import METHODS
from fastmeta.recipes.recipe import SETTING, Published, Recipe
from fastmeta.training import TrainConfig
from fastmeta.training.toml_file import read_toml
from fastmeta.training.values import check_types, one_of

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The shipped recipes, in the order of the alphabet."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def read(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by its name, or any config file: one without [recipe] is a recipe without published numbers.

    A file of that name in the working folder comes before the shipped one.

    Raises:
        InputError: no such recipe or file, no TOML, an unknown key, a value that is wrong; one line.
    """
    name, shipped = str(name_or_path), names()
    path = Path(name)
    if path.name == name.rstrip("/\\") and not _is_there(path):
        if name in shipped:
            return _recipe(name, name, read_toml(_FOLDER / f"{name}.toml"))
        wanted = name.removesuffix(".toml")
        close = difflib.get_close_matches(wanted[:80].lower(), shipped, n=3)
        if wanted in close or not path.suffix:
            hint = f"did you mean {' or '.join(close)}?" if close else f"shipped are {', '.join(shipped)}"
            raise InputError(f"no config file and no recipe has the name {shown(name)}; {hint}")
    return _recipe(path.stem, name, read_toml(path))


def _is_there(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):  # a name that no file can have: reading it tells
        return True


@dataclass(frozen=True)
class _Head:
    """The table [recipe]."""

    title: str = ""
    source: str = ""
    notes: str = ""
    methods: tuple[str, ...] = ()
    seeds: int = 3
    published: Any = field(default=(), metadata={"tables": True})

    def __post_init__(self) -> None:
        check_types(self, "recipe.")
        at_least("recipe.seeds", self.seeds, 1)


@dataclass(frozen=True)
class _Row:
    """A table [[recipe.published]]."""

    row: str
    test: float
    source: str
    std: float | None = None
    clean: bool = False
    pretrained: bool = False
    when: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, "recipe.published.")
        within("recipe.published.test", self.test, 0, 100)
        within("recipe.published.std", self.std, 0, 100)


def _recipe(name: str, source: str, values: Mapping[str, Any]) -> Recipe:
    try:
        return _checked(name, values)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(f"{source}: ") else f"{source}: {text}") from None


def _checked(name: str, values: Mapping[str, Any]) -> Recipe:
    values = dict(values)
    plain = not {"recipe", "methods"} & set(values)
    head = _table(_Head, values.pop("recipe", {}), "recipe")
    of_method = _overlays(values.pop("methods", {}))
    method = values.pop("method", TrainConfig.method)
    if isinstance(method, Mapping):
        options = dict(method)
        method = options.pop("name", TrainConfig.method)
        above = of_method.get(method, {})
        of_method[method] = {**above, "method": {**options, **above.get("method", {})}}
    if not isinstance(method, str):
        raise InputError(f"method must be a text in quotes, got {shown(method)}")
    methods = tuple(Untrusted(m) if ":" in m else m for m in head.methods or (method,))
    recipe = Recipe(
        name=name,
        title=head.title or name,
        source=head.source,
        notes=" ".join(head.notes.split()),
        methods=methods,
        seeds=head.seeds,
        published=tuple(map(_published, _rows(head.published))),
        tables=values,
        of_method=of_method,
        method=Untrusted(method) if ":" in method else method,
        plain=plain,
    )
    # all of them, so that a mistake is told now and not hours later
    for chosen in dict.fromkeys((method, *methods, *of_method)):
        try:
            TrainConfig.from_mapping(recipe.values(chosen), source=name)
        except InputError as error:
            text = str(error).removeprefix(f"{name}: ")
            raise InputError(f"[methods.{chosen}]: {text}" if chosen in of_method else text) from None
    return recipe


def _overlays(tables: Any) -> dict[str, dict[str, Any]]:
    """[methods.NAME]: tables of a config without a method."""
    if not isinstance(tables, Mapping):
        raise InputError(f"methods must be tables [methods.NAME], got {shown(tables)}")
    for name, table in tables.items():
        if ":" not in name:
            one_of("the NAME of [methods.NAME]", name, tuple(METHODS))
        if not isinstance(table, Mapping):
            raise InputError(f"methods.{name} must be a table [methods.{name}], got {shown(table)}")
        own = table.get("method", {})
        if not isinstance(own, Mapping) or "name" in own:
            raise InputError(f"methods.{name}.method must be a table of its options without a name, got {shown(own)}")
    return {name: dict(table) for name, table in tables.items()}


def _rows(published: Any) -> list[Any]:
    if not isinstance(published, list | tuple):
        raise InputError(f"recipe.published must be tables [[recipe.published]], got {shown(published)}")
    return list(published)


def _published(table: Any) -> Published:
    row = _table(_Row, table, "recipe.published")
    if not isinstance(row.when, Mapping):
        raise InputError(f"recipe.published.when must be a table, got {shown(row.when)}")
    for key, value in row.when.items():
        one_of("a key of recipe.published.when", key, SETTING)
        if not isinstance(value, str):
            raise InputError(f"recipe.published.when.{key} must be a text in quotes, got {shown(value)}")
    return Published(row.row, row.test, row.std, row.clean, row.pretrained, row.source, dict(row.when))


def _table(cls: Any, values: Any, name: str) -> Any:
    """A table of the file as the dataclass `cls`; InputError for a key that it has not, or has to have."""
    if not isinstance(values, Mapping):
        raise InputError(f"{name} must be a table, got {shown(values)}")
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key)[:80], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise InputError(f"unknown key {shown(f'{name}.{key}')}; {hint}")
    for key, of in known.items():
        if of.default is MISSING and of.default_factory is MISSING and key not in values:
            raise InputError(f"{name} must have {key}, got {', '.join(map(str, values)) or 'nothing'}")
    return cls(**values)
