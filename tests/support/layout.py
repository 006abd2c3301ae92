"""Which module of a package imports which, from the text alone: `python -m tests.support.layout [CHECKOUT]`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

Graph = dict[str, set[str]]


def name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def only_for_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def statements(tree: ast.AST):
    """Every import, also inside of functions; not those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and only_for_types(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from statements(node)


def modules(package: Path) -> Graph:
    """Module name to the modules of the package that it imports."""
    paths = {name_of(path, package): path for path in sorted(package.rglob("*.py"))}
    graph: Graph = {}
    for name, path in paths.items():
        graph[name] = found = set()
        for node in statements(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name in paths}
            elif node.level == 0 and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found |= {full} if full in paths else {node.module} & paths.keys()
        found.discard(name)
    return graph


def room_of(module: str) -> str:
    """The folder of a module, a file beside the folders itself: fastmeta.meta.engines.graph is in meta."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "fastmeta"


def rooms(graph: Graph) -> Graph:
    found: Graph = {room_of(module): set() for module in graph}
    for module, imported in graph.items():
        found[room_of(module)] |= {room_of(other) for other in imported} - {room_of(module)}
    return found


def circles(graph: Graph) -> list[set[str]]:
    """Sets of nodes that reach each other (Tarjan's)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(set(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def floors(graph: Graph) -> dict[str, int]:
    """How long the longest chain of imports below each node is; circles count once."""
    joined = {node: group for group in circles(graph) for node in group}
    depth: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in depth:
            group = joined.get(node, {node})
            below = set().union(*(graph[n] for n in group)) - group
            depth.update(dict.fromkeys(group, 1 + max(map(of, below), default=-1)))
        return depth[node]

    return {node: of(node) for node in graph}


def private_reads(path: Path) -> list[str]:
    """Attributes with a leading underscore that are read of anything but self, cls, or what this file itself makes."""
    tree = ast.parse(path.read_text())
    made = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    made |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    made |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    read = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr not in made]
    foreign = [n.attr for n in read if not (isinstance(n.value, ast.Name) and n.value.id in ("self", "cls"))]
    return [name for name in foreign if name.startswith("_") and not name.startswith("__")]


def private_names(package: Path) -> dict[str, str]:
    """Names with a leading underscore that the package makes, with a file that does."""
    found: dict[str, str] = {}
    for path in sorted(package.rglob("*.py")):
        for n in ast.walk(ast.parse(path.read_text())):
            name = ""
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = n.name
            elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
                name = n.id
            elif isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store):
                name = n.attr
            if name.startswith("_") and not name.startswith("__"):
                found.setdefault(name, name_of(path, package))
    return found


def main(root: str = ".") -> None:
    package = Path(root, "fastmeta")
    graph = modules(package)
    by_room = rooms(graph)
    folders = {path.parent.relative_to(package) for path in package.rglob("*.py")}
    print(f"{len(graph)} modules in {len(folders)} folders, {len(by_room)} rooms")
    print(f"import depth of rooms: {1 + max(floors(by_room).values())}")
    print(f"import depth of files: {1 + max(floors(graph).values())}")
    print("circles of rooms:", [sorted(c) for c in circles(by_room)])
    print("circles of files:", [sorted(c) for c in circles(graph)])
    height = floors(by_room)
    for room in sorted(by_room, key=lambda r: (height[r], r)):
        print(f"{height[room]:3} {room:22} -> {' '.join(sorted(by_room[room]))}")
    own = private_names(package)
    for path in sorted(package.rglob("*.py")):
        for name in sorted({n for n in private_reads(path) if n in own}):
            print(f"private: {name_of(path, package)} reads {name} of {own[name]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
