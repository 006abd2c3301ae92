"""What goes on while a step is compiled, for the logger ``fastmeta.compile``.

A library does not print. Who wants to see it asks Python's logging for INFO, as the commands of fastmeta do::

    logging.basicConfig(level=logging.INFO)

Nothing is told of what takes less than :data:`AFTER` seconds, as it does where the step is found on disk. Beyond that
there is a line when this is known and one at the end, by ``fastmeta.compile``, and in between, by
``fastmeta.compile.progress``, a line every :data:`EVERY` seconds.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AFTER, EVERY = 4.0, 10.0

LOG = logging.getLogger("fastmeta.compile")
_PROGRESS = LOG.getChild("progress")
_inside = threading.local()

#: modules of torch -> what goes on while one of their functions runs; of several, the first in this list
_PHASES = {
    "torch._inductor.cpp_builder": "C++ compiler",
    "torch._inductor.cpu_vec_isa": "C++ compiler",
    "torch._inductor.async_compile": "compilers of kernels",
    "torch._inductor.scheduler": "fusing loops",
    "torch._inductor.graph": "turning operations into loops",
    "torch._inductor.compile_fx": "preparing operations",
    "torch._functorch": "preparing operations",
    "torch.fx.experimental.proxy_tensor": "tracing",
}


@contextmanager
def noted() -> Iterator[None]:
    """Inside, a step is compiled by this thread. Within another one of the same thread it does nothing."""
    if getattr(_inside, "now", False):
        yield
        return
    start, ended, told = time.monotonic(), threading.Event(), threading.Event()
    compiles = threading.get_ident()

    def tell() -> None:
        if ended.wait(AFTER):
            return
        told.set()
        LOG.info("compiling the step; the next process finds it on disk")
        while not ended.wait(EVERY):
            frame = sys._current_frames().get(compiles)
            _PROGRESS.info("compiling the step, %.0f s: %s", time.monotonic() - start, phase(frame))

    teller = threading.Thread(target=tell, name="fastmeta-compile", daemon=True)
    _inside.now = True
    teller.start()
    how = "stopped compiling the step after"
    try:
        yield
        how = "compiled the step in"
    finally:
        _inside.now = False
        ended.set()
        teller.join()
        if told.is_set():
            LOG.info("%s %.0f s", how, time.monotonic() - start)


def phase(frame: FrameType | None) -> str:
    """What the thread that stands at `frame` is at, by the modules of torch on its stack.

    Of a thread that writes code also how far it is, from the two variables of inductor's loop over all that is to be
    written. Where another torch calls them otherwise, that is left out.
    """
    best, found = len(_PHASES), "compiling"
    while frame is not None:
        module = frame.f_globals.get("__name__") or ""
        if frame.f_code.co_name == "_codegen" and module == "torch._inductor.scheduler" and best > 0:
            nodes, node = frame.f_locals.get("nodes"), frame.f_locals.get("node")
            if isinstance(nodes, list):
                at = next((k for k, one in enumerate(nodes) if one is node), None)
                return "writing code" if at is None else f"writing code, {at + 1} of {len(nodes)} kernels and calls"
        for rank, (name, what) in enumerate(_PHASES.items()):
            if rank < best and (module == name or module.startswith(f"{name}.")):
                best, found = rank, what
        frame = frame.f_back
    return found
