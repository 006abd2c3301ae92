"""What must hold before a run goes on: its files are all there, whole, and those of this config, model and data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fastmeta.data import InputError
from fastmeta.training.config import CUSTOM, TrainConfig
from fastmeta.training.rundir.checkpoint import check_shards, header
from fastmeta.training.rundir.files import digest_of, is_sealed, new_digest, parse_json, part_of, read
from fastmeta.training.rundir.layout import SEARCHING, STATE, SUMMARY, result_files
from fastmeta.training.rundir.places import places
from fastmeta.training.rundir.schema import anything, each, maybe, record, table, text, whole
from fastmeta.training.rundir.summary import LABELS_FORM, SEAL_FORM, SEARCH_FORM, STAGE_FORM, TRIAL_FORM
from fastmeta.trajectory import FOLDER

if TYPE_CHECKING:
    from fastmeta.training.prepare import Data, Prepared

_WAY = "bring it back, or start a new run"


def check_same_kind(path: Path, config: TrainConfig, model: nn.Module | None, data: Data | None) -> None:
    """A resumed run needs the caller's own module and arrays again where it began with them, and only there."""
    own_data = config.dataset.startswith(CUSTOM)
    for own, given, what in (
        ((config.model or "").startswith(CUSTOM), model is not None, "model"),
        (own_data, data is not None, "data"),
    ):
        if own and not given:
            raise InputError(f"{path} was begun with {what}= of the caller's own: pass it again to fastmeta.train")
        if given and not own:
            raise InputError(f"{path} was begun without {what}=: leave it out")


CHANGED_FILE = (
    "{path}/config.toml was changed since the run began: {key} is {now!r}, was {begun!r}; "
    "change it back, or begin a new run with it: --config"
)
OTHER_CONFIG = (
    "the run in {path} was begun with another config: {key} was {begun!r}, is {now!r} now; "
    "go on with what it was, or choose another --out"
)


def check_same_config(
    path: Path, begun: Mapping[str, Any], now: Mapping[str, Any], message: str, prefix: str = ""
) -> None:
    for key in sorted(begun.keys() | now.keys()):
        before, after = begun.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            check_same_config(path, before, after, message, f"{key}.")
        elif before != after:
            raise InputError(message.format(path=path, key=prefix + key, begun=before, now=after))


def check_same_start(path: Path, values: Mapping[str, Any], prepared: Prepared) -> str | None:
    """InputError where the run began with other data, or with other weights that a later stage would start from.

    Weights that nothing starts from any more are a warning.
    """
    if values["fingerprint"] != prepared.fingerprint:
        raise InputError(
            f"the data are not those that {path} began with (other images, labels or order); "
            "bring them back, or start a new run"
        )
    if values["initial"] == prepared.initial_digest:
        return None
    begun = {*values["done"], *([] if values["stage"] is None else [values["stage"]["name"]])}
    to_come = [name for name in prepared.stages if name not in begun]
    said = f"model= has other initial weights than the one that {path} began with"
    if to_come:
        raise InputError(
            f"{said}, and {', '.join(to_come)} would start from them; give the same one, such as made behind "
            "the same torch.manual_seed"
        )
    return f"{said}; the run's own go on"


def check_same_files(path: Path, begun: TrainConfig, prepared: Prepared) -> None:
    """InputError where a finished run of config `begun` is asked for with files elsewhere that hold something else."""
    was, now = places(begun), places(prepared.recorded)
    if was == now:
        return
    with suppress(OSError, ValueError):  # without its state nobody knows what they held
        values = header(path / STATE)[1]
        if values["fingerprint"] == prepared.fingerprint:
            before, after = ({k: v for k, v in of.items() if k.startswith("method.")} for of in (was, now))
            if before == after:
                return
            seals = prepared.stage(prepared.config.method).context.teachers.values()
            if list(values.get("teachers", {}).values()) == list(seals):
                return
    check_same_config(path, was, now, OTHER_CONFIG)


def toml_of(config: TrainConfig) -> bytes:
    """config.toml, which does not name its folder."""
    return replace(config, out=None).to_toml().encode()


