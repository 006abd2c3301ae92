"""Builds the CUDA kernels for emulated blocks (cuda_runtime.h in this folder), or the CPU kernels on threads of the
driver, and runs launchers on torch tensors."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import shutil
import struct
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "emulation"

# -O0: the blocks are small, and compiling takes longer than running. The kernels' own loops inline all the same.
# FASTMETA_SPREAD: up to 6 rows take a warp in place of 8 threads, one row a block in place of a warp.
FLAGS = [
    "-std=c++20",
    "-DFASTMETA_SPREAD=192",
    "-O0",
    "-g1",
    "-pthread",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-attributes",
    f"-I{HERE}",
]
VARIANTS = {
    "plain": [],
    # alignment: a 16-byte access of the device that is off its boundary
    "address": ["-fsanitize=address,alignment", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread", "-Wno-tsan"],  # the warning: it does not follow fences, which is what we want
    "planted_race": ["-fsanitize=thread", "-Wno-tsan", "-DFASTMETA_PLANT_RACE"],
    "planted": ["-fsanitize=address,alignment", "-fno-sanitize-recover=all"],
    "cpu_address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "cpu_thread": ["-fsanitize=thread"],
}
# One machine code: those that are picked at load time are picked before a sanitizer has started. Signed overflow is not
# wrapped, as Python's own flags would have it, but reported.
CPU_FLAGS = ["-DFASTMETA_CPU", "-DFASTMETA_CLONES=", "-DFASTMETA_GRAIN=64"]
CPU_FLAGS += ["-O1", "-fno-trapping-math", "-fno-math-errno", "-Wno-psabi"]

# ---------------------------------------------------------------------------------------------------------
# Build
# ---------------------------------------------------------------------------------------------------------


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def build(variant: str) -> Path:
    """The driver with these sanitizers, built once per content of the sources."""
    cpu = variant.startswith("cpu")
    kernels = sorted((CSRC / "cpu").glob("*.cpp") if cpu else (CSRC / "cuda").glob("*.cu"))
    if variant == "planted_race":
        kernels = [CSRC / "cuda" / name for name in ("row_dot.cu", "instance_loss.cu")]
    headers = [*CSRC.glob("*.h"), *(CSRC / "cuda").glob("*.cuh"), *(CSRC / "cpu").glob("*.h"), *HERE.glob("*.h")]
    units = [HERE / "driver.cpp", *kernels]
    if variant == "planted":
        units = [HERE / "planted.cpp"]
    flags = FLAGS + (CPU_FLAGS if cpu else []) + VARIANTS[variant]
    common = hashlib.sha256(repr((compiler(), flags)).encode())
    for path in sorted(headers):
        common.update(path.read_bytes())

    BUILD.mkdir(parents=True, exist_ok=True)
    objects = []
    for unit in units:
        key = common.copy()
        key.update(unit.read_bytes())
        target = BUILD / f"{unit.stem}-{key.hexdigest()[:16]}.o"
        if not target.exists():
            scratch = target.with_suffix(f".{os.getpid()}")
            _run([compiler(), *flags, "-x", "c++", "-c", str(unit), "-o", str(scratch)])
            scratch.replace(target)
        objects.append(str(target))
    driver = BUILD / f"driver-{hashlib.sha256(repr(objects).encode()).hexdigest()[:16]}"
    if not driver.exists():
        scratch = driver.with_suffix(f".{os.getpid()}")
        _run([compiler(), *flags, *objects, "-o", str(scratch)])
        scratch.replace(driver)
    return driver


def _run(command: list) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


# ---------------------------------------------------------------------------------------------------------
# The structs of csrc/kernels.h
# ---------------------------------------------------------------------------------------------------------

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def _struct(name: str, fields: str, types: dict) -> type:
    pairs = [item.split(":") for item in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [(field, types[kind]) for field, kind in pairs]})


_basic = {"i64": ctypes.c_int64, "bool": ctypes.c_bool, "int": ctypes.c_int, "f64": ctypes.c_double}
_basic |= {"ptr": ctypes.c_void_p, "u64": ctypes.c_uint64}
Matrix = _struct("Matrix", "data:ptr row_stride:i64 dtype:int", _basic)
Vector = _struct("Vector", "data:ptr stride:i64", _basic)
Scalar = _struct("Scalar", "device:ptr dtype:int host:f64", _basic)
Counter = _struct("Counter", "device:ptr host:i64", _basic)
Rounding = _struct("Rounding", "step:counter seed:u64 stochastic:bool", {**_basic, "counter": Counter})
LookaheadTensor = _struct("LookaheadTensor", "param:ptr grad:ptr buffer:ptr out:ptr numel:i64", _basic)
_all = {**_basic, "mat": Matrix, "vec": Vector, "scalar": Scalar, "counter": Counter, "rounding": Rounding}

_results = "loss:ptr v:mat entropy:ptr"
ARGS = {
    name: _struct(name, fields, _all)
    for name, fields in {
        "soft_cross_entropy": "n:i64 C:i64 logits:mat probs:mat loss:ptr lse:ptr",
        "soft_cross_entropy_backward": "n:i64 C:i64 logits:mat probs:mat lse:vec grad:vec "
        "grad_logits:mat grad_probs:mat",
        "soft_cross_entropy_hvp": "n:i64 C:i64 logits:mat probs:mat v:mat out:mat",
        "soft_cross_entropy_label_grad": "n:i64 C:i64 logits:mat probs:mat v:mat out:mat",
        "instance_loss": f"n:i64 C:i64 N:i64 logits:mat label_logits:mat index:vec weight:vec {_results}",
        "instance_label_step": "n:i64 C:i64 N:i64 functional:bool table:mat rows_in:mat rows_out:mat index:vec "
        f"unique:bool logits:mat u:mat weight:vec scale:scalar label_lr:scalar rounding:rounding "
        f"{_results} alignment:ptr",
        "class_loss": f"n:i64 C:i64 logits:mat alpha:vec targets:vec weight:vec {_results}",
        "class_label_step": "n:i64 C:i64 alpha_in:vec alpha_out:ptr targets:vec logits:mat u:mat weight:vec "
        f"scale:scalar label_lr:scalar {_results} alignment:ptr workspace:ptr",
        "row_dot": "n:i64 C:i64 a:mat b:mat out:ptr",
        "load_images": "n:i64 C:i64 N:i64 height:i64 width:i64 images:ptr index:vec center:ptr scale:ptr padding:i64 "
        "reflect:bool flip:bool seed:i64 step:counter out:ptr dtype:int",
        "lookahead_update": "tensors:ptr count:i64 dtype:int lr:scalar gain:f64 carry:f64 weight_decay:f64",
    }.items()
}

# ---------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------


class Call:
    """One launch: fields of the args struct as tensors and numbers. `run` leaves each tensor's result in `out`.

    A list of {"param", "grad", "buffer", "out"} stands for an array of LookaheadTensor; results are param0, grad0, ...
    """

    def __init__(self, launcher: str, **fields: Any) -> None:
        self.launcher = launcher
        self.fields = fields
        self.out: dict[str, Tensor] = {}
        self.args = ARGS[launcher]()
        self.tensors: dict[str, Tensor] = {}
        self.pointers: list[tuple[str | None, int, str]] = []  # standing in a tensor or in the struct, offset, to
        types = dict(self.args._fields_)
        assert set(fields) <= set(types), set(fields) - set(types)
        for name, value in fields.items():
            if value is None:
                continue
            if isinstance(value, Tensor):
                self._set_tensor(name, types[name], value)
            elif types[name] is Rounding:
                seed, step = value
                self.args.rounding = Rounding(Counter(None, -77 if isinstance(step, Tensor) else step), seed, True)
                if isinstance(step, Tensor):
                    self._set_tensor(name, Rounding, step)
            elif isinstance(value, list):
                self._set_array(name, value)
            elif types[name] in (Scalar, Counter):
                getattr(self.args, name).host = value
            else:
                setattr(self.args, name, value)

    def _set_tensor(self, name: str, kind: type, value: Tensor) -> None:
        offset = getattr(type(self.args), name).offset
        self.tensors[name] = value
        self.pointers.append((None, offset, name))  # the pointer is the first member of every struct
        if kind is Matrix:
            assert value.shape[1] < 2 or value.stride(1) == 1
            setattr(self.args, name, Matrix(None, value.stride(0), DTYPES[value.dtype]))
        elif kind is Vector:
            setattr(self.args, name, Vector(None, value.stride(0)))
        elif kind is Scalar:
            setattr(self.args, name, Scalar(None, DTYPES[value.dtype], math.nan))
        elif kind is Counter:
            setattr(self.args, name, Counter(None, -1))

    def _set_array(self, name: str, operands: list[dict[str, Tensor | None]]) -> None:
        entries = [LookaheadTensor(numel=tensors["param"].numel()) for tensors in operands]
        array = bytearray(b"".join(map(bytes, entries)))
        self._set_tensor(name, ctypes.c_void_p, torch.frombuffer(array, dtype=torch.uint8))
        for k, tensors in enumerate(operands):
            for role, t in tensors.items():
                if t is not None:
                    self.tensors[f"{role}{k}"] = t
                    at = k * ctypes.sizeof(LookaheadTensor) + getattr(LookaheadTensor, role).offset
                    self.pointers.append((name, at, f"{role}{k}"))

    def storages(self) -> dict[int, Tensor]:
        """Whole storages as bytes, by address: gaps between rows and memory before the first one come along."""
        found = {}
        for t in self.tensors.values():
            raw = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
            found[t.untyped_storage().data_ptr()] = raw
        return found

    def encode(self) -> bytes:
        storages = self.storages()
        places = list(storages)
        parts = [self.launcher.encode().ljust(32, b"\0")]
        parts.append(struct.pack("<3q", ctypes.sizeof(self.args), len(storages), len(self.pointers)))
        parts.append(bytes(self.args))
        for holder, offset, name in self.pointers:
            t = self.tensors[name]
            place = places.index(t.untyped_storage().data_ptr())
            inside = -1 if holder is None else places.index(self.tensors[holder].untyped_storage().data_ptr())
            parts.append(struct.pack("<4q", inside, offset, place, t.storage_offset() * t.element_size()))
        for raw in storages.values():
            parts += [struct.pack("<q", raw.numel()), raw.numpy().tobytes()]
        return b"".join(parts)

    def decode(self, data: bytes, at: int) -> int:
        fresh = {}
        for place, raw in self.storages().items():
            piece = bytearray(data[at : at + raw.numel()])
            at += raw.numel()
            fresh[place] = torch.frombuffer(piece, dtype=torch.uint8) if piece else raw
        self.out = {}
        for name, t in self.tensors.items():
            storage = fresh[t.untyped_storage().data_ptr()].untyped_storage()
            like = torch.empty(0, dtype=t.dtype)
            self.out[name] = like.set_(storage, t.storage_offset(), t.shape, t.stride())
        return at


def run(variant: str, calls: list[Call], capability: int = 9) -> subprocess.CompletedProcess:
    """Runs the calls in one process and fills their `out`. A sanitizer's report is in stderr, with a return code.

    Below `capability` 9 the emulated device has no clusters.
    """
    env = {
        "ASAN_OPTIONS": "detect_leaks=1",
        **os.environ,
        "EMULATED_CAPABILITY": str(capability),
        "TSAN_OPTIONS": "halt_on_error=1 history_size=2",
    }
    with TemporaryDirectory() as folder:
        given, made = Path(folder, "in"), Path(folder, "out")
        given.write_bytes(b"".join(call.encode() for call in calls))
        command = [str(build(variant)), str(given), str(made)]
        if "thread" in "".join(VARIANTS[variant]) and shutil.which("setarch"):
            command = ["setarch", "-R", *command]  # older runtimes refuse a kernel's wide address randomisation
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        if done.returncode == 0:
            data, at = made.read_bytes(), 0
            for call in calls:
                at = call.decode(data, at)
            assert at == len(data)
    return done
