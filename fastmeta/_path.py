"""Takes the current folder off the import path of ``python -m fastmeta``, before anything else is imported.

Python puts it first there. Run in a folder with somebody's files, ``import statistics`` deep inside torch would run the
``statistics.py`` that lies among them. The installed command ``fastmeta`` never has the folder on its path.
"""

import itertools
import os
import sys


def _run_as_module() -> bool:
    """Whether this import is that of ``python -m fastmeta``, while Python looks for its ``__main__``."""
    pairs = itertools.pairwise(sys.orig_argv)
    named = any(flag[:1] == "-" and flag[-1:] == "m" and word == "fastmeta" for flag, word in pairs)
    return sys.argv[:1] == ["-m"] and (named or "-mfastmeta" in sys.orig_argv)


def _is_here(folder: str) -> bool:
    try:
        return folder in ("", os.getcwd())
    except OSError:  # it is gone
        return False


if _run_as_module() and sys.path and _is_here(sys.path[0]):
    del sys.path[0]
