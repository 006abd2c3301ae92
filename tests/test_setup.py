"""The build: what it cannot use is one line that says what, got and the way out; and what the source archive holds."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def build():
    """setup.py as a module: its functions, without a build."""
    home = os.environ.get("CUDA_HOME")
    spec = importlib.util.spec_from_file_location("fastmeta_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if home is None:
        os.environ.pop("CUDA_HOME", None)
    return module


def toolkit(folder: Path, script: str | None, mode: int = 0o755) -> Path:
    """A toolkit's root whose nvcc is this shell script, or is absent."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    if script is not None:
        nvcc.write_text(script)
        nvcc.chmod(mode)
    return folder


BROKEN = {
    "absent": (None, 0o755, r"no CUDA toolkit found: .*nvcc does not exist; set CUDA_HOME"),
    "not executable": ("#!/bin/sh\necho release 13.0\n", 0o644, r"nvcc cannot be run \(Permission denied\); repair"),
    "no program": (
        "\x7fELF garbage",
        0o755,
        r"nvcc (cannot be run \(Exec|failed with exit code).*; repair",
    ),
    "without an interpreter": ("#!/nowhere/sh\n", 0o755, r"nvcc cannot be run \(No such file or directory\); repair"),
    "failing": ("#!/bin/sh\necho release 13.0\nexit 1\n", 0o755, r"nvcc failed with exit code 1; repair"),
    "garbage": ("#!/bin/sh\nprintf '\\377\\376 hello'\n", 0o755, r"nvcc --version names no release; repair"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_nvcc_is_a_reason_in_one_line(kind, build, tmp_path, monkeypatch):
    script, mode, reason = BROKEN[kind]
    monkeypatch.setattr(build, "CUDA_HOME", str(toolkit(tmp_path, script, mode)))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("FASTMETA_CUDA", raising=False)
    text = build.why_no_cuda()
    assert "\n" not in text
    assert re.search(reason, text), text


def test_a_toolkit_that_fits_and_ones_that_do_not(build, tmp_path, monkeypatch):
    monkeypatch.delenv("FASTMETA_CUDA", raising=False)
    monkeypatch.setattr(build, "CUDA_HOME", str(toolkit(tmp_path, "#!/bin/sh\necho 'release 13.1, V13.1'\n")))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert build.why_no_cuda() == ""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert build.why_no_cuda().startswith("torch was built with CUDA 12.8, the toolkit is 13.1; ")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build.why_no_cuda().endswith("is built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(build, "CUDA_HOME", None)
    assert build.why_no_cuda() == "no CUDA toolkit found (nvcc on PATH or CUDA_HOME)"


def test_a_broken_nvcc_on_the_path_does_not_end_the_build(build, tmp_path, monkeypatch):
    toolkit(tmp_path, "#!/nowhere/sh\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert build.find_cuda_home() == str(tmp_path)


def stops(call) -> str:
    with pytest.raises(SystemExit) as error:
        call()
    text = str(error.value)
    assert text.startswith("fastmeta: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("value", ["2", "yes", "true", " 1", "01"])
def test_FASTMETA_CUDA_is_0_or_1(value, build, monkeypatch):
    monkeypatch.setenv("FASTMETA_CUDA", value)
    assert f"FASTMETA_CUDA must be 0 (CPU half only), 1 (both or fail) or unset (both if possible), got {value!r}" in (
        stops(build.why_no_cuda)
    )


@pytest.mark.parametrize("value", ["Hopper", "9", "90", "9.0;x", "sm_90", ";", "9.0+SASS", "all;9.0"])
def test_architectures_are_checked(value, build, monkeypatch):
    monkeypatch.setenv("FASTMETA_CUDA_ARCHS", value)
    assert "FASTMETA_CUDA_ARCHS must be all or architectures as 8.0;9.0+PTX, got '" in stops(build.cuda_archs)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("9.0", "9.0"), ("8.0, 9.0+PTX", "8.0;9.0+PTX"), ("8.0 10.0a;", "8.0;10.0a"), ("all", None), ("12.0", "12.0")],
)
def test_architectures(value, expected, build, monkeypatch):
    monkeypatch.setenv("FASTMETA_CUDA_ARCHS", value)
    assert build.cuda_archs() == (expected or build.ALL_ARCHS)


def test_a_missing_compiler(build, monkeypatch):
    for given in ("/nowhere/g++", "nowhere-g++ -m64"):
        monkeypatch.setenv("CXX", given)
        name = given.split()[0]
        assert f"no C++ compiler: {name!r} is not on PATH; install g++ 12 or newer, or set CXX" in stops(
            build.check_compiler
        )
    monkeypatch.setenv("CXX", "g++ -m64")
    if shutil.which("g++"):
        build.check_compiler()


def test_a_compiler_with_a_libstdcxx_of_its_own(build, monkeypatch, tmp_path):
    """Exceptions of such a library would end the process in place of raising in Python."""
    build.check_compiler()
    wrapper = tmp_path / "g++-static"
    wrapper.write_text('#!/bin/sh\nexec c++ "$@" -static-libstdc++\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    with pytest.raises(SystemExit, match=r"puts a copy of libstdc\+\+ into every library, .* set CXX"):
        build.check_compiler()


def test_a_read_only_source_folder(build, monkeypatch, tmp_path):
    build.check_writable(str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere but on a read-only disk
    assert "is read-only, and a build writes into it; copy it" in stops(lambda: build.check_writable(str(tmp_path)))
    (tmp_path / "file").touch()
    text = stops(lambda: build.write_build_info(str(tmp_path / "file" / "generated"), torch="x"))
    assert "cannot write" in text
    assert "make the source folder writable" in text


def test_the_whole_script_ends_in_one_line():
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FASTMETA_CUDA": "2"},
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("fastmeta: FASTMETA_CUDA must be 0")


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a checkout of git")
def test_the_source_archive_holds_every_tracked_file_and_a_wheel_all_of_the_package(tmp_path):
    """So tests run from the archive, with the headers and scripts that they compile and load; recipes from a wheel."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    tracked = {name.decode() for name in listed.split(b"\0") if name}
    source = tmp_path / "source"
    for name in tracked:
        if (ROOT / name).exists():  # not deleted in the working tree
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    (source / "tests" / "stray.so").touch()
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path), "build_py", "-d", str(tmp_path / "wheel")],
        capture_output=True,
        text=True,
        cwd=source,
        env={**os.environ, "FASTMETA_CUDA": "0"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
        (script,) = (m for m in tar.getmembers() if m.name.endswith("/dev"))
        assert script.mode & 0o100
    assert {name for name in tracked if (ROOT / name).exists()} - held == set()
    assert not [name for name in held if name.endswith((".so", ".pyc"))]
    of_package = {name for name in tracked if name.startswith("fastmeta/") and (ROOT / name).exists()}
    built = {str(path.relative_to(tmp_path / "wheel")) for path in (tmp_path / "wheel").rglob("*")}
    assert of_package - built == {"fastmeta/_C.pyi"} - built
    assert any(name.endswith(".toml") for name in built)
