"""The folders beside state.safetensors that hold what ranks save: one for each save, named by its token."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

_NAME = re.compile("ranks-[0-9a-f]{32}")


def rank_folder(state: Path, token: str) -> Path:
    """Where a save of this token lies; ValueError for what is no token: a state may be anybody's."""
    name = f"ranks-{token}"
    if not is_rank_folder(name):
        raise ValueError("it names a folder that no run writes")
    return state.with_name(name)


def is_rank_folder(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def remove_other_folders(state: Path, kept: str | None = None) -> None:
    """Take away the folders of all saves but the one of this name. One that cannot be removed stays."""
    with contextlib.suppress(OSError):
        for name in os.listdir(state.parent):
            if is_rank_folder(name) and name != kept:
                shutil.rmtree(state.with_name(name), ignore_errors=True)
