"""A run: its stages one after another, checkpoints, signals, results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from fastmeta._text import reason
from fastmeta.data import PILOT, InputError
from fastmeta.distributed import Ranks
from fastmeta.losses import TableError
from fastmeta.meta import OutOfMemory
from fastmeta.training.canaries import Canaries
from fastmeta.training.canaries import warning as worse
from fastmeta.training.device import environment
from fastmeta.training.finetune import finetune, steps_of
from fastmeta.training.health import told_worse
from fastmeta.training.listener import Listener
from fastmeta.training.model_copy import copy_of
from fastmeta.training.prepare import Prepared
from fastmeta.training.readings import Readings, read
from fastmeta.training.run_results import run_summary, write_main
from fastmeta.training.rundir import checkpoint, rank_files
from fastmeta.training.rundir.files import (
    append,
    commit,
    empty,
    new_digest,
    to_json,
    write_atomically,
    write_part,
)
from fastmeta.training.rundir.layout import (
    CONFIG,
    METRICS,
    SEARCHING,
    STATE,
    SUMMARY,
    check_free,
    finished_files,
    remove_beginning,
)
from fastmeta.training.rundir.load import Run, load_run
from fastmeta.training.rundir.places import placeless, places
from fastmeta.training.rundir.restore import (
    CHANGED_FILE,
    by_other_ranks,
    check_metrics,
    check_results,
    check_same_config,
    check_same_start,
    check_state,
    elsewhere,
    lasting,
    reading_state,
    toml_of,
)
from fastmeta.training.rundir.summary import failed_summary, stage_summary
from fastmeta.training.search import Search
from fastmeta.training.search import in_words as search_in_words
from fastmeta.training.signals import Interrupted, Stop
from fastmeta.training.stage import CHECK_EVERY, Diverged, Stage, TrainingError
from fastmeta.training.stage_names import is_trial
from fastmeta.training.writing import writing

#: seconds between two checkpoints within an epoch, at least
LEAST_WITHIN = 30.0
#: draws a finished run's figures from its directory, its summary and the train samples, where they are in memory
Draw = Callable[[Path, Mapping[str, Any], Any], Any]


@dataclass
class Session:
    prepared: Prepared
    path: Path
    listener: Listener
    stop: Stop
    draw: Draw | None = None
    stage: Stage | None = None
    finetuned: nn.Module | None = None  # copy of the model of `stage`, which is done
    readings: Readings | None = None  # of the labels of `stage`, which is done
    searched: dict[str, Any] | None = None  # what a search has found, once it has
    done: dict[str, dict[str, Any]] = field(default_factory=dict)  # summaries of finished stages
    labels: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)  # seals of the files of the method's own stage, once done
    warnings: list[str] = field(default_factory=list)
    place: str | None = None  # where the run began, if it names other places
    teachers: dict[str, Any] = field(default_factory=dict)  # seals of what the method learns from, by where it lies
    metrics_bytes: int = 0
    metrics_digest: Any = field(default_factory=new_digest)  # of so many bytes of metrics.jsonl
    saved: str = ""  # what the checkpoint on disk holds, in words
    saved_at: float = field(default_factory=time.monotonic)

    # -- beginning and going on ---------------------------------------------------------------------------

    def begin(self, made: list[Path]) -> None:
        """Write the directory's first files; InputError, and nothing left of it, where that cannot be done.

        `made` are the folders that were made for it; one of the user's stays.
        """
        (by_first := self.ranks.by_first)(lambda: check_free(self.path))  # again, now that nobody else can write there
        try:
            self.stage = self.ranks.together(lambda: self.prepared.stage(self.prepared.stages[0]))
            self.place = os.path.realpath(self.path) if places(self.prepared.recorded) else None
            # first, because it says that nothing but a start lies here
            by_first(lambda: write_part(self.path / CONFIG, toml_of(self.prepared.recorded)))
            by_first(lambda: empty(self.path / METRICS))
            self._save()
            by_first(lambda: checkpoint.check_room(self._checkpoint, self.prepared.config.max_shard_mb))
            # last, because its presence says that there is a run to go on with
            by_first(lambda: commit(self.path / CONFIG))
        except BaseException as error:
            if self.ranks.first:
                remove_beginning(self.path, made)
            if isinstance(error, OSError):
                raise InputError(f"cannot write the run directory {self.path}: {error.strerror}") from error
            if isinstance(error, UnicodeEncodeError):
                raise InputError(f"the config holds a text that is no UTF-8, such as a file's name: {error}") from error
            raise

    def restore(self) -> None:
        """Take over the checkpoint; InputError, with nothing changed on disk, where the run cannot go on."""
        tensors, values, saved_by = rank_files.load(self._checkpoint, self.ranks.host)
        check_state(self._checkpoint, values)
        values["config"].get("data", {}).setdefault("split_seed", values["config"].get("seed"))  # of an older run
        asked, self.searched = self.prepared.recorded, values.get("searched")
        if self.prepared.search is not None:
            with reading_state(self._checkpoint):
                self.prepared.search.load(values.get("trials", {}), self.prepared.data.canary_size)
                if self.searched is not None:
                    self.prepared.choose(self.searched["chosen"])
        begun, now = (placeless(v, asked) for v in (values["config"], lasting(self.prepared.recorded)))
        check_same_config(self.path, begun, now, CHANGED_FILE)
        self.place, self.teachers = values.get("place"), values.get("teachers", {})
        if (text := check_same_start(self.path, values, self.prepared)) is not None:
            self._warn(text)
        for text in elsewhere(values["environment"], environment(self.prepared.device)):
            self._warn(text)
        self.done, self.labels, self.files = values["done"], values["labels"], values["files"]
        if values["canaries"] is not None:
            with reading_state(self._checkpoint):
                self.prepared.canaries = Canaries.of_state(self.prepared.splits, values["canaries"])
        self.warnings = values["warnings"] + self.warnings
        self.metrics_bytes = values["metrics_bytes"]
        self.metrics_digest = check_metrics(self.path / METRICS, self.metrics_bytes, values["metrics_digest"])
        finished = finished_files(self.prepared.config, self.done)
        check_results(self.path, {name: self.files.get(name) for name in finished})
        if values["stage"] is not None:
            with reading_state(self._checkpoint):
                self.stage = self.prepared.stage(values["stage"]["name"])
                self.stage.load(tensors, values["stage"], self.path, saved_by)
        if saved_by != self.ranks.size:
            self._warn(by_other_ranks(saved_by, self.ranks.size))

        def cut() -> None:  # lines written after the checkpoint belong to steps that will be taken again
            os.truncate(self.path / METRICS, self.metrics_bytes)
            rank_files.remove_leftovers(self._checkpoint)
            if asked.labels.searches and self.searched is not None:  # stopped before the next line was
                write_atomically(self.path / CONFIG, toml_of(self.prepared.config))

        with self._writing():
            self.ranks.by_first(cut)
        self.saved = self._position()

    @property
    def ranks(self) -> Ranks:
        return self.prepared.ranks

    @property
    def _checkpoint(self) -> Path:
        return self.path / STATE

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.path, self.prepared.config)

    def _save(self) -> None:
        tensors, of_stage = ({}, None) if (stage := self.stage) is None else stage.save()
        said = any("will not be bitwise" in text for text in (*self.warnings, *self.prepared.notes))
        if stage is not None and stage.parts.unsaved and not said:
            places = ", ".join(stage.parts.unsaved[:3])
            self._warn(f"{stage.name}: a resumed run will not be bitwise: forward moves what cannot be saved: {places}")
        values = {
            "config": lasting(self.prepared.recorded),
            "fingerprint": self.prepared.fingerprint,
            "initial": self.prepared.initial_digest,
            "environment": environment(self.prepared.device),
            "done": self.done,
            "labels": self.labels,
            "canaries": None if self.prepared.canaries is None else self.prepared.canaries.state(),
            "files": self.files,
            "warnings": self.warnings,
            "metrics_bytes": self.metrics_bytes,
            "metrics_digest": self.metrics_digest.hexdigest(),
            "stage": of_stage,
        }
        if self.searched is not None:
            values["searched"] = self.searched
        elif self.prepared.search is not None:
            values["trials"] = self.prepared.search.results
        values |= {k: v for k, v in (("place", self.place), ("teachers", self.teachers)) if v}
        how: dict[str, Any] = {
            "max_shard_mb": self.prepared.config.max_shard_mb,
            "by_row": stage.by_row(of_stage) if stage and of_stage else (),
        }
        rank_files.save(self._checkpoint, tensors, values, self.ranks.host, **how)
        if stage is not None:
            stage.coming.saved()
        self.saved_at, self.saved = time.monotonic(), self._position()

    def _position(self) -> str:
        return "between two stages" if self.stage is None else f"of {self.stage.name} at step {self.stage.step}"

    # -- running ------------------------------------------------------------------------------------------

    def run(self) -> Run:
        prepared, config = self.prepared, self.prepared.config
        self.listener.begin(self.path, config, prepared.splits, str(prepared.device))
        for note in prepared.notes:
            self._warn(note)
        for text in prepared.about:
            self.listener.note(text)
        for name in prepared.stages:
            if name in self.done:
                continue
            if name == config.method and prepared.search is not None:
                self._choose(prepared.search)
            if self.stage is None or self.stage.name != name:
                self.stage = prepared.stage(name)
            if name == config.method:
                self.teachers = self.stage.context.teachers
            try:
                try:
                    with closing(self.stage):
                        self._run_stage(self.stage)
                except Diverged as error:
                    if name in (PILOT, config.method):
                        raise
                    # what it is compared with is worth having without it
                    self.done[name] = failed_summary(self.stage, str(error))
                    kind = "trial has failed" if is_trial(name) else "baseline has no figures"
                    self._warn(f"{error}; this {kind}, the run goes on")
                with self._writing():
                    if name == PILOT:
                        prepared.draw_canaries(self.stage)
                    elif is_trial(name):
                        self._keep_trial(self.stage)
                    elif name == config.method:
                        self._keep_main(self.stage)
                    done, self.stage, self.finetuned, self.readings = self.stage, None, None, None
                    self._save()
                    done.coming.finished()
            except (TrainingError, OutOfMemory, TableError) as error:
                raise TrainingError(f"{error}; the last good state, {self.saved}, is in {self._checkpoint}") from None
        with self._writing():
            self.ranks.by_first(self._write_results)
        run = load_run(self.path, model=copy_of(prepared.initial).cpu())
        self.listener.end(run.path, run.summary)
        return run

    def _run_stage(self, stage: Stage) -> None:
        self.listener.stage(stage)
        began = time.perf_counter() - stage.seconds
        while stage.step < stage.total:
            if self.stop.asked():
                stage.seconds = time.perf_counter() - began
                self._interrupt(stage, f"at step {stage.step} of {stage.total}")
            if stage.step == 0:  # behind the stop, so that a checkpoint at step 0 never has this line already
                self._write_epoch(stage, stage.start())
            before = stage.step
            stage.take_step()
            while stage.method.warnings:
                self._warn_of(stage, stage.method.warnings.pop(0))
            if stage.step // CHECK_EVERY > before // CHECK_EVERY:
                stage.check()
            self.listener.step(stage)
            if not stage.ends_epoch:
                self._save_if_due(stage, max(self.prepared.config.checkpoint_seconds, LEAST_WITHIN))
            else:
                record, warnings = stage.end_epoch()
                stage.seconds = time.perf_counter() - began
                record |= {"seconds": stage.seconds}
                self._write_epoch(stage, record)
                for text in warnings:
                    self._warn_of(stage, text)
                self.listener.epoch(stage, record)
                self._save_if_due(stage, self.prepared.config.checkpoint_seconds)
        summary = stage_summary(stage)
        self.readings = None
        if steps_of(self.prepared.config, stage.name):
            summary["finetuned"] = self._finetune(stage)
        if stage.name == self.prepared.config.method and self.readings is None:
            self.readings = read(stage, None, self.stop.asked)
            if self.readings is None:
                self._interrupt(stage, "while labels were read")
        self.done[stage.name] = summary

    def _save_if_due(self, stage: Stage, seconds: float) -> None:
        # what has begun to diverge must not replace the last good state
        if self.stop.agree(time.monotonic() - self.saved_at >= seconds) and stage.sound():
            with self._writing():
                self._save()

    def _finetune(self, stage: Stage) -> dict[str, Any]:
        """Behind a checkpoint: where the run is stopped now, it goes on from there, and these steps are taken again."""
        if self.saved != self._position() and stage.sound():
            with self._writing():
                self._save()
        found = finetune(stage, self.stop.asked)
        if found is None:
            self._interrupt(stage, "while a copy was fine-tuned")
        self.finetuned, self.readings = found.model, found.readings
        if (text := found.warning(self.prepared.config.finetune_lr)) is not None:
            self._warn(f"{stage.name}: {text}")
        if found.model is not None:
            self.listener.note(f"{stage.name}: {found}")
        return found.figures

    def _interrupt(self, stage: Stage, at: str) -> NoReturn:
        """Save where a signal has come, and say so."""
        assert self.stop.signum is not None
        saved = "saved"
        if stage.finite():
            with self._writing():
                self._save()
        else:
            saved = f"its weights are no longer finite; the last good state, {self.saved}, is"
        where = f"in {stage.name} {at}; {saved}"
        raise Interrupted(self.path, self.stop.signum, where, self.prepared.config)

    def _write_epoch(self, stage: Stage, record: Mapping[str, Any]) -> None:
        line, recorder, epoch = (to_json(record) + "\n").encode(), stage.recorder, stage.epoch
        snapshot = None if recorder is None else recorder.look(epoch)

        def write() -> None:
            if recorder is not None:
                recorder.write(self.path, epoch, snapshot)
            append(self.path / METRICS, line)

        with self._writing():
            self.ranks.by_first(write)
        self.metrics_bytes += len(line)
        self.metrics_digest.update(line)

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self.listener.warning(text)

    def _warn_of(self, stage: Stage, text: str) -> None:
        if not is_trial(stage.name):  # whose labels may do what they like
            self._warn(f"{stage.name}: {text}")

    # -- results ------------------------------------------------------------------------------------------

    def _keep_trial(self, stage: Stage) -> None:
        search = self.prepared.search
        assert search is not None
        search.keep(stage, self.done[stage.name]["failed"])
        self.listener.note(search.told(stage))

    def _choose(self, search: Search) -> None:
        """Behind the last trial: the run is made with what its canaries choose."""
        assert self.prepared.canaries is not None
        self.searched = search.choose(self.prepared.canaries)
        self.listener.note(search_in_words(self.searched))
        self.prepared.choose(self.searched["chosen"])
        with self._writing():
            write_atomically(self.path / SEARCHING, toml_of(search.asked))
            self._save()  # before config.toml: a run that is stopped here writes it when it goes on
            write_atomically(self.path / CONFIG, toml_of(self.prepared.config))

    def _keep_main(self, stage: Stage) -> None:
        assert self.readings is not None
        self.labels, self.files = write_main(self.path, stage, self.prepared, self.readings, self.finetuned, self.done)
        fate = self.labels["canaries"]
        by_canaries = None if fate is None else worse(fate, self.labels["labels_withheld"])
        for text in filter(None, (by_canaries, told_worse(self.labels, self.prepared.config))):
            self._warn(text)

    def _write_results(self) -> None:
        try:
            if self.draw is not None:
                self.draw(self.path, self._summary(), getattr(self.prepared.splits.train, "x", None))
        except OSError:
            raise
        except Exception as error:  # matplotlib's, or of files that somebody else wrote: pictures are not worth a run
            self._warn(f"the figures are not drawn: {reason(error)}")
        # last, because its presence says that the run is finished
        write_atomically(self.path / SUMMARY, (to_json(self._summary(), indent=2) + "\n").encode())

    def _summary(self) -> dict[str, Any]:
        found = self.prepared, self.done, self.labels, self.searched
        return run_summary(*found, warnings=self.warnings, files=self.files)
