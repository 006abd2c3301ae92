"""Scripts of benchmarks/ as modules, for the tests of what they write."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@contextmanager
def benchmarks(*names: str) -> Iterator[dict[str, ModuleType]]:
    """The modules `names`, by name. Behind it they and what they imported of the folder are gone."""
    threads, before = torch.get_num_threads(), set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == FOLDER:
                del sys.modules[name]
        torch.set_num_threads(threads)
