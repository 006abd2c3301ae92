"""Everything that touches a run directory: where it is, its files, what is read from them and what may be believed."""

from fastmeta.training.rundir.files import write_atomically
from fastmeta.training.rundir.load import Run, load_run

__all__ = ["Run", "load_run", "write_atomically"]
