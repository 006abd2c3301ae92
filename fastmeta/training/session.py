"""A run and its directory: stages one after another, checkpoints, signals, results."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastmeta.data import InputError
from fastmeta.meta.memory import OutOfMemory
from fastmeta.methods import METHODS
from fastmeta.training import checkpoint
from fastmeta.training.config import TrainConfig
from fastmeta.training.device import arithmetic
from fastmeta.training.directory import check_free, make_directory, only_process
from fastmeta.training.listener import Listener
from fastmeta.training.prepared import Data, Prepared, prepare
from fastmeta.training.presets import preset_threads
from fastmeta.training.result import (
    CUSTOM,
    Run,
    failed_summary,
    load_run,
    resume_command,
    stage_summary,
    summary_of,
    to_json,
    write_labels,
)
from fastmeta.training.signals import Stop, stop_signals
from fastmeta.training.stage import CHECK_EVERY, Diverged, Stage, TrainingError


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run: the first one at a step boundary, after its state was saved; a second one at once."""

    def __init__(self, path: Path, signum: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} {where} in {path}")
        self.path, self.signum = path, signum


def train(
    config: TrainConfig | None = None,
    *,
    model: nn.Module | None = None,
    data: Data | None = None,
    resume: str | Path | None = None,
    listener: Listener | None = None,
) -> Run:
    """Train with learned labels (or fixed ones), the config's baselines beside it, and write a run directory.

    Args:
        config: defaults to ``TrainConfig()``: the bundled digits with 40% label noise. Left out with `resume`.
        model: a module of your own in place of ``config.model``; each stage trains a copy of it.
        data: a :class:`fastmeta.data.Dataset` or a mapping of arrays in place of ``config.dataset``.
        resume: a run directory to go on with, bitwise where it stopped; `model` and `data` as the first time.
        listener: is told of progress; the default says nothing but the warnings.

    Returns:
        Run with `summary`, `labels`, `model`, `path`.

    Raises:
        InputError: something given is wrong, or the run directory cannot be made, is damaged, or is in use by another
            process; nothing was written.
        Interrupted: SIGINT, SIGTERM or SIGHUP; the state was saved at a step boundary. A second SIGINT does not wait
            for one; what was saved before stays.
        TrainingError: ten steps in a row of the method's own stage were not finite, rows were skipped, or the disk is
            full; the message names the checkpoint, which holds the last state that was saved behind a finite step. A
            baseline that diverges ends alone: a warning, and nulls with the reason in its part of the summary.
    """
    listener = listener or Listener()
    if config is not None and not isinstance(config, TrainConfig):
        raise InputError(f"config must be a TrainConfig, got {type(config).__name__}")
    if resume is not None:
        if config is not None:
            raise InputError("resume goes on with the run's own config; give resume or config, not both")
        path = Path(resume).expanduser()
        if not (path / "config.toml").is_file():
            raise InputError(f"{path} is no run directory: it has no config.toml")
        if (path / "summary.json").is_file():
            run = load_run(path, model=model)
            listener.note(f"{path} is finished already")
            return run
        config = TrainConfig.read(path / "config.toml")
    config = config or TrainConfig()
    before = torch.get_num_threads()
    torch.set_num_threads(preset_threads(config) or before)
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices), arithmetic(config):
            if resume is not None:
                _check_same_kind(path, config, model, data)
            prepared = prepare(config, model=model, data=data)
            if resume is None:
                path = make_directory(prepared.config)
            with only_process(path), stop_signals() as stop:
                session = _Session(prepared, path, listener, stop)
                if resume is None:
                    session.begin()
                else:
                    session.restore()
                try:
                    return session.run()
                except KeyboardInterrupt as interrupt:
                    if isinstance(interrupt, Interrupted):
                        raise
                    where = f"at once; the last saved state, {session.saved}, is"
                    raise Interrupted(path, signal.SIGINT, where) from None
    finally:
        torch.set_num_threads(before)


def _check_same_kind(path: Path, config: TrainConfig, model: nn.Module | None, data: Data | None) -> None:
    """A resumed run needs the caller's own module and arrays again where it began with them, and only there."""
    own_data = config.dataset.startswith("npz:") and not Path(config.dataset.removeprefix("npz:")).is_absolute()
    for own, given, what in (
        ((config.model or "").startswith(CUSTOM), model is not None, "model"),
        (own_data, data is not None, "data"),
    ):
        if own and not given:
            raise InputError(f"{path} was begun with {what}= of the caller's own: pass it again to fastmeta.train")
        if given and not own:
            raise InputError(f"{path} was begun without {what}=: leave it out")


