"""The compiler behind ``compile="full"``: inductor, set up for graphs of thousands of nodes.

A step of ResNet-20 is 1,900 nodes, of which 235 calls of 90 different loops come. On a CPU inductor would write a C++
file of each loop and a Python function that calls them: most of a minute went into reading headers ninety times. As two
files, the loops and a C++ function that calls them, it is compiled in a quarter of that, and the next process loads one
library. Measured in benchmarks/results/compile-resnet20-cpu.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastmeta._text import reason
from fastmeta.functional.precision import without_autocast
from fastmeta.functional.turns import TURN
from fastmeta.meta.engines.compile_notes import LOG, noted
from fastmeta.meta.engines.inductor_start import find_vector_units, headers_for_compilers, import_inductor, lean_keys

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
    with TURN:
        import_inductor()
        with torch.no_grad(), without_autocast(), noted(), lean_keys():
            if kinds == {"cpu"}:
                find_vector_units()
                try:
                    with headers_for_compilers():
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