def lasting(config: TrainConfig) -> dict[str, Any]:
    """What a resumed run must not change.

    Where and with how many threads it runs may change, with a warning, and so may what is handed out at its end, and
    how large its files are.
    """
    return replace(config, out=None, threads=None, device="auto", force=False, max_shard_mb=None).to_mapping()


# What a checkpoint must hold before anything is done with it: it may be anybody's. What is a stage's own is the
# stage's to judge.
_STATE_FORM = record(
    {
        "config": table(anything),
        "fingerprint": text,
        "initial": maybe(text),
        "environment": record({"device": text, "threads": whole(1), "torch": text}),
        "done": table(STAGE_FORM),
        "labels": table(anything),  # of LABELS_FORM once the method's own stage is done
        "canaries": maybe(table(anything)),
        "warnings": each(text),
        "metrics_bytes": whole(),
        "metrics_digest": text,
        "files": table(SEAL_FORM),
        "stage": maybe(record({"name": text})),
    },
    {"trials": table(TRIAL_FORM), "searched": SEARCH_FORM, "place": text, "teachers": table(anything)},
)


def check_state(path: Path, values: Mapping[str, Any]) -> None:
    """InputError unless the checkpoint at `path` has the values that every one has."""
    with reading_state(path):
        _STATE_FORM(values, "")
        if values["files"]:
            LABELS_FORM(values["labels"], "labels")


@contextmanager
def reading_state(path: Path) -> Iterator[None]:
    """Errors of taking over a checkpoint as an InputError: its digest is right, but it may be made by hand."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path} is no checkpoint of this run ({reason[0]}); begin the run anew") from error


def elsewhere(begun: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """What to say of a run that goes on in another environment."""
    for key, word in (("threads", "CPU threads"), ("device", "device"), ("torch", "torch")):
        if begun[key] != here[key]:
            yield (
                f"resumed with {word} {here[key]}, begun with {begun[key]}: "
                "the results will not be bitwise those of an unbroken run"
            )


def by_other_ranks(begun: int, now: int) -> str:
    """What to say of a run that goes on with as many ranks."""
    return (
        f"resumed on {now} rank(s), begun on {begun}: labels and weights are the same, and from here on rows come in "
        "another order"
    )


def check_metrics(path: Path, size: int, digest: str) -> Any:
    """Digest object of the first `size` bytes of metrics.jsonl; InputError unless they are what the run has written.

    What stands behind them is of steps that will be taken again.
    """
    if os.path.islink(path):
        raise InputError(f"{path} is a link, and the run would write through it; put the file in its place")
    if not os.path.isfile(path) or os.path.getsize(path) < size:
        raise InputError(f"{path} has lost lines that the run has written; {_WAY}")
    running = new_digest()
    if read(path, lambda p: digest_of(p, size, running.update)) != digest:
        raise InputError(f"{path} is damaged in {_bad_line(path, size)}; {_WAY}")
    return running


def _bad_line(path: Path, size: int) -> str:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            size -= len(line)
            if size < 0:
                break
            try:
                parse_json(line)
            except ValueError as error:
                return f"line {number} ({error})"
    return "a figure: its content and its digest differ"


def check_results(path: Path, finished: Mapping[str, Any]) -> None:
    """InputError unless the `finished` files are as they were sealed, and nothing is in the way of those to come.

    Or the run would end only when their turn comes, behind hours of training.
    """
    for name, seal in finished.items():
        if not os.path.isfile(path / name):
            raise InputError(f"{path / name} is gone, which the run had written; {_WAY}")
        if not read(path / name, partial(is_sealed, seal=seal)):
            raise InputError(f"{path / name} has changed since the run wrote it; {_WAY}")
        if name.endswith(STATE.suffix):
            read(path / name, check_shards)
    to_come: tuple[str | Path, ...] = (*result_files(True, True, True), SUMMARY, SEARCHING, STATE)
    for written in to_come:
        for file in (path / written, part_of(path / written)):
            if _is_folder(file):
                raise InputError(f"{file} is a folder, and the run will write a file there; move it away")
    for folder in (path / STATE.parent, path / "figures", path / FOLDER):
        if os.path.lexists(folder) and not _is_folder(folder):
            raise InputError(f"{folder} is no folder of the run's own; put one in its place")


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
