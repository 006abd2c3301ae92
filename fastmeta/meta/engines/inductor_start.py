"""What inductor does anew in every process, of which a step needs nothing: left out where the outcome is the same.

benchmarks/compile_time.py measures what it comes to: its `warm` process finds the step on disk. What is replaced here
is there for the whole process, so one thread at a time may be inside.
"""

from __future__ import annotations

import functools
import inspect
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    usual = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, usual)


@contextmanager
def lean_keys() -> Iterator[None]:
    """Inside, inductor makes the keys of its caches without what does not come into them.

    It hashes each part of a key once more for the log, where nobody logs (torch 2.14 asks first). And it hashes all of
    triton with its libraries for the name of the device, which it drops where there is no CUDA.
    """
    from torch._inductor import codecache
    from torch._inductor.runtime import triton_compat

    log = logging.getLogger("torch._functorch._aot_autograd.autograd_cache")
    with ExitStack() as stack:
        if not log.isEnabledFor(logging.DEBUG):
            stack.enter_context(_replaced(codecache.FxGraphCachePickler, "debug_lines", lambda self, details: []))
        if not torch.cuda.is_available():
            owner = codecache if hasattr(codecache, "triton_key") else triton_compat  # of torch 2.14, of 2.11
            stack.enter_context(_replaced(owner, "triton_key", lambda: ""))
        yield


@contextmanager
def headers_for_compilers() -> Iterator[None]:
    """Inside, inductor looks for its compiled headers only where it will compile.

    Otherwise it has the compiler's preprocessor read both headers in every process, half a second, to know whether
    those that it keeps are still right, also where the library that they would serve is there already.
    """
    from torch._inductor import codecache

    headers: Any = codecache
    usual = headers._precompile_header

    def precompile_header(*args: Any, **kwargs: Any) -> str:
        frame = inspect.currentframe()
        caller = None if frame is None else frame.f_back
        main = None if caller is None else caller.f_locals.get("main_path")  # of the code that is, or will be, compiled
        there = isinstance(main, str) and Path(main).with_suffix(".so").exists()
        return "" if there else usual(*args, **kwargs)  # "": none

    with _replaced(headers, "_precompile_header", precompile_header):
        yield


@functools.cache
def find_vector_units() -> None:
    """Let inductor look which vector instructions this machine has, as it does once in each process, but sooner.

    In torch 2.11 it has each of up to ten trial libraries loaded by a Python that imports all of torch for it: 13 s on
    a machine with AMX, in every process. Later ones keep the answer beside the library, as is done here, and without
    Python's half of torch.
    """
    from torch._inductor import cpu_vec_isa

    units: Any = cpu_vec_isa.VecISA
    usual = getattr(units, "_avx_py_load", "")
    if sys.platform != "linux" or usual.split() != _TORCH_2_11.split() or hasattr(units, "_probe_load"):
        return
    with _replaced(units, "_avx_py_load", "__lib_path__"), _replaced(cpu_vec_isa, "subprocess", _Trials()):
        cpu_vec_isa.valid_vec_isa_list()


_TORCH_2_11 = 'import torch from ctypes import cdll cdll.LoadLibrary("__lib_path__")'

#: loads a library that inductor compiled as a trial
_LOAD = """
import sys
from ctypes import cdll
try:
    cdll.LoadLibrary(sys.argv[1])
    cdll.LoadLibrary(sys.argv[2])
except OSError:
    import torch
    cdll.LoadLibrary(sys.argv[2])
"""


class _Trials:
    """Stands for the module subprocess where inductor runs its trials: one that went well is not run again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def check_call(self, command: list[str], **kwargs: Any) -> int:
        python, _, library = command
        went_well = Path(library + ".load_ok")
        if not went_well.exists():
            torch_itself = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
            subprocess.check_call([python, "-c", _LOAD, str(torch_itself), library], **kwargs)
            went_well.touch()
        return 0


@functools.cache
def import_inductor() -> None:
    """Import inductor's compiler, whose templates of kernels are compiled where one is used: on a CPU none is."""
    from torch._inductor.codegen import common

    usual = common.KernelTemplate._template_from_string
    with _replaced(common.KernelTemplate, "_template_from_string", staticmethod(partial(_Template, usual))):
        import torch._inductor.compile_fx  # noqa: F401


class _Template:
    """A template of jinja2, compiled when it is asked for anything."""

    def __init__(self, compiled: Callable[[str], Any], source: str) -> None:
        self._compiled = functools.cache(partial(compiled, source))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy, which has none yet
            raise AttributeError(name)
        return getattr(self._compiled(), name)
