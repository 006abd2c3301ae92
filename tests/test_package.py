"""The package as it is installed: what it imports, what its libraries need, what it says about itself."""

import ast
import importlib.machinery
import os
import platform
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
from fastmeta.ops import native

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


def test_an_import_brings_nothing_slow():
    """Beyond what torch itself brings: sympy alone takes five times as long as all of fastmeta."""
    out = python("""
        import sys
        import torch
        before = set(sys.modules)
        import fastmeta
        print(*(set(sys.modules) - before))
    """)
    brought = set(out.split())
    libraries = {name.split(".")[0] for name in brought} - set(sys.stdlib_module_names)
    # torch.distributed.nn writes itself a module of this name; it takes some milliseconds
    assert libraries <= {"fastmeta", "torch", "_remote_module_non_scriptable"}
    # 4 ms together; what else Python has is small too, or serves the trainer, the commands and compiles
    few = {"decimal", "fractions", "hmac", "numbers", "resource", "secrets", "statistics"}
    assert {name for name in brought if name.split(".")[0] in sys.stdlib_module_names and name[0] != "_"} <= few
    of_torch = {name for name in brought if name.startswith("torch.")}
    assert all(name.startswith("torch.distributed.nn") for name in of_torch)  # 4 ms; see fastmeta/distributed/ranks.py
    slow = ("torch._inductor", "torch._dynamo", "torch._functorch", "torch.fx.experimental", "torch.utils._sympy")
    assert [name for name in brought if name.startswith(slow)] == []
    ours = {name.split(".")[1] for name in brought if name.startswith("fastmeta.")}
    assert not ours & {"bench", "cli", "comparison", "data", "export", "learner", "methods", "models", "paper"}
    assert not ours & {"recipes", "report", "training", "trajectory"}


def test_the_library_and_its_benchmarks_need_torch_alone():
    """Without the trainer's libraries, and without torchvision, whose wheel does not import under every torch."""
    blocked = ", ".join(f"{name!r}: None" for name in ["torchvision", *TRAINER_LIBRARIES])
    out = python(f"""
        import sys
        sys.modules.update({{{blocked}}})
        import torch
        import fastmeta, fastmeta.reference
        from fastmeta.bench import ops_run as bench
        from fastmeta.cli import main

        x, y, index = torch.randn(8, 6), torch.arange(8) % 3, torch.arange(8)
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
        labels = fastmeta.InstanceLabels(y, num_classes=3)
        step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1), label_lr=1.0)
        print("step", bool(step((x, index), (x, y)).finite))
        print("check", fastmeta.check(model, labels, (x, index), (x, y), 0.1, timing=False).ok)
        print("terms", len(fastmeta.per_sample(model, x, y).norm))
        config = bench.OpsConfig(
            operations=("row_dot",), sizes=((4, 3),), dtypes=("float32",), seconds=0.01, compile=False
        )
        print("bench", bench.run(config, lambda text: None)["failures"])
        print("command", main(["check", "--model", "mlp", "--batch", "4", "--no-timing"]))
    """)
    for line in ("step True", "check True", "terms 8", "bench []", "command 0"):
        assert line in out.splitlines(), out


def test_reference_does_not_load_the_native_library():
    """The truth cannot depend on what it judges: not by an import anywhere in the file, nor by the dispatcher."""

    def inside(name: str) -> set[str]:
        path = ROOT / "fastmeta" / name
        files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        assert files
        nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
        modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert not any(isinstance(node, ast.Attribute) and node.attr == "ops" for node in nodes)
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)
        own = f"fastmeta.{name}"
        return {module for module in modules if module.startswith("fastmeta") and not module.startswith(own)}

    assert inside("reference") == {
        "fastmeta.functional.attention",
        "fastmeta.functional.call",
        "fastmeta.rng",
    }
    assert inside("functional/__init__") == set()
    assert inside("functional/attention") == set()
    assert inside("functional/call") == set()
    assert inside("rng") == set()


def test_why_the_cuda_half_is_absent(monkeypatch, tmp_path):
    """A torch without CUDA loads the CPU half and says so; a library that does not load is a reason, not an error."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    monkeypatch.setattr(native._C, "__file__", str(tmp_path / f"_C{suffix}"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert native._load_cuda() == (_C.build_info()["cuda_absent"] or "the CUDA half was not built")
    (tmp_path / f"_C_cuda{suffix}").write_bytes(b"not a library")
    assert f"_C_cuda{suffix}" in native._load_cuda()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert native._load_cuda() == f"torch {torch.__version__} is built without CUDA"


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


def copied(folder: Path, *names: str) -> Path:
    """The sources alone, to be built anew with other settings."""
    for name in ("csrc", "fastmeta", *names):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def built(folder: Path, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one machine code")
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3"])
def test_machine_codes_that_this_cpu_does_not_pick(machine, tmp_path):
    """The op suite on the code for plain x86-64 and for AVX2, whatever the CPU here is picked for."""
    if machine == "x86-64-v3" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no AVX2")
    root = copied(tmp_path, "tests")
    built(root, FASTMETA_CUDA="0", CFLAGS=f"-DFASTMETA_CLONES= -march={machine}")
    assert python("from fastmeta import _C; print(_C.build_info()['cpu_features'])", root=root).strip() == "baseline"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops"],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_all_architectures_compile(tmp_path):
    if ops.build_info()["cuda"] == "":
        pytest.skip(f"no CUDA toolkit that fits: {ops.build_info()['cuda_absent']}")
    built(copied(tmp_path), FASTMETA_CUDA="1", FASTMETA_CUDA_ARCHS="all")
    (library,) = (tmp_path / "fastmeta").glob("_C_cuda*.so")
    found = python("from fastmeta import _C; print(_C.build_info()['cuda_archs'])", root=tmp_path)
    assert found.strip() == "8.0,8.6,8.9,9.0,10.0,12.0+PTX"
    assert library.stat().st_size > 0
