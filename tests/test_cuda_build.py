"""What the compiler makes of the CUDA kernels, without a GPU: build time, registers, 16-byte access, architectures."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
BUILD = ROOT / "build" / "cuda-test"
FLAGS = ["-std=c++20", "-O3"]
ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which(os.path.join(home, "bin", "nvcc")) if home else shutil.which("nvcc")


def triton_tool(name: str) -> str | None:
    """cuobjdump and nvdisasm from PATH, else from the wheel of triton, which torch for CUDA brings along."""
    spec = importlib.util.find_spec("triton")
    folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin" if spec and spec.origin else Path()
    return shutil.which(name) or shutil.which(str(folder / name))


pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc ($CUDA_HOME or PATH): nothing to compile with")
needs_disassembler = pytest.mark.skipif(
    triton_tool("cuobjdump") is None or triton_tool("nvdisasm") is None,
    reason="no cuobjdump and nvdisasm (PATH or triton's wheel)",
)


@dataclass
class Kernel:
    name: str  # demangled, without namespaces and arguments: step_kernel<float, Geometry<8, 32, true> >
    stack: int
    spill_stores: int
    spill_loads: int
    registers: int


def demangle(names: list[str]) -> list[str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    plain = [re.sub(r"\(anonymous namespace\)::|fastmeta::|cuda::|^void ", "", line) for line in text.splitlines()]
    return [line.rsplit("(", 1)[0] for line in plain]


def cubin(source: Path) -> Path:
    return BUILD / f"{source.stem}-{_key(source)}.cubin"


def _key(source: Path) -> str:
    key = hashlib.sha256(repr((find_nvcc(), FLAGS)).encode())
    headers = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc" / "cuda").glob("*.cuh")]
    for path in [source, *sorted(headers)]:
        key.update(path.read_bytes())
    return key.hexdigest()[:16]


@functools.cache
def compiled() -> tuple[float, list[Kernel]]:
    """CPU seconds of nvcc over all files for sm_90, and their kernels; kept in build/ until a source changes."""
    BUILD.mkdir(parents=True, exist_ok=True)
    seconds, kernels = 0.0, []
    for source in SOURCES:
        report = cubin(source).with_suffix(".json")
        if not report.exists():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [find_nvcc(), *FLAGS, "-arch=sm_90", "-Xptxas", "-v", "-cubin"]
            done = subprocess.run([*command, "-o", cubin(source), source], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[:4000]
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            found = [asdict(kernel) for kernel in parse_ptxas(done.stderr)]
            report.write_text(json.dumps({"seconds": cpu, "kernels": found}))
        kept = json.loads(report.read_text())
        seconds += kept["seconds"]
        kernels += [Kernel(**kernel) for kernel in kept["kernels"]]
    return seconds, kernels


def parse_ptxas(log: str) -> list[Kernel]:
    pattern = re.compile(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    found = pattern.findall(log)
    assert len(found) == log.count("Compiling entry function"), "the output of ptxas -v is not as expected"
    names = demangle([name for name, *_ in found])
    return [Kernel(name, *map(int, numbers)) for name, (_, *numbers) in zip(names, found, strict=True)]


def sass(source: Path) -> dict[str, str]:
    """Kernel name to its machine code."""
    tool, disassembler = triton_tool("cuobjdump"), triton_tool("nvdisasm")
    env = {**os.environ, "PATH": f"{Path(disassembler).parent}{os.pathsep}{os.environ['PATH']}"}
    text = subprocess.run([tool, "-sass", cubin(source)], capture_output=True, text=True, check=True, env=env).stdout
    names, bodies = [], []
    for part in text.split("Function : ")[1:]:
        name, body = part.split("\n", 1)
        names.append(name.strip())
        bodies.append(body)
    return dict(zip(demangle(names), bodies, strict=True))


# ---------------------------------------------------------------------------------------------------------


def test_builds_within_three_minutes_on_two_cores() -> None:
    seconds, _ = compiled()
    assert seconds <= 2 * 180


def test_every_launcher_is_compiled_for_every_geometry() -> None:
    _, kernels = compiled()
    by_body: dict[str, set[str]] = {}
    for kernel in kernels:
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


def test_no_spills_and_no_local_memory() -> None:
    _, kernels = compiled()
    hot = [kernel for kernel in kernels if "double" not in kernel.name]
    assert len(hot) > 200
    bad = [kernel for kernel in hot if kernel.stack or kernel.spill_stores or kernel.spill_loads]
    assert not bad


def test_two_blocks_of_a_cluster_share_a_multiprocessor() -> None:
    """65,536 registers over two blocks of 256 threads: one loads and stores while the other computes."""
    _, kernels = compiled()
    found = [kernel for kernel in kernels if "ClusterGeometry" in kernel.name]
    assert len(found) == 3 * (12 + 7)  # geometries, dtypes of the step and of the loss, none of them float64
    assert all(kernel.registers <= 65536 // (2 * 256) for kernel in found)


def test_the_lookahead_fills_half_of_a_multiprocessor() -> None:
    """64 registers let 1,024 threads run, each with 128 to 192 bytes on their way."""
    _, kernels = compiled()
    found = [kernel for kernel in kernels if kernel.name.startswith("lookahead")]
    assert len(found) == 2 * 4
    assert all(kernel.registers <= 64 for kernel in found)


@needs_disassembler
@pytest.mark.parametrize(
    ("file", "kernel", "loads", "stores"),
    [
        # operands x 16-byte words of a thread; stores of the good row: v, and the label row in a step
        (
            "instance_labels",
            "instance_label_step_resident_kernel<float, float, float, Geometry<32, 32, true> >",
            24,
            16,
        ),
        ("instance_labels", "instance_label_step_resident_kernel<float, float, float, Geometry<8, 32, true> >", 24, 16),
        (
            "instance_labels",
            "instance_label_step_resident_kernel<BFloat16, BFloat16, BFloat16, Geometry<32, 32, true> >",
            12,
            8,
        ),
        (
            "instance_labels",
            "instance_label_step_resident_kernel<BFloat16, float, float, Geometry<512, 24, true> >",
            3 + 6 + 6,
            3 + 6,
        ),
        (
            "instance_labels",
            "instance_label_step_streamed_kernel<float, float, float, Geometry<512, 16, false> >",
            12,
            8,
        ),
        ("instance_labels", "instance_loss_kernel<float, float, Geometry<128, 32, true> >", 16, 8),
        ("instance_labels", "instance_loss_kernel<BFloat16, BFloat16, Geometry<8, 32, true> >", 8, 4),
        ("soft_cross_entropy", "soft_cross_entropy_kernel<float, float, Geometry<32, 16, false> >", 8, 0),
        ("soft_cross_entropy", "soft_cross_entropy_backward_kernel<float, float, Geometry<32, 32, true> >", 16, 16),
        ("soft_cross_entropy_hvp", "hvp_kernel<BFloat16, BFloat16, Geometry<32, 32, true>, false>", 8, 4),
        ("class_labels", "class_update_kernel<float, Geometry<32, 32, true> >", 8, 8),
        ("row_dot", "row_dot_kernel<float, Geometry<32, 16, false> >", 8, 0),
        ("load_images", "load_images_kernel<BFloat16, Geometry<8, 16, false> >", 0, 2),
        ("load_images", "load_images_kernel<float, Geometry<8, 16, false> >", 0, 4),
        (
            "instance_labels",
            "instance_label_step_resident_kernel<float, float, float, ClusterGeometry<8, 256> >",
            24,
            16,
        ),
        (
            "instance_labels",
            "instance_label_step_resident_kernel<BFloat16, float, float, ClusterGeometry<4, 256> >",
            4 + 8 + 8,
            4 + 8,
        ),
        ("instance_labels", "instance_loss_kernel<float, float, ClusterGeometry<8, 256> >", 16, 8),
        ("lookahead", "lookahead_kernel<float, LookaheadTable<90> >", 12, 4),
        ("lookahead", "lookahead_kernel<BFloat16, LookaheadTable<740> >", 12, 4),
    ],
)
def test_16_byte_access(file: str, kernel: str, loads: int, stores: int) -> None:
    compiled()
    body = _sass_of(file)[kernel]
    assert body.count("LDG.E.128") >= loads
    assert body.count("STG.E.128") >= stores
    assert not re.search(r"\b(LDL|STL)\b", body), "local memory"


@functools.cache
def _sass_of(file: str) -> dict[str, str]:
    return sass(ROOT / "csrc" / "cuda" / f"{file}.cu")


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_all_architectures_compile(source: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    for arch in ARCHITECTURES:
        out = tmp_path / f"sm_{arch}.cubin"
        command = [find_nvcc(), *FLAGS, f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin", "-o", out, source]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"sm_{arch}: {done.stderr[:4000]}"
        assert parse_ptxas(done.stderr)
    print(f"{source.name}: {len(ARCHITECTURES)} architectures in {time.monotonic() - start:.0f} s")
