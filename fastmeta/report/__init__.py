"""Tables and figures of runs, made from the files of a run directory; nothing here sees a tensor in flight."""

from fastmeta.report.figures import write_figures
from fastmeta.report.result_table import result_table

__all__ = ["result_table", "write_figures"]
