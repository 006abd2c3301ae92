"""Everything that touches a run directory: where it is, its files, what is read from them and what may be believed."""

from fastmeta.training.rundir.failed import failure
from fastmeta.training.rundir.files import (
    parse_json,
    part_of,
    read,
    read_schema,
    read_tail,
    to_json,
    user_path,
    write_atomically,
)
from fastmeta.training.rundir.handed_out import RunLabels, run_labels
from fastmeta.training.rundir.label_files import npz_bytes
from fastmeta.training.rundir.layout import CONFIG, METRICS, SEARCHING, SUMMARY, check_no_run, command
from fastmeta.training.rundir.load import Run, load_run
from fastmeta.training.rundir.lock import is_held, only_process
from fastmeta.training.rundir.restore import check_same_config, lasting
from fastmeta.training.rundir.summary import read_summary

__all__ = [
    "CONFIG",
    "METRICS",
    "SEARCHING",
    "SUMMARY",
    "Run",
    "RunLabels",
    "check_no_run",
    "check_same_config",
    "command",
    "failure",
    "is_held",
    "lasting",
    "load_run",
    "npz_bytes",
    "only_process",
    "parse_json",
    "part_of",
    "read",
    "read_schema",
    "read_summary",
    "read_tail",
    "run_labels",
    "to_json",
    "user_path",
    "write_atomically",
]
