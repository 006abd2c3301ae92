"""The package as it is installed: what it imports, what its libraries need, what it says about itself."""

import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch

import fastmeta
from fastmeta import _C, ops

ROOT = Path(fastmeta.__file__).parents[1]
LIBRARIES = sorted(Path(_C.__file__).parent.glob("_C*.so"))
TRAINER_LIBRARIES = ["tyro", "safetensors", "matplotlib", "rich", "sklearn", "tomli_w", "pyarrow", "tensorboard"]


def python(code: str, executable: str = sys.executable, root: Path = ROOT, **env: str) -> str:
    done = subprocess.run(
        [executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=root,  # comes before PYTHONPATH
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda f: f.name.split(".")[0])
def test_no_mangled_symbol_of_torch_is_imported(library):
    """Only the stable C ABI: then one build serves every torch from 2.11 on."""
    names = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-1] for line in names.splitlines()]
    assert any(s.startswith("aoti_torch_") for s in symbols)
    demangled = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    mangled = [
        name for name in demangled.splitlines() if any(ns in name for ns in ("torch::", "c10::", "at::", "caffe2::"))
    ]
    assert mangled == []


def test_core_imports_without_the_trainers_libraries():
    blocked = ", ".join(f"{name!r}: None" for name in TRAINER_LIBRARIES)
    out = python(f"""
        import sys
        sys.modules.update({{{blocked}}})
        import fastmeta, fastmeta.ops, fastmeta.reference, fastmeta.labels
        import torch
        print(float(fastmeta.ops.soft_cross_entropy(torch.zeros(2, 4), torch.full((2, 4), 0.25))))
    """)
    assert float(out) == pytest.approx(1.3862944)


def test_reference_does_not_load_the_native_library():
    """The truth cannot depend on what it judges."""

    def imports(name: str) -> list[str]:
        source = (ROOT / "fastmeta" / f"{name}.py").read_text()
        return [line for line in source.splitlines() if line.startswith(("import", "from"))]

    def inside(name: str) -> set[str]:
        return {line.split()[1] for line in imports(name) if "fastmeta" in line}

    assert inside("reference") == {"fastmeta.counter_rng", "fastmeta.rounding"}
    assert inside("rounding") == {"fastmeta.counter_rng"}
    assert inside("counter_rng") == set()


def test_build_info():
    info = ops.build_info()
    assert set(info) == {"torch", "cuda", "cuda_archs", "cuda_absent", "cpu_features", "compiler"}
    assert tuple(map(int, info["torch"].split("+")[0].split(".")[:2])) >= (2, 11)
    assert info["cpu_features"].startswith("baseline")
    assert bool(info["cuda"]) == bool(info["cuda_archs"])
    loaded = torch._C._dispatch_has_kernel_for_dispatch_key("fastmeta::instance_loss", "CUDA")
    assert loaded == (info["cuda_absent"] == "")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("fastmeta::instance_loss", "CPU")


def test_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == fastmeta.__version__


def test_py_typed_is_there():
    assert (Path(fastmeta.__file__).parent / "py.typed").exists()


@pytest.mark.slow
def test_one_build_serves_another_torch():
    """The op suite under another interpreter's torch, with these very files: nothing is rebuilt."""
    other = os.environ.get("FASTMETA_OTHER_PYTHON")
    if not other:
        pytest.skip("set FASTMETA_OTHER_PYTHON to an interpreter with another torch >= 2.11 and the test extra")
    version = python("import torch; print(torch.__version__)", other).strip()
    assert version != torch.__version__, "FASTMETA_OTHER_PYTHON has this very torch"
    before = {f: f.stat().st_mtime_ns for f in LIBRARIES}
    done = subprocess.run(
        [other, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "ops")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"under torch {version}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    assert before == {f: f.stat().st_mtime_ns for f in LIBRARIES}


@pytest.mark.slow
def test_all_architectures_compile(tmp_path):
    if ops.build_info()["cuda"] == "":
        pytest.skip(f"no CUDA toolkit that fits: {ops.build_info()['cuda_absent']}")
    for name in ("csrc", "fastmeta"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "FASTMETA_CUDA": "1", "FASTMETA_CUDA_ARCHS": "all"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    (library,) = (tmp_path / "fastmeta").glob("_C_cuda*.so")
    found = python("from fastmeta import _C; print(_C.build_info()['cuda_archs'])", root=tmp_path)
    assert found.strip() == "8.0,8.6,8.9,9.0,10.0,12.0+PTX"
    assert library.stat().st_size > 0
