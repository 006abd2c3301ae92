"""The one command for everything works from any folder, on the files of that folder."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAYS = '#!/bin/sh\necho "$(basename "$0") in $PWD: $*" >>"$LOG"\n'

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")


@pytest.fixture
def dev(tmp_path):
    """A checkout with an environment whose programs only say how they were called."""
    checkout, programs = tmp_path / "check out", tmp_path / "env" / "bin"
    (checkout / "csrc").mkdir(parents=True)
    for name in ("dev", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout / name)
    (checkout / "csrc" / "a.cpp").write_text("int a;")
    programs.mkdir(parents=True)
    for name in ("python", "pip", "fastmeta"):
        (programs / name).write_text(SAYS)
        (programs / name).chmod(0o755)
    log = tmp_path / "log"

    def call(*words, cwd, venv):
        log.write_text("")
        environment = {**os.environ, "FASTMETA_VENV": str(venv), "LOG": str(log)}
        script = os.path.relpath(checkout / "dev", cwd)
        subprocess.run(["sh", script, *words], cwd=cwd, env=environment, capture_output=True, check=True)
        return log.read_text().splitlines()

    return call


@pytest.mark.parametrize("relative", [True, False])
def test_set_up_once_in_the_checkout_then_run_where_one_is(relative, dev, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    venv = "../env" if relative else tmp_path / "env"
    *setup, run = dev("train", "--dataset", "npz:my.npz", cwd=mine, venv=venv)
    assert setup
    assert all(line.startswith(f"pip in {tmp_path / 'check out'}: install") for line in setup)
    assert run == f"fastmeta in {mine}: train --dataset npz:my.npz"
    assert dev("check", cwd=mine, venv=venv) == [f"fastmeta in {mine}: check"]
    assert dev("check", cwd=tmp_path / "check out", venv=venv) == [f"fastmeta in {tmp_path / 'check out'}: check"]
