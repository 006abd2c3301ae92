"""Builds the native libraries: fastmeta/_C (schemas, CPU kernels) and, where a toolkit fits, fastmeta/_C_cuda.

FASTMETA_CUDA=0|1        leave the CUDA half out | fail when it cannot be built (default: build it if it can be)
FASTMETA_CUDA_ARCHS      "9.0+PTX", "8.0;9.0", "all"
                         (default: TORCH_CUDA_ARCH_LIST, else the visible GPUs' own, else 9.0+PTX)
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path
from typing import NoReturn

from setuptools import setup

ALL_ARCHS = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def stop(text: str) -> NoReturn:
    sys.exit(f"fastmeta: {text}")


def wanted_cuda() -> bool | None:
    """FASTMETA_CUDA: must it be built (1), left out (0), or either (unset)."""
    value = os.environ.get("FASTMETA_CUDA", "")
    if value not in ("", "0", "1"):
        stop(f"FASTMETA_CUDA must be 0 (CPU half only), 1 (both or fail) or unset (both if possible), got {value!r}")
    return None if value == "" else value == "1"


def run(command: list[str], **options: str) -> tuple[str, str]:
    """What a tool printed, and why it could not be run or failed, empty where it did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, **options)
    except OSError as error:
        return "", f"{command[0]} cannot be run ({error.strerror or error})"
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} did not end within a minute"
    printed = done.stdout + done.stderr
    return printed, f"{command[0]} failed with exit code {done.returncode}" if done.returncode else ""


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
        printed, _ = run([nvcc, "--dryrun", "-c", source], cwd=folder)
    top = re.search(r"^#\$ TOP=(.+)$", printed, re.MULTILINE)
    if top:
        return os.path.realpath(top.group(1).strip())
    return os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))


if __name__ == "__main__":
    wanted_cuda()  # before torch, which takes seconds, is imported
CUDA_HOME = find_cuda_home()
if CUDA_HOME:
    os.environ["CUDA_HOME"] = CUDA_HOME  # torch.utils.cpp_extension reads it while it is imported

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    stop(f"building needs torch and pybind11 ({error}); install them, or build without --no-build-isolation")


def toolkit_version() -> tuple[str, str]:
    """The toolkit's version, or why there is none."""
    if not CUDA_HOME:
        return "", "no CUDA toolkit found (nvcc on PATH or CUDA_HOME)"
    nvcc = os.path.join(CUDA_HOME, "bin", "nvcc")
    if not os.path.exists(nvcc):
        return "", f"no CUDA toolkit found: {nvcc} does not exist; set CUDA_HOME to a toolkit's root, or unset it"
    printed, problem = run([nvcc, "--version"])
    found = re.search(r"release (\d+\.\d+)", printed)
    if found and not problem:
        return found.group(1), ""
    return "", f"{problem or f'{nvcc} --version names no release'}; repair the toolkit, or set CUDA_HOME to another"


def why_no_cuda() -> str:
    """Empty where the CUDA half can be built, else the reason."""
    if wanted_cuda() is False:
        return "FASTMETA_CUDA=0"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    version, problem = toolkit_version()
    if problem:
        return problem
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        return (
            f"torch was built with CUDA {torch.version.cuda}, the toolkit is {version}; their major versions must agree"
        )
    return ""


def cuda_archs() -> str:
    if wanted := os.environ.get("FASTMETA_CUDA_ARCHS", "").strip():
        if wanted == "all":
            return ALL_ARCHS
        archs = re.split(r"[;, ]+", wanted.strip(";, "))
        if bad := [arch for arch in archs if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch)]:
            stop(f"FASTMETA_CUDA_ARCHS must be all or architectures as 8.0;9.0+PTX, got {', '.join(map(repr, bad))}")
        return ";".join(archs)
    if wanted := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return wanted.replace(",", ";").replace(" ", ";")
    if torch.cuda.is_available():
        return ";".join(
            sorted({"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())})
        )
    return "9.0+PTX"


def check_compiler() -> None:
    given = shlex.split(os.environ.get("CXX", "c++")) or ["c++"]
    if shutil.which(given[0]) is None:
        stop(f"no C++ compiler: {given[0]!r} is not on PATH; install g++ 12 or newer, or set CXX to one")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.cpp").write_text('#include <stdexcept>\nvoid f() { throw std::runtime_error(""); }\n')
        _, failure = run([*given, "-shared", "-fPIC", "probe.cpp", "-o", "probe.so"], cwd=folder)
        if failure:
            stop(f"no C++ compiler: {failure}; install g++ 12 or newer, or set CXX to one")
        if sys.platform == "linux" and b"libstdc++.so" not in Path(folder, "probe.so").read_bytes():
            # an error would then end the process: torch's own copy does not know the exceptions of another one
            stop(
                f"the C++ compiler {shlex.join(given)!r} puts a copy of libstdc++ into every library, so that torch "
                "could not catch their exceptions; set CXX to a compiler that links to the shared one"
            )


def check_writable(folder: str) -> None:
    """Setuptools writes build/ and fastmeta.egg-info beside the sources, whatever is asked of it."""
    if not os.access(folder, os.W_OK):
        stop(f"the source folder {folder} is read-only, and a build writes into it; copy it to build there")


def write_build_info(folder: str, **facts: str) -> None:
    """A header of string macros for csrc/module.cpp, left untouched when nothing changed: a repeat compiles nothing."""
    text = "".join(f"#define FASTMETA_BUILD_{name.upper()} {json.dumps(value)}\n" for name, value in facts.items())
    path = Path(folder, "build_info.h")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    except OSError as error:
        stop(f"cannot write {path} ({error.strerror}); make the source folder writable, or copy it to build there")


GENERATED = os.path.join("build", "generated")

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
HEADERS = [*glob("csrc/*.h"), *glob("csrc/ops/*.h"), *glob("csrc/cpu/*.h")]


class Build(BuildExtension):
    def run(self) -> None:
        check_compiler()
        write_build_info(
            GENERATED,
            torch=str(torch.__version__),
            cuda="" if absent else toolkit_version()[0],
            archs=archs.replace(";", ","),
            no_cuda=absent,
        )
        super().run()


def extensions(absent: str) -> list:
    found = [
        CppExtension(
            "fastmeta._C",
            ["csrc/ops/schemas.cpp", "csrc/module.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
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
        found.append(
            CUDAExtension(
                "fastmeta._C_cuda",
                ["csrc/ops/cuda.cpp", *sorted(glob("csrc/cuda/*.cu"))],
                define_macros=[*STABLE_ABI, ("USE_CUDA", None)],
                depends=HEADERS + glob("csrc/cuda/*.cuh"),
                extra_compile_args={"cxx": HOST_FLAGS, "nvcc": ["-std=c++20", "-O3", "--threads", "1"]},
                extra_link_args=["-Wl,--as-needed", "-s"],
            )
        )
    return found


if __name__ == "__main__":
    check_writable(os.path.dirname(os.path.abspath(__file__)))
    absent = why_no_cuda()
    if absent and wanted_cuda():
        stop(f"FASTMETA_CUDA=1 but the CUDA half cannot be built: {absent}")
    archs = "" if absent else cuda_archs()
    if absent:
        print(f"fastmeta: building the CPU half only: {absent}", file=sys.stderr)
    else:
        os.environ["TORCH_CUDA_ARCH_LIST"] = archs
    setup(ext_modules=extensions(absent), cmdclass={"build_ext": Build})
