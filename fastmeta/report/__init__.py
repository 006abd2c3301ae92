"""Tables and figures of runs, made from the files of a run directory; nothing here sees a tensor in flight."""

from fastmeta.report.figures import write_figures
from fastmeta.report.folder_report import folder_table, write_folder_report
from fastmeta.report.result_table import result_table
from fastmeta.report.run_report import write_report

__all__ = ["folder_table", "result_table", "write_figures", "write_folder_report", "write_report"]
