"""Builds the native libraries: fastmeta/_C (schemas, CPU kernels) and, where a toolkit fits, fastmeta/_C_cuda.

FASTMETA_CUDA=0|1        leave the CUDA half out | fail when it cannot be built (default: build it if it can be)
FASTMETA_CUDA_ARCHS      "9.0+PTX", "8.0;9.0", "all"
                         (default: TORCH_CUDA_ARCH_LIST, else the visible GPUs' own, else 9.0+PTX)
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

from setuptools import setup

ALL_ARCHS = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def find_cuda_home() -> str | None:
    """The toolkit's root: $CUDA_HOME, else where the `nvcc` on PATH says it lives (it may be a wrapper script)."""
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return home
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return "/usr/local/cuda" if os.path.exists("/usr/local/cuda/bin/nvcc") else None
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "empty.cu")
        Path(source).touch()
        dry = subprocess.run([nvcc, "--dryrun", "-c", source], capture_output=True, text=True, cwd=folder)
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr + dry.stdout, re.MULTILINE)
    if top:
        return os.path.realpath(top.group(1).strip())
    return os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))


CUDA_HOME = find_cuda_home()
if CUDA_HOME:
    os.environ["CUDA_HOME"] = CUDA_HOME  # torch.utils.cpp_extension reads it while it is imported

import pybind11  # noqa: E402
import torch  # noqa: E402
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


def toolkit_version() -> str | None:
    nvcc = os.path.join(CUDA_HOME or "", "bin", "nvcc")
    if not os.path.exists(nvcc):
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else None


def why_no_cuda() -> str:
    """Empty where the CUDA half can be built, else the reason."""
    if os.environ.get("FASTMETA_CUDA") == "0":
        return "FASTMETA_CUDA=0"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    version = toolkit_version()
    if version is None:
        return "no CUDA toolkit found (nvcc on PATH or CUDA_HOME)"
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        return (
            f"torch was built with CUDA {torch.version.cuda}, the toolkit is {version}; their major versions must agree"
        )
    return ""


def cuda_archs() -> str:
    wanted = os.environ.get("FASTMETA_CUDA_ARCHS") or os.environ.get("TORCH_CUDA_ARCH_LIST")
    if wanted:
        return ALL_ARCHS if wanted == "all" else wanted.replace(",", ";").replace(" ", ";")
    if torch.cuda.is_available():
        return ";".join(
            sorted({"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())})
        )
    return "9.0+PTX"


absent = why_no_cuda()
if absent:
    if os.environ.get("FASTMETA_CUDA") == "1":
        sys.exit(f"fastmeta: FASTMETA_CUDA=1 but the CUDA half cannot be built: {absent}")
    print(f"fastmeta: building the CPU half only: {absent}", file=sys.stderr)
archs = "" if absent else cuda_archs()
if not absent:
    os.environ["TORCH_CUDA_ARCH_LIST"] = archs


def write_build_info(folder: str, **facts: str) -> None:
    """A header of string macros for csrc/module.cpp, left untouched when nothing changed: a repeat compiles nothing."""
    text = "".join(f"#define FASTMETA_BUILD_{name.upper()} {json.dumps(value)}\n" for name, value in facts.items())
    path = Path(folder, "build_info.h")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


GENERATED = os.path.join("build", "generated")
write_build_info(
    GENERATED,
    torch=str(torch.__version__),
    cuda="" if absent else toolkit_version() or "",
    archs=archs.replace(";", ","),
    no_cuda=absent,
)

# -fno-trapping-math lets comparisons become masks; NaN and infinity keep their meaning (no -ffast-math).
HOST_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-psabi",
]
STABLE_ABI = [("TORCH_TARGET_VERSION", "0x020b000000000000")]  # 2.11
HEADERS = glob("csrc/*.h") + glob("csrc/cpu/*.h")

extensions = [
    CppExtension(
        "fastmeta._C",
        ["csrc/ops.cpp", "csrc/module.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
        define_macros=STABLE_ABI,
        include_dirs=[
            os.path.abspath(GENERATED),
            pybind11.get_include(),
        ],  # torch's own copy of pybind11 refuses this use
        depends=HEADERS,
        extra_compile_args=HOST_FLAGS,
        extra_link_args=["-Wl,--as-needed", "-s"],
    )
]
if not absent:
    extensions.append(
        CUDAExtension(
            "fastmeta._C_cuda",
            ["csrc/ops_cuda.cpp", *sorted(glob("csrc/cuda/*.cu"))],
            define_macros=[*STABLE_ABI, ("USE_CUDA", None)],
            depends=HEADERS + glob("csrc/cuda/*.cuh"),
            extra_compile_args={"cxx": HOST_FLAGS, "nvcc": ["-std=c++20", "-O3", "--threads", "1"]},
            extra_link_args=["-Wl,--as-needed", "-s"],
        )
    )

setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtension})
