"""Where a run is and what stands there: a free place is found and made, a cut-off start is told from a run.

config.toml          resolved; `fastmeta train --config` runs it again
searching.toml       of a run that has searched: the config that does so again; config.toml is what it has chosen
metrics.jsonl        a line per epoch and stage; epoch 0 is the start
summary.json         figures of the whole run and its warnings, see :func:`summary_of`; only a finished run has it
labels.npz           per training row: index (row in the data set), given, learned, probability (of the learned
                     class), given_probability, entropy, and true where it is known, as labels are read; of learned ones
                     label_quality, how far the given label may be believed; where canaries say that labels are worse
                     than they were given, learned is given, and what was learned is withheld
labels.safetensors   the label parameters themselves (methods that learn labels), whatever they are read off
model.safetensors    weights after the last step, never the best on test
model-finetuned.safetensors   those of the copy that was fine-tuned, with finetune_steps
failed.json          of a run that ended by an error, until it goes on: what that said
checkpoint/          state of the run, for --resume; of a run on several ranks a part of it, see rank_files.py
trajectory/          with trajectory_every, how learned labels moved: about.json, rows.npy, given.npy, sums.json and
                     epoch-NNNNN.npy for each snapshot, see :mod:`fastmeta.trajectory.contents`
NAME-DIGEST.safetensors       with max_shard_mb, the content of NAME.safetensors, which is the index of these files then
figures/             PNG and SVG, made from the files above
"""

from __future__ import annotations

import contextlib
import os
import shlex
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastmeta._trust import needs_pickles
from fastmeta.data import InputError
from fastmeta.data.sources import parse
from fastmeta.distributed.launch import here, place
from fastmeta.training.config import TrainConfig
from fastmeta.training.rundir.files import make_folders, part_of, sync_directory, user_path
from fastmeta.training.rundir.rank_folders import is_rank_folder, remove_other_folders
from fastmeta.training.rundir.shards import is_shard, remove_others
from fastmeta.trajectory import FOLDER, SUMS

CONFIG, METRICS, SUMMARY = Path("config.toml"), Path("metrics.jsonl"), Path("summary.json")
SEARCHING = Path("searching.toml")
FINETUNED = "model-finetuned.safetensors"
STATE = Path("checkpoint", "state.safetensors")

#: bytes of a file name that every usual file system takes
_MOST_NAME = 255
#: names that other runs may take while this one looks for its own
_MOST_RIVALS = 1000


def command(*words: str, of: str = "train") -> str:
    """A line to type, of ``fastmeta train`` or of another command; in a process of torchrun, so that it starts all."""
    several = place() if here().size > 1 else None
    start = ["fastmeta"] if several is None or of != "train" else [*several.command, "-m", "fastmeta"]
    return " ".join([*start, of, *map(_quoted, words)])


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # as bash and zsh read bytes that cannot be shown, such as those of a name that is no UTF-8
    plain = {ord(c) for c in string.ascii_letters + string.digits + "/._- "}
    safe = (chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(word))
    return f"$'{''.join(safe)}'"


def result_files(learns_labels: bool, finetuned: bool, trajectory: bool) -> tuple[str, ...]:
    """What the method's own stage leaves when it is done; of a trajectory the file that has the digests of the rest."""
    named = {"labels.safetensors": learns_labels, FINETUNED: finetuned, f"{FOLDER}/{SUMS}": trajectory}
    return ("model.safetensors", "labels.npz", *(name for name, there in named.items() if there))


