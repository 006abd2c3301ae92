"""What runs that differ by their seed alone come to, as files in their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmeta.data import InputError
from fastmeta.report.band_figures import write_band_figures
from fastmeta.report.folder_report import write_folder_report
from fastmeta.report.run_folder import FIGURES, Group, entries, groups, spread
from fastmeta.training.rundir import to_json, user_path, write_atomically

SEEDS = "seeds.json"


def sum_up(folder: str | Path) -> list[Path]:
    """Write FOLDER/seeds.json, FOLDER/report.html and FOLDER/figures of the runs in it; returns the first two.

    seeds.json has for each group of runs that differ by their seed alone the seeds, and by stage and figure of their
    summaries the mean, the standard deviation of a sample, null for one seed, and the values.

    Raises:
        InputError: no run there, or files that cannot be written.
    """
    folder = user_path(folder, "folder")
    found = groups(entries(folder))
    told = {"schema": "fastmeta.seeds", "schema_version": 1, "groups": [_told(group) for group in found]}
    try:
        write_atomically(folder / SEEDS, (to_json(told, indent=2) + "\n").encode())
        for number, group in enumerate(found):
            if len(group.entries) > 1:
                write_band_figures(folder / "figures" / (str(number + 1) if len(found) > 1 else ""), group)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
    return [folder / SEEDS, write_folder_report(folder)]


def _told(group: Group) -> dict[str, Any]:
    stages: dict[str, Any] = {}
    for name, summaries in group.stages().items():
        stages[name] = {}
        for key in FIGURES:
            values = [summary.get(key) for summary in summaries]
            if (found := spread(values)) is not None:
                stages[name][key] = {"mean": found[0], "sd": found[1], "values": values}
    return {
        "runs": [entry.name for entry in group.entries],
        "seeds": [summary["seed"] for summary in group.summaries],
        "stages": stages,
    }
