"""Imports point down, in no circle, and no file reads what another calls private."""

import re
from pathlib import Path

import pytest

import fastmeta
from tests.support import layout

PACKAGE = Path(fastmeta.__file__).parent

#: from the ground up: a room imports from the rows above its own, and not from its neighbours
FLOORS = [
    ["_path", "_text", "_memory", "_version", "rng", "functional", "measure", "distributed"],
    ["_numbers", "_trust", "reference"],
    ["ops", "models"],
    ["losses", "per_sample", "data"],
    ["meta"],
    ["checker", "posterior", "trajectory"],
    ["methods"],
    ["training"],
    ["export", "recipes"],
    ["report", "learner"],
    ["_train"],
    ["comparison"],
    ["fastmeta"],
    ["bench"],
    ["paper"],
    ["cli"],
    ["__main__"],
]

#: torch's and Python's own names, which files of ours make too
OTHERS = ("_asdict", "_buffers", "_fields", "_make", "_modules", "_parameters", "_replace")


def test_imports_point_down():
    """Also those inside of functions. A new folder gets a place in FLOORS."""
    height = {room: k for k, floor in enumerate(FLOORS) for room in floor}
    graph = layout.rooms(layout.modules(PACKAGE))
    assert graph.keys() <= height.keys(), f"without a floor: {sorted(graph.keys() - height.keys())}"
    upward = [f"{room} -> {other}" for room, below in graph.items() for other in below if height[other] >= height[room]]
    assert not upward


def test_no_files_import_each_other_in_a_circle():
    assert layout.circles(layout.modules(PACKAGE)) == []


def test_no_file_reads_what_another_calls_private():
    own = layout.private_names(PACKAGE)
    found = {
        f"{layout.name_of(path, PACKAGE)} reads {name} of {own[name]}"
        for path in PACKAGE.rglob("*.py")
        for name in layout.private_reads(path)
        if name in own and name not in OTHERS
    }
    assert not found


#: lines of a file of the package, at most
LONGEST = 400


def test_a_file_is_of_one_idea_and_not_too_long():
    lengths = {layout.name_of(path, PACKAGE): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {name: count for name, count in lengths.items() if count > LONGEST}


def test_the_reference_needs_no_compiled_extension():
    """What it judges is not among what it imports; the root of the package, which imports all, is left aside."""
    graph = layout.modules(PACKAGE)
    todo, met = ["fastmeta.reference"], set()
    while todo:
        met.add(module := todo.pop())
        todo += graph[module] - met - {"fastmeta"}
    assert "fastmeta.reference.operations" in met
    assert not {module for module in met if layout.room_of(module) in ("ops", "losses", "meta")}


def test_folders_inside_of_a_room_are_reached_through_their_init():
    graph = layout.modules(PACKAGE)
    deep = [
        f"{module} -> {other}"
        for module, imported in graph.items()
        for other in imported
        if other.count(".") > 2 and layout.room_of(module) != layout.room_of(other)
    ]
    assert not deep


#: what several folders have by the same name because it is the same thing to each of them
SHARED_NAMES = {
    "__init__",
    "registry",  # a folder's choices by name
    *("class_labels", "instance_labels"),  # operation, loss and method
    "labels",  # family of losses and command
    "digits",  # data set and its network
}


def test_no_two_folders_have_a_file_of_one_name():
    names = [path.stem for path in PACKAGE.rglob("*.py")]
    twice = {name for name in names if names.count(name) > 1}
    assert twice == SHARED_NAMES


def test_tests_share_code_through_support_alone():
    found = [
        f"{path.relative_to(PACKAGE.parent)}: {line}"
        for path in sorted((PACKAGE.parent / "tests").rglob("*.py"))
        for line in re.findall(r"^\s*from (?:tests\.(?!support)\S+|\.\S*) import .*$", path.read_text(), re.M)
    ]
    assert not found


@pytest.mark.parametrize(
    ("files", "room", "circle"),
    [
        ({"a/x.py": "from p.b import y", "b/y.py": ""}, {"a": {"b"}, "b": set()}, []),
        ({"a/x.py": "def f():\n    import p.b.y", "b/y.py": "from p.a.x import z"}, None, [{"p.a.x", "p.b.y"}]),
        ({"a/x.py": "if TYPE_CHECKING:\n    from p.b.y import z", "b/y.py": "from p.a import x"}, None, []),
    ],
)
def test_the_graph_of_imports(files, room, circle, tmp_path):
    package = tmp_path / "p"
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    graph = layout.modules(package)
    assert room is None or layout.rooms(graph) == room
    assert layout.circles(graph) == circle


def test_what_counts_as_a_private_read(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "class A:\n    def f(self, other):\n        self._x = 1\n        return self._y, other._x, other._z\n"
    )
    assert layout.private_reads(file) == ["_z"]
