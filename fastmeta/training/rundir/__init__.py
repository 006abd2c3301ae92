"""Everything that touches a run directory: where it is, its files, what is read from them and what may be believed."""

from fastmeta.training.rundir.files import to_json, user_path, write_atomically
from fastmeta.training.rundir.handed_out import RunLabels, run_labels
from fastmeta.training.rundir.label_files import npz_bytes
from fastmeta.training.rundir.load import Run, load_run

__all__ = ["Run", "RunLabels", "load_run", "npz_bytes", "run_labels", "to_json", "user_path", "write_atomically"]
