"""Tables and figures of runs, made from the files of a run directory; nothing here sees a tensor in flight."""

from fastmeta.report.figures import write_figures
from fastmeta.report.folder_report import folder_table, write_folder_report
from fastmeta.report.result_table import result_table
from fastmeta.report.run_report import write_report
from fastmeta.report.summing_up import sum_up
from fastmeta.report.tensorboard_log import TensorBoardLog

__all__ = [
    "TensorBoardLog",
    "folder_table",
    "result_table",
    "sum_up",
    "write_figures",
    "write_folder_report",
    "write_report",
]