def _check_same_config(path: Path, begun: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> None:
    for key in begun.keys() | now.keys():
        before, after = begun.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            _check_same_config(path, before, after, f"{key}.")
        elif before != after:
            raise InputError(
                f"{path}/config.toml was changed since the run began: {prefix}{key} is {after!r}, was {before!r}; "
                "change it back, or begin a new run with it: --config"
            )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk ends the run at `path` in one line; what was saved before stays, and so does --resume."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write {error.filename or path}: {error.strerror}; mend that and go on with: {resume_command(path)}"
        ) from error


@dataclass
class _Session:
    prepared: Prepared
    path: Path
    listener: Listener
    stop: Stop
    stage: Stage | None = None
    done: dict[str, dict[str, Any]] = field(default_factory=dict)  # summaries of finished stages
    labels: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    metrics_bytes: int = 0
    saved: str = ""  # what the checkpoint on disk holds, in words
    saved_at: float = field(default_factory=time.monotonic)

    # -- beginning and going on ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Write the directory's first files; InputError, and nothing left of it, where that cannot be done."""
        check_free(self.path)  # again, now that nobody else can write there
        self.stage = self.prepared.stage(self.prepared.stages[0])
        config = replace(self.prepared.config, out=None)
        try:
            checkpoint.write_atomically(self.path / "metrics.jsonl", b"")
            self._save()
            # last, because its presence says that there is a run to go on with
            checkpoint.write_atomically(self.path / "config.toml", config.to_toml().encode())
        except BaseException as error:
            shutil.rmtree(self.path, ignore_errors=True)
            if isinstance(error, OSError):
                raise InputError(f"cannot write the run directory {self.path}: {error.strerror}") from error
            raise

    def restore(self) -> None:
        """Take over the checkpoint; InputError, with nothing changed on disk, where the run cannot go on."""
        tensors, values = checkpoint.load(self._checkpoint)
        _check_same_config(self.path, values["config"], self._lasting_config())
        if values["fingerprint"] != self.prepared.fingerprint:
            raise InputError(
                f"the data are not those that {self.path} began with (other images, labels or order); "
                "bring them back, or start a new run"
            )
        here = self._environment()
        for key, word in (("threads", "CPU threads"), ("device", "device"), ("torch", "torch")):
            if values["environment"][key] != here[key]:
                self._warn(
                    f"resumed with {word} {here[key]}, begun with {values['environment'][key]}: "
                    "the results will not be bitwise those of an unbroken run"
                )
        self.done, self.labels, self.warnings = values["done"], values["labels"], values["warnings"] + self.warnings
        if values["stage"] is not None:
            self.stage = self.prepared.stage(values["stage"]["name"])
            self.stage.load(tensors, values["stage"])
        self.metrics_bytes = values["metrics_bytes"]
        self._check_written()
        with _writing(self.path):  # lines written after the checkpoint belong to steps that will be taken again
            os.truncate(self.path / "metrics.jsonl", self.metrics_bytes)
        self.saved = self._position()

    def _check_written(self) -> None:
        """InputError unless the files that the checkpoint counts on are there and whole."""
        way = "bring it back, or start a new run"
        metrics = self.path / "metrics.jsonl"
        if not metrics.is_file() or metrics.stat().st_size < self.metrics_bytes:
            raise InputError(f"{metrics} has lost lines that the run has written; {way}")
        for number, line in enumerate(metrics.read_bytes()[: self.metrics_bytes].splitlines(), 1):
            try:
                json.loads(line)
            except ValueError as error:
                raise InputError(f"{metrics} is damaged in line {number} ({error}); {way}") from error
        method = self.prepared.config.method
        if method in self.done:
            learned = ("labels.safetensors",) if METHODS[method].needs_meta else ()
            for name in ("model.safetensors", "labels.npz", *learned):
                if not (self.path / name).is_file():
                    raise InputError(f"{self.path / name} is gone, which the run had written; {way}")

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint" / "state.safetensors"

    def _environment(self) -> dict[str, Any]:
        device = self.prepared.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        return {"device": name, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}

    def _lasting_config(self) -> dict[str, Any]:
        """What a resumed run must not change; where and with how many threads it runs may change, with a warning."""
        return replace(self.prepared.config, out=None, threads=None, device="auto").to_mapping()

    def _save(self) -> None:
        stage = self.stage
        values = {
            "config": self._lasting_config(),
            "fingerprint": self.prepared.fingerprint,
            "environment": self._environment(),
            "done": self.done,
            "labels": self.labels,
            "warnings": self.warnings,
            "metrics_bytes": self.metrics_bytes,
            "stage": None if stage is None else stage.values(),
        }
        checkpoint.save(self._checkpoint, {} if stage is None else stage.tensors(), values)
        self.saved_at, self.saved = time.monotonic(), self._position()

    def _position(self) -> str:
        stage = self.stage
        return "between two stages" if stage is None else f"of {stage.name} at step {stage.step}"

    # -- running ------------------------------------------------------------------------------------------

    def run(self) -> Run:
        prepared, config = self.prepared, self.prepared.config
        self.listener.begin(self.path, config, prepared.splits, str(prepared.device))
        for note in prepared.notes:
            self._warn(note)
        for name in prepared.stages:
            if name in self.done:
                continue
            if self.stage is None or self.stage.name != name:
                self.stage = prepared.stage(name)
            try:
                try:
                    self._run_stage(self.stage)
                except Diverged as error:
                    if name == config.method:
                        raise
                    # what it is compared with is worth having without it
                    self.done[name] = failed_summary(self.stage, str(error))
                    self._warn(f"{error}; this baseline has no figures, the run goes on")
                with _writing(self.path):
                    if name == config.method:
                        self._keep_main(self.stage)
                    self.stage = None
                    self._save()
            except (TrainingError, OutOfMemory) as error:
                raise TrainingError(f"{error}; the last good state, {self.saved}, is in {self._checkpoint}") from None
        with _writing(self.path):
            self._write_results()
        run = load_run(self.path, model=copy.deepcopy(prepared.initial).cpu())
        self.listener.end(run.path, run.summary)
        return run

    def _run_stage(self, stage: Stage) -> None:
        self.listener.stage(stage)
        began = time.perf_counter() - stage.seconds
        while stage.step < stage.total:
            if self.stop.signum is not None:
                stage.seconds = time.perf_counter() - began
                saved = "saved"
                if stage.finite():
                    with _writing(self.path):
                        self._save()
                else:
                    saved = f"its weights are no longer finite; the last good state, {self.saved}, is"
                where = f"in {stage.name} at step {stage.step} of {stage.total}; {saved}"
                raise Interrupted(self.path, self.stop.signum, where)
            if stage.step == 0:  # behind the stop, so that a checkpoint at step 0 never has this line already
                self._write_line({"run": stage.name, "epoch": 0, "step": 0, **stage.figures()})
            stage.take_step()
            if stage.step % CHECK_EVERY == 0:
                stage.check()
            self.listener.step(stage)
            if stage.step % stage.steps_per_epoch == 0:
                record, warnings = stage.end_epoch()
                stage.seconds = time.perf_counter() - began
                self._write_line(record | {"seconds": stage.seconds})
                for text in warnings:
                    self._warn(f"{stage.name}: {text}")
                self.listener.epoch(stage, record)
                due = time.monotonic() - self.saved_at >= self.prepared.config.checkpoint_seconds
                if due and stage.sound():  # what has begun to diverge must not replace the last good state
                    with _writing(self.path):
                        self._save()
        self.done[stage.name] = stage_summary(stage)

    def _write_line(self, record: Mapping[str, Any]) -> None:
        line = (to_json(record) + "\n").encode()
        with _writing(self.path), open(self.path / "metrics.jsonl", "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.metrics_bytes += len(line)

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self.listener.warning(text)

    # -- results ------------------------------------------------------------------------------------------

    def _keep_main(self, stage: Stage) -> None:
        values = {"model": self.prepared.config.model, "step": stage.step}
        state = dict(stage.model.state_dict())
        checkpoint.write_atomically(self.path / "model.safetensors", checkpoint.pack(state, values))
        self.labels = write_labels(self.path, stage, self.prepared.splits)

    def _write_results(self) -> None:
        import fastmeta
        from fastmeta.report import write_figures

        config = self.prepared.config
        baselines = {name: self.done[name] for name in config.baseline_names()}
        summary = summary_of(
            config,
            self.prepared.splits,
            self.done[config.method],
            self.labels,
            baselines,
            warnings=self.warnings,
            fastmeta=fastmeta.__version__,
            precision=config.precision,
            compile=config.compile,
            approx=config.approx,
            **self._environment(),
        )
        text = to_json(summary, indent=2) + "\n"
        write_figures(self.path, summary)
        # last, because its presence says that the run is finished
        checkpoint.write_atomically(self.path / "summary.json", text.encode())
