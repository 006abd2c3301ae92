"""How the graphs of a step are held: traced whole, through inductor, captured in a CUDA graph."""

from fastmeta.meta.engines.captured import record_cuda
from fastmeta.meta.engines.graph import trace
from fastmeta.meta.engines.inductor import through_inductor
from fastmeta.meta.engines.traced import CompileMode

__all__ = ["CompileMode", "record_cuda", "through_inductor", "trace"]