def finished_files(config: TrainConfig, done: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Of these, what a run has whose stages with these summaries are done."""
    if config.method not in done:
        return ()
    finetuned = done[config.method].get("finetuned", {"failed": ""})["failed"] is None
    return result_files(config.method_class().learns_labels, finetuned, config.trajectory_every is not None)


def resume_command(path: Path, config: TrainConfig | None = None) -> str:
    """What to type to go on with the run at `path`, which may need code or a pickle to be trusted, as is known."""
    flags = ["--trust-code"] if config is not None and config.names_code() else []
    return command("--resume", str(path), *flags, *(["--trust-pickle"] if needs_pickles() else []))


def new_directory(config: TrainConfig) -> Path:
    """Where a run of this config will be: free, or not there yet. InputError if `out` is taken."""
    if config.out is not None:
        path = user_path(config.out, "out")
        check_free(path)
        return path
    return next(path for path in _numbered(config) if not os.path.lexists(path))


def _numbered(config: TrainConfig) -> Iterator[Path]:
    """runs/DATASET-METHOD-seedN, then the same with -2, -3, …"""
    stem = parse(config.dataset).short
    source = "".join(c if c.isprintable() else "_" for c in stem)
    method = config.method.rpartition(":")[2]
    number = 1
    while True:
        end = f"-{method}-seed{config.seed}" + (f"-{number}" if number > 1 else "")
        room = max(1, _MOST_NAME - len(end))
        # cut by characters, so that none is torn
        while len(os.fsencode(source)) > room:
            source = source[:-1]
        yield Path("runs", source + end)
        number += 1


def check_free(path: Path) -> None:
    """InputError if anything stands there but an empty folder, or one with a start that was cut off."""
    if os.path.isdir(path):
        try:
            if not os.listdir(path) or only_a_beginning(path):
                return
        except OSError as error:
            raise InputError(f"cannot read the folder {path}: {error.strerror}; choose another --out") from error
    elif not os.path.lexists(path):
        return
    elif not os.path.isfile(path):
        what = "a link to nothing" if os.path.islink(path) and not os.path.exists(path) else "no folder"
        raise InputError(f"{path} is {what}; choose another --out")
    way = f", or go on with that run: {resume_command(path)}" if os.path.isfile(path / CONFIG) else ""
    raise InputError(f"{path} is not empty; choose another --out{way}")


def check_no_run(folder: Path, who: str) -> None:
    """InputError where a run lies in `folder` itself, in which runs are to have folders of their own."""
    if os.path.isfile(folder / CONFIG):
        raise InputError(f"{folder} is a run itself, and {who} a folder; choose another --out")


# The first file of a run is the unfinished config.toml, and the last step of its start gives that file its name. So
# what a start that was cut off leaves can be told from a run, and from files of the user's: nothing is lost with it.


def only_a_beginning(path: Path) -> bool:
    """Whether all that the folder `path` holds is what a start of a run leaves that was cut off."""
    found = {entry.name: entry for entry in os.scandir(path)}
    config, metrics, states = (
        found.pop(name, None) for name in (part_of(CONFIG).name, METRICS.name, STATE.parent.name)
    )
    if found or not all(entry is None or entry.is_file(follow_symlinks=False) for entry in (config, metrics)):
        return False
    if metrics is not None and metrics.stat(follow_symlinks=False).st_size:
        return False
    if states is None:
        return True
    if not states.is_dir(follow_symlinks=False):
        return False
    inside = {
        entry.name: entry.is_file(follow_symlinks=False)
        for entry in os.scandir(states)
        if not (is_rank_folder(entry.name) and entry.is_dir(follow_symlinks=False))
    }
    known = {part_of(STATE).name} if config is None else {part_of(STATE).name, STATE.name}
    return all(inside.values()) and all(name in known or is_shard(path / STATE, name) for name in inside)


def remove_beginning(path: Path, made: list[Path]) -> None:
    """Take away what a start has written into the folder `path`, and the folders that were `made` for it."""
    remove_others(path / STATE)
    remove_other_folders(path / STATE)
    for name in (CONFIG, METRICS, STATE):
        for file in (path / name, path / part_of(name)):
            with contextlib.suppress(OSError):
                os.unlink(file)
    _remove_folders([*made, path / STATE.parent])


def _remove_folders(made: list[Path]) -> None:
    for folder in reversed(made):
        with contextlib.suppress(OSError):  # something of another's is in it
            os.rmdir(folder)


def begun_directory(path: Path) -> Path:
    """`path` if a run has begun there; otherwise an InputError that says how to begin it."""
    if os.path.isfile(path / CONFIG):
        return path
    what = f"{path} is no run directory: it has no {CONFIG}"
    with contextlib.suppress(OSError):
        names = set(os.listdir(path))
        if not names:
            raise InputError(f"{what}; it is empty: begin the run as the first time")
        if only_a_beginning(path):
            part = part_of(path / CONFIG)
            way = "begin it again as the first time"
            if names > {part.name}:  # or the file may be half written
                way += f", or by {command('--config', str(part), '--out', str(path))}"
            raise InputError(f"{what}; its start was cut off before any step, and nothing is lost: {way}")
    raise InputError(what)


def make_directory(config: TrainConfig, made: list[Path] | None = None) -> Path:
    """Make :func:`new_directory`; InputError where that cannot be done. `made` takes in folders that it has made."""
    made = [] if made is None else made
    path = new_directory(config)
    try:
        if config.out is not None:
            make_folders(path, made)
            return path
        make_folders(path.parent, made)
        rivals = 0
        for path in _numbered(config):
            if os.path.lexists(path):
                continue
            try:
                path.mkdir()
            except FileExistsError:  # a run beside this one has just taken the name: take the next
                rivals += 1
                if rivals == _MOST_RIVALS:
                    raise
            else:
                made.append(path)
                sync_directory(path.parent)
                return path
        raise AssertionError("there is always one more number")
    except OSError as error:
        _remove_folders(made)
        raise InputError(f"cannot write the run directory {path}: {error.strerror}{_in_the_way(path)}") from error


def _in_the_way(path: Path) -> str:
    """What stands where a folder of `path` should be, and the way out; "" where nothing does."""
    for folder in (path, *path.parents):
        if os.path.islink(folder) and not os.path.exists(folder):
            return (
                f"; {folder} is a link to {os.readlink(folder)}, which cannot be followed: mend it, or name another out"
            )
        if os.path.lexists(folder) and not os.path.isdir(folder):
            return f"; {folder} is no folder: move it away, or name another out"
    return ""
