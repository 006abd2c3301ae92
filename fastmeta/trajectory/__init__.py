"""How learned labels move over a run: a folder of snapshots, written while a run trains, averaged over folds, read."""

from fastmeta.trajectory.average import average, steps_differ
from fastmeta.trajectory.contents import (
    ABOUT,
    FOLDER,
    GIVEN,
    ROWS,
    SUMS,
    About,
    check_classes,
    digest,
    npy_bytes,
    snapshot_name,
    sums_bytes,
)
from fastmeta.trajectory.recorded import Trajectory

__all__ = [
    "ABOUT",
    "FOLDER",
    "GIVEN",
    "ROWS",
    "SUMS",
    "About",
    "Trajectory",
    "average",
    "check_classes",
    "digest",
    "npy_bytes",
    "snapshot_name",
    "steps_differ",
    "sums_bytes",
]
