"""``train``: a config becomes a run directory, or a run that was stopped goes on."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from fastmeta._text import reason
from fastmeta._trust import trusting_pickles
from fastmeta.data import InputError
from fastmeta.distributed import Ranks
from fastmeta.distributed.launch import TIMEOUT, Gone, LaunchError, joined, lost
from fastmeta.distributed.launch import ends as others_ends
from fastmeta.meta import OutOfMemory
from fastmeta.training.config import TrainConfig
from fastmeta.training.listener import Listener, Silent
from fastmeta.training.model_copy import copy_of
from fastmeta.training.prepare import Data, prepare
from fastmeta.training.process import whole_process
from fastmeta.training.run import Draw, Session
from fastmeta.training.rundir.failed import forget_failure, note_failure
from fastmeta.training.rundir.files import user_path
from fastmeta.training.rundir.layout import CONFIG, SEARCHING, SUMMARY, begun_directory, make_directory, resume_command
from fastmeta.training.rundir.load import Run, load_run
from fastmeta.training.rundir.lock import only_process
from fastmeta.training.rundir.places import found_again, placeless
from fastmeta.training.rundir.restore import (
    OTHER_CONFIG,
    check_same_config,
    check_same_files,
    check_same_kind,
    lasting,
)
from fastmeta.training.signals import Interrupted, stop_signals
from fastmeta.training.stage import TrainingError

#: seconds in which a rank that fails says why
_GRACE = 3.0


def train(
    config: TrainConfig | None = None,
    *,
    model: nn.Module | None = None,
    data: Data | None = None,
    resume: str | Path | None = None,
    auto_resume: bool = False,
    trust_code: bool = False,
    trust_pickle: bool = False,
    listener: Listener | None = None,
    draw: Draw | None = None,
    rank_timeout: float = TIMEOUT,
) -> Run:
    """Train with learned labels (or fixed ones), the config's baselines beside it, and write a run directory.

    Args:
        config: defaults to ``TrainConfig()``: the bundled digits with 80% label noise. Left out with `resume`.
        model: a module of your own in place of ``config.model``; each stage trains a copy of it.
        data: a :class:`fastmeta.data.Dataset` or a mapping of arrays in place of ``config.dataset``.
        resume: a run directory to go on with, bitwise where it stopped; `model` and `data` as the first time.
        auto_resume: begin the run in ``config.out``, or go on with the same run where one has begun there, or load it
            where it is finished: the same call goes on however often it is stopped.
        trust_code: import a model ``package.module:factory`` that a file names: the run's or the config's. One that
            is named in Python needs no trust.
        trust_pickle: load a pickle where noise ``file:PATH`` or data ``npz:PATH`` is one, which runs code of whoever
            wrote it.
        listener: is told of progress; the default says nothing but the warnings.
        draw: makes the figures of a run that is done, from its directory, summary and train samples;
            ``fastmeta.train`` gives :func:`fastmeta.report.write_figures`.
        rank_timeout: seconds that processes of torchrun, which all call this and train one model together, wait for
            each other; see docs/scale.md. Rank 0 alone tells its listener.

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
    try:
        with joined(rank_timeout) as ranks:
            # one rank speaks for all
            heard = (listener or Listener()) if ranks.first else Silent()
            return _train(
                config,
                ranks=ranks,
                model=model,
                data=data,
                resume=resume,
                auto_resume=auto_resume,
                trust_code=trust_code,
                trust_pickle=trust_pickle,
                listener=heard,
                draw=draw,
            )
    except LaunchError as error:
        raise InputError(error) from error


def _train(
    config: TrainConfig | None,
    *,
    ranks: Ranks,
    model: nn.Module | None,
    data: Data | None,
    resume: str | Path | None,
    auto_resume: bool,
    trust_code: bool,
    trust_pickle: bool,
    listener: Listener,
    draw: Draw | None,
) -> Run:
    if config is not None and not isinstance(config, TrainConfig):
        raise InputError(f"config must be a TrainConfig, got {type(config).__name__}")
    begun: Path | None = None
    if resume is not None:
        if config is not None or auto_resume:
            raise InputError("resume goes on with the run's own config; give resume or config, not both")
        begun = ranks.by_first(lambda: begun_directory(user_path(resume, "resume")))
        if ranks.told(os.path.isfile(begun / SUMMARY)):
            run = load_run(begun, model=model, trust_code=trust_code)
            listener.note(f"{begun} is finished already")
            return run
        config = ranks.together(partial(_read, begun))
    config = config or TrainConfig()
    if auto_resume:
        if config.out is None:
            raise InputError("auto_resume needs out, the directory to begin or to go on in")
        out = user_path(config.out, "out")
        begun = out if ranks.told(os.path.isfile(out / CONFIG)) else None
        if begun is not None and config.labels.store == "auto":  # as it was chosen then, by what was free
            store = ranks.together(partial(_read, begun)).labels.store
            config = replace(config, labels=replace(config.labels, store=store))
    if trust_code:
        config = config.trusted()
    with whole_process(config, ranks), trusting_pickles(trust_pickle):
        if begun is not None and not auto_resume:
            check_same_kind(begun, config, model, data)
            config = ranks.together(partial(found_again, config, begun))
        prepared = prepare(config, model=model, data=data, ranks=ranks)
        if begun is not None and auto_resume:
            chosen = prepared.search is not None and os.path.isfile(begun / SEARCHING)
            own = ranks.together(partial(_read, begun, SEARCHING if chosen else CONFIG))
            before, now = (placeless(lasting(c), prepared.recorded) for c in (own, prepared.recorded))
            check_same_config(begun, before, now, OTHER_CONFIG)
            if ranks.told(os.path.isfile(begun / SUMMARY)):
                check_same_files(begun, own, prepared)
                run = load_run(begun, model=copy_of(prepared.initial).cpu(), force=prepared.config.force)
                listener.note(f"{begun} is finished already")
                return run
        made: list[Path] = []
        path = begun or ranks.by_first(lambda: make_directory(prepared.config, made))
        with ExitStack() as held:
            ranks.by_first(lambda: held.enter_context(only_process(path)))
            stop = held.enter_context(stop_signals(ranks))
            session = Session(prepared, path, listener, stop, draw)
            if begun is None:
                session.begin(made)
            else:
                session.restore()
                if ranks.first:
                    forget_failure(path)
            try:
                return session.run()
            except KeyboardInterrupt as interrupt:
                if isinstance(interrupt, Interrupted):
                    raise
                where = f"at once; the last saved state, {session.saved}, is"
                raise Interrupted(path, signal.SIGINT, where, prepared.config) from None
            except Exception as error:
                text = str(error) if isinstance(error, (TrainingError, OutOfMemory)) else reason(error)
                gone = ranks.size > 1 and lost(error)
                if gone:
                    way = f"the last saved state, {session.saved}, is in {path}; go on with: "
                    text = f"{reason(error)}; {way}{resume_command(path, prepared.config)}"
                if ranks.first:
                    of_others = (ends := others_ends()) and gone and ends.why(_GRACE)
                    note_failure(path, of_others or ("another rank is gone or does not answer: " * gone + text))
                if gone:
                    raise Gone(text) from error
                raise


def _read(begun: Path, file: Path = CONFIG) -> TrainConfig:
    """The config of a run. Before splits had a seed of their own, they went by the run's."""
    config = TrainConfig.read(begun / file)
    if config.labels.store == "auto":  # a run's own says where labels are not on the device
        config = replace(config, labels=replace(config.labels, store="device"))
    if config.data.split_seed is not None:
        return config
    return replace(config, data=replace(config.data, split_seed=config.seed))
