"""The compiler behind ``compile="full"``: inductor, set up for graphs of thousands of nodes.

A step of ResNet-20 is 1,900 nodes, of which 235 calls of 90 different loops come. On a CPU inductor would write a C++
file of each loop and a Python function that calls them: most of a minute went into reading headers ninety times. As two
files, the loops and a C++ function that calls them, it is compiled in a quarter of that, and the next process loads one
library. Measured in benchmarks/results/compile-resnet20-cpu.json.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fastmeta._text import reason
from fastmeta.functional.precision import without_autocast
from fastmeta.functional.turns import TURN
from fastmeta.meta.engines.compile_notes import LOG, noted

#: of inductor, for graphs on a CPU
_CPU = {
    "cpp_wrapper": True,
    # the function at -O1: it only calls, and would take as long as all loops
    "cpp_wrapper_build_separate": True,
}


def through_inductor(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """`graph` compiled for these shapes, and cached on disk for other processes.

    (``torch._inductor.compile`` sets up no shape environment, without which inductor's cache of whole graphs steps
    aside: an MLP's step then compiled for as long again in the next process.)
    """
    kinds = {t.device.type for t in inputs}
    with TURN, torch.no_grad(), without_autocast(), noted():
        if kinds == {"cpu"}:
            _find_vector_units()
            try:
                with _headers_for_compilers():
                    return _compiled(graph, inputs, _CPU)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # an operation that has no form in C++
                LOG.info("compiling the step as Python that calls C++: %s", reason(error, 200))
        return _compiled(graph, inputs, {})


def _compiled(graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, bool]) -> Any:
    # not by the argument `options`, which torch 2.11 hands to a function that knows none of them
    with torch._inductor.config.patch(options):
        return torch._inductor.standalone_compile(graph, list(inputs), dynamic_shapes="from_example_inputs")


@contextmanager
def _headers_for_compilers() -> Iterator[None]:
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

    headers._precompile_header = precompile_header
    try:
        yield
    finally:
        headers._precompile_header = usual


#: loads a library that inductor compiled as a trial, once and not in every process, and without Python's half of torch
_LOAD = """
import os
from ctypes import cdll
path = "__lib_path__"
if not os.path.exists(path + ".load_ok"):
    try:
        cdll.LoadLibrary({torch!r})
        cdll.LoadLibrary(path)
    except OSError:
        import torch
        cdll.LoadLibrary(path)
    open(path + ".load_ok", "w").close()
"""


@functools.cache
def _find_vector_units() -> None:
    """Let inductor look which vector instructions this machine has, as it does once in each process, but sooner.

    In torch 2.11 it has each of up to ten trial libraries loaded by a Python that imports all of torch for it: 13 s on
    a machine with AMX, in every process. Later ones keep the answer beside the library, as is done here.
    """
    from torch._inductor import cpu_vec_isa

    units: Any = cpu_vec_isa.VecISA
    usual = getattr(units, "_avx_py_load", "")
    if sys.platform != "linux" or usual.split() != _TORCH_2_11.split():
        return
    units._avx_py_load = _LOAD.format(torch=str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    try:
        cpu_vec_isa.valid_vec_isa_list()
    finally:
        units._avx_py_load = usual


_TORCH_2_11 = 'import torch from ctypes import cdll cdll.LoadLibrary("__lib_path__")'
