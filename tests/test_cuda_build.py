"""What the compiler makes of the CUDA kernels, without a GPU: build time, registers, 16-byte access, architectures."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
LIBRARY = next((ROOT / "fastmeta").glob("_C_cuda*.so"), None)
FLAGS = ["-std=c++20", "-O3", "-Xptxas", "-v", "-cubin"]
ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which(os.path.join(home, "bin", "nvcc")) if home else shutil.which("nvcc")


def tool(name: str) -> str | None:
    """cuobjdump and nvdisasm from PATH, else from the wheel of triton, which torch for CUDA brings along."""
    spec = importlib.util.find_spec("triton")
    folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin" if spec and spec.origin else Path()
    return shutil.which(name) or shutil.which(str(folder / name))


needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc ($CUDA_HOME or PATH): nothing to compile with")
pytestmark = pytest.mark.skipif(
    LIBRARY is None or tool("cuobjdump") is None or tool("nvdisasm") is None,
    reason="no library of CUDA kernels, or no cuobjdump and nvdisasm (PATH or triton's wheel) to read it with",
)


@dataclass
class Kernel:
    symbol: str
    name: str  # demangled, without namespaces and arguments: step_kernel<float, Geometry<8, 32, true> >
    registers: int
    stack: int  # bytes of a thread's local memory: spilled registers, arrays that are indexed at run time
    cubin: Path


def demangle(names: list[str]) -> list[str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    plain = [re.sub(r"\(anonymous namespace\)::|fastmeta::|cuda::|^void ", "", line) for line in text.splitlines()]
    return [line.rsplit("(", 1)[0] for line in plain]


def cuobjdump(*words: str | Path, **options) -> str:
    folders = [str(Path(tool("nvdisasm")).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    command = [tool("cuobjdump"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, **options).stdout


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[str, Kernel]:
    """Those of the installed library for sm_90, by name."""
    folder = tmp_path_factory.mktemp("cubins")
    cuobjdump("-xelf", "sm_90.cubin", LIBRARY, cwd=folder)
    found: dict[str, Kernel] = {}
    for cubin in sorted(folder.iterdir()):
        usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", cuobjdump("-res-usage", cubin))
        for name, (symbol, *numbers) in zip(demangle([symbol for symbol, *_ in usage]), usage, strict=True):
            found[name] = Kernel(symbol, name, *map(int, numbers), cubin)
    if not found:
        pytest.skip("the library holds no code for sm_90")
    return found


# ---------------------------------------------------------------------------------------------------------


def test_every_launcher_is_compiled_for_every_geometry(kernels) -> None:
    by_body: dict[str, set[str]] = {}
    for kernel in kernels.values():
        body, geometry = kernel.name.split("<", 1)[0], re.search(r"\w*(Geometry|Table)<.*?>", kernel.name)
        by_body.setdefault(body, set()).add(geometry.group())
    assert len(by_body) == 12
    resident = {f"Geometry<{g}, true>" for g in ("8, 32", "32, 32", "128, 32", "512, 24")}
    for body in ("instance_loss_kernel", "instance_label_step_resident_kernel", "hvp_kernel", "class_update_kernel"):
        assert resident <= by_body[body], body
    clusters = {f"ClusterGeometry<{blocks}, 256>" for blocks in (2, 4, 8)}
    with_clusters = {body for body, geometries in by_body.items() if clusters & geometries}
    assert with_clusters == {"instance_loss_kernel", "instance_label_step_resident_kernel"}
    assert all(clusters <= by_body[body] for body in with_clusters)
    assert by_body["lookahead_kernel"] == {"LookaheadTable<90>", "LookaheadTable<740>"}


# Bytes of stack that few kernels may have: two to six registers that are spilled for a block more on a multiprocessor.
# The loss of 50,257 classes was faster so on an H200 than with a block less.
SPILLED = {
    "instance_loss_kernel<float, float, ClusterGeometry<8, 256> >": 8,
    "instance_loss_kernel<float, float, ClusterGeometry<4, 256> >": 16,
    "instance_loss_kernel<float, float, ClusterGeometry<2, 256> >": 8,
    "instance_loss_kernel<float, float, Geometry<512, 24, true> >": 8,
    "instance_loss_kernel<float, BFloat16, Geometry<512, 24, true> >": 8,
    "instance_label_step_resident_kernel<float, float, float, Geometry<512, 24, true> >": 16,
    "soft_cross_entropy_backward_kernel<float, BFloat16, Geometry<512, 16, false> >": 8,
}


def test_no_spills_and_no_local_memory(kernels) -> None:
    hot = [kernel for kernel in kernels.values() if "double" not in kernel.name]
    assert len(hot) > 200
    assert not [kernel for kernel in hot if kernel.stack > SPILLED.get(kernel.name, 0)]


def test_two_blocks_of_a_cluster_share_a_multiprocessor(kernels) -> None:
    """65,536 registers over two blocks of 256 threads: one loads and stores while the other computes."""
    found = [kernel for kernel in kernels.values() if "ClusterGeometry" in kernel.name]
    assert len(found) == 3 * (12 + 7)  # geometries, dtypes of the step and of the loss, none of them float64
    assert all(kernel.registers <= 65536 // (2 * 256) for kernel in found)


def test_the_lookahead_fills_half_of_a_multiprocessor(kernels) -> None:
    """64 registers let 1,024 threads run, each with 128 to 192 bytes on their way."""
    found = [kernel for kernel in kernels.values() if kernel.name.startswith("lookahead")]
    assert len(found) == 2 * 4
    assert all(kernel.registers <= 64 for kernel in found)


@pytest.mark.parametrize(
    ("kernel", "loads", "stores"),
    [
        # operands x words of a thread; stores of the good row: v, and the label row in a step. Words are 16 bytes, or 8
        # of 16-bit operands beside wider ones; some of them go past the registers into shared memory (LDGSTS).
        (
            "instance_label_step_resident_kernel<float, float, float, Geometry<32, 32, true> >",
            24,
            16,
        ),
        ("instance_label_step_resident_kernel<float, float, float, Geometry<8, 32, true> >", 24, 16),
        (
            "instance_label_step_resident_kernel<BFloat16, BFloat16, BFloat16, Geometry<32, 32, true> >",
            12,
            8,
        ),
        (
            "instance_label_step_resident_kernel<BFloat16, float, float, Geometry<512, 24, true> >",
            6 + 6 + 6,
            6 + 6,
        ),
        (
            "instance_label_step_streamed_kernel<float, float, float, Geometry<512, 16, false> >",
            12,
            8,
        ),
        ("instance_loss_kernel<float, float, Geometry<128, 32, true> >", 16, 8),
        ("instance_loss_kernel<BFloat16, BFloat16, Geometry<8, 32, true> >", 8, 4),
        ("soft_cross_entropy_kernel<float, float, Geometry<32, 16, false> >", 8, 0),
        ("soft_cross_entropy_backward_kernel<float, float, Geometry<32, 32, true> >", 16, 16),
        ("hvp_kernel<BFloat16, BFloat16, Geometry<32, 32, true>, false>", 8, 4),
        ("class_update_kernel<float, Geometry<32, 32, true> >", 8, 8),
        ("row_dot_kernel<float, Geometry<32, 16, false> >", 8, 0),
        ("load_images_kernel<BFloat16, Geometry<8, 16, false> >", 0, 2),
        ("load_images_kernel<float, Geometry<8, 16, false> >", 0, 4),
        (
            "instance_label_step_resident_kernel<float, float, float, ClusterGeometry<8, 256> >",
            24,
            16,
        ),
        (
            "instance_label_step_resident_kernel<BFloat16, float, float, ClusterGeometry<4, 256> >",
            8 + 8 + 8,
            8 + 8,
        ),
        ("instance_loss_kernel<float, float, ClusterGeometry<8, 256> >", 16, 8),
        ("lookahead_kernel<float, LookaheadTable<90> >", 12, 4),
        ("lookahead_kernel<BFloat16, LookaheadTable<740> >", 12, 4),
    ],
)
def test_access_in_words(kernel: str, loads: int, stores: int, kernels) -> None:
    body = cuobjdump("-sass", "-fun", kernels[kernel].symbol, kernels[kernel].cubin)
    words = "128|64" if "BFloat16, float" in kernel else "128"
    assert len(re.findall(rf"\bLDG\.E\.(?:{words})|\bLDGSTS\S*\.128", body)) >= loads
    assert len(re.findall(rf"\bSTG\.E\.(?:{words})", body)) >= stores
    assert kernel in SPILLED or not re.search(r"\b(LDL|STL)\b", body), "local memory"


@pytest.mark.slow
@needs_nvcc
def test_builds_within_three_minutes_on_two_cores(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for source in SOURCES:
        command = [find_nvcc(), *FLAGS, "-arch=sm_90", "-o", tmp_path / f"{source.stem}.cubin", source]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:4000]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 2 * 180


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_all_architectures_compile(source: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    for arch in ARCHITECTURES:
        out = tmp_path / f"sm_{arch}.cubin"
        command = [find_nvcc(), *FLAGS, f"-arch=sm_{arch}", "-o", out, source]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"sm_{arch}: {done.stderr[:4000]}"
        assert "bytes stack frame" in done.stderr
    print(f"{source.name}: {len(ARCHITECTURES)} architectures in {time.monotonic() - start:.0f} s")
