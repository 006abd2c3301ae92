"""What a run would be: resolved config, splits, memory and time, from a few trial steps; nothing is written."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastmeta.data import Splits
from fastmeta.functional.network import Network
from fastmeta.meta import graph_bytes
from fastmeta.methods.label_store import MMAP, path_of
from fastmeta.training import global_generators
from fastmeta.training.build import build_model
from fastmeta.training.config import TrainConfig
from fastmeta.training.finetune import MOMENTUM, plain_steps, steps_of
from fastmeta.training.label_moves import moves, steps_per_move
from fastmeta.training.measuring import figures
from fastmeta.training.outlook import (
    LONG,
    PRICES,
    Way,
    approximations,
    by_arithmetic,
    clock,
    end_at,
    plain_share,
    ways_out,
)
from fastmeta.training.prepare import Prepared, prepare
from fastmeta.training.process import whole_process
from fastmeta.training.readings import reading_steps
from fastmeta.training.rundir.layout import new_directory
from fastmeta.training.search import Search, settings_in_words
from fastmeta.training.stage import Stage
from fastmeta.training.stage_names import is_trial
from fastmeta.training.store_choice import store_in_words

WARM_UP, TIMED = 3, 5
#: seconds that warming up, and then timing, may take before it is enough
PATIENCE = 10.0
#: model -> a smaller one that images of the same size fit into
SMALLER = {
    **dict.fromkeys(("resnet18", "resnet32", "vgg16_bn", "wrn28_10", "alexnet", "vit_tiny"), "resnet20"),
    "resnet20": "small_conv",
}


def dry_run(config: TrainConfig) -> str:
    """Text for people. Takes a few steps on copies. Raises what :func:`fastmeta.train` would raise before it trains.

    A model that is named ``package.module:factory`` by a file is imported only for a config that is `trusted`.
    """
    with whole_process(config):
        prepared = prepare(config)
        recorded = prepared.recorded.to_toml().strip()
        table = store_in_words(prepared.config, prepared.data.clean_start, prepared.splits.num_classes)
        with _tables_aside(prepared):
            return f"{recorded}\n\n{_describe(prepared, table)}\ndry run: nothing was written"


def duration(config: TrainConfig) -> float:
    """Seconds that the method's own stage of such a run would take, from a few steps on copies."""
    with whole_process(config):
        prepared = prepare(config)
        with _tables_aside(prepared):
            stage = prepared.stage(prepared.config.method)
            seconds = _steps(stage) * _seconds_per_step(stage)
            began = time.perf_counter()
            figures(stage)
        return seconds + (prepared.config.epochs or 0) * (time.perf_counter() - began)


def _describe(prepared: Prepared, table: str | None) -> str:
    splits, config = prepared.splits, prepared.config
    path = new_directory(config)
    there = (name for name in prepared.stages if not is_trial(name))
    names = sorted(there, key=lambda name: name != config.method)  # the method's own first
    stages = [prepared.stage(name) for name in names]
    timed: dict[Any, float] = {}
    for stage in stages:  # all stages of one method cost the same
        if _kind(stage) not in timed:
            timed[_kind(stage)] = _seconds_per_step(stage)
    figures_began = time.perf_counter()
    figures(stages[0])
    per_epoch = time.perf_counter() - figures_began
    each = [_steps(s) * timed[_kind(s)] + (config.epochs or 0) * per_epoch for s in stages]
    searching = 0.0 if prepared.search is None else prepared.search.cost * each[0]
    seconds = sum(each) + searching

    main = stages[0]
    # but for its count of steps, which are those of the trial
    explained = [line for line in main.method.explain().splitlines() if not line.startswith("steps:")]
    rate = "unknown" if splits.noise_rate is None else f"{splits.noise_rate:.1%}"
    test = "none" if splits.test is None else f"{len(splits.test):,}"
    labels = 0 if main.method.labels is None else sum(_size(b) for b in main.method.labels.buffers())
    parameters = sum(p.numel() for p in main.model.parameters())
    about_canaries = prepared.about_canaries
    rows = [
        ("train", f"{len(splits.train):,} {splits.train.source.noun}{_shape(splits)}, wrong labels: {rate}"),
        *([] if splits.noise_told is None else [("noise", splits.noise_told.replace("\n", "\n" + 10 * " "))]),
        ("clean", f"{len(splits.meta):,}; {splits.overlap_told}"),
        *([] if splits.val is None else [("validate", f"{len(splits.val):,}")]),
        *([] if about_canaries is None else [("canaries", about_canaries.removeprefix("canaries: "))]),
        *([] if prepared.search is None else [("search", _searching(prepared.search, searching))]),
        ("test", test),
        ("classes", f"{splits.num_classes}"),
        ("batches", _batches(main)),
        ("model", f"{config.model}, {parameters:,} parameters, on {prepared.device}"),
        ("method", "\n          ".join(explained)),
        *_finetuning(main),
        ("memory", f"{splits.train.source.noun} and labels {_mib(prepared.data.bytes)}, label table {_mib(labels)}"),
        *([] if table is None else [("table", table.removeprefix("label table: "))]),
        ("step", f"{_graphs(main)}; {_peak(prepared)}"),
        ("time", f"{', '.join(_stage_line(s, timed[_kind(s)]) for s in stages)}"),
        ("end", f"after about {clock(seconds)}; begun now, at {end_at(seconds)}"),
        *(("", line) for line in _ways_out(prepared, stages, timed, seconds)),
        ("run", f"{path} (not made now)"),
        *(("note", note) for note in prepared.notes),
    ]
    body = "\n".join(f"{name:<9} {text}" for name, text in rows)
    return body


@contextmanager
def _tables_aside(prepared: Prepared) -> Iterator[None]:
    """A label table that would be in a file is in another one meanwhile, which goes again."""
    config = prepared.config
    if path_of(config.labels.store) is None:
        yield
        return
    with TemporaryDirectory() as folder:
        aside = replace(config.labels, store=f"{MMAP}{folder}/labels.rows")
        prepared.config = replace(config, labels=aside)
        try:
            yield
        finally:
            prepared.config = config


def _shape(splits: Splits) -> str:
    """(height, width, channels) of images, the shape of other tensors."""
    shape = splits.train.source.input_shape
    if shape is None:
        return ""
    return f" {(*shape[1:], shape[0]) if splits.train.source.noun == 'images' else shape}"


def _steps(stage: Stage) -> float:
    """All that a stage costs, in steps."""
    saved = stage.config.labels.plain_epochs * stage.steps_per_epoch * (1 - _plain_share(stage))
    moved = moves(stage) * steps_per_move(stage.config, stage.data)
    return stage.total - saved + moved + _finetune_steps(stage) + _reading_steps(stage)


def _finetune_steps(stage: Stage) -> float:
    """What its fine-tuning costs, in its own steps."""
    return plain_steps(stage) * _plain_share(stage)


def _reading_steps(stage: Stage) -> float:
    """What it costs to read its labels off its network, in its own steps."""
    return reading_steps(stage) * _plain_share(stage)


def _plain_share(stage: Stage) -> float:
    learns_in_steps = stage.method.uses_meta_batch and stage.config.labels.update == "exact"
    return plain_share(learns_in_steps, stage.config.approx)


def _seconds_per_step(stage: Stage) -> float:
    stage.method.skip_warm_up()
    began = time.perf_counter()
    for _ in range(min(WARM_UP, stage.total)):
        stage.take_step()
        if time.perf_counter() - began > PATIENCE:
            break
    stage.check()  # waits for the device
    began, first = time.perf_counter(), stage.step
    last = first + max(1, min(TIMED, stage.total - first))
    while stage.step < last and time.perf_counter() - began < PATIENCE:
        stage.take_step()
    stage.check()
    return (time.perf_counter() - began) / (stage.step - first)


def _ways_out(prepared: Prepared, stages: Sequence[Stage], timed: Mapping[Any, float], seconds: float) -> list[str]:
    """Where the run is long on a CPU: what would be shorter, each timed here as the run itself was."""
    config, main = prepared.config, stages[0]
    if seconds <= LONG or prepared.device.type != "cpu":
        return []
    own, *others = (_steps(stage) * timed[_kind(stage)] for stage in stages)
    baselines = sum(others)
    ways = by_arithmetic(seconds, baselines, config.epochs or 1)

    def measured(option: str, price: str, other: Prepared, with_baselines: bool) -> float | None:
        try:
            step = _seconds_per_step(other.stage(main.name))
        except (RuntimeError, ValueError):  # the model cannot do it, memory is short
            return None
        factor = step / timed[_kind(main)]
        shorter = seconds * factor if with_baselines else seconds - own * (1 - factor)
        ways.append(Way(option, shorter, price))
        return step

    with global_generators.kept():
        for approx, other in approximations(config).items():
            measured(f"--approx {approx}", PRICES[approx], replace(prepared, config=other), False)
        if (smaller := SMALLER.get(str(config.model))) is not None:
            other = replace(config, model=smaller)
            model = build_model(other, prepared.splits.num_classes, prepared.splits.train.source.input_shape)
            measured(f"--model {smaller}", "another network", replace(prepared, config=other, initial=model), True)
    return ways_out(seconds, ways, "timed here")


def _kind(stage: Stage) -> type:
    """Stages of one kind cost the same."""
    return type(stage.method)


def _batches(stage: Stage) -> str:
    dropped = stage.data.in_all - stage.steps_per_epoch * stage.sampler.batch_size
    return (
        f"{stage.steps_per_epoch:,} steps per epoch of {stage.sampler.batch_size} train and "
        f"{stage.meta_sampler.batch_size} clean {stage.data.source.noun}"
        + (f"; {stage.total:,} steps in all" if stage.total % stage.steps_per_epoch else "")
        + (f"; each pass drops its last {dropped} rows, others each time" if dropped else "")
    )


def _graphs(stage: Stage) -> str:
    """What the graphs of one step keep, counted and not measured; a step holds them together or in turn."""
    network, most = Network(stage.model), stage.config.micro_batch
    counts = {"train": stage.sampler.batch_size, "meta": stage.meta_sampler.batch_size}
    said = []
    for name, count in list(counts.items())[: 2 if stage.method.uses_meta_batch else 1]:
        with stage.autocast():
            size = graph_bytes(network, stage.data.few(count), count, most)
        said.append(f"{name} graph {'unknown' if size is None else _mib(size)}")
    return ", ".join(said)


def _peak(prepared: Prepared) -> str:
    if prepared.device.type == "cuda":
        return f"peak on the device {_mib(torch.cuda.max_memory_allocated(prepared.device))}"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"peak of the process {_mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}"


def _stage_line(stage: Stage, seconds: float) -> str:
    line = f"{stage.name} {stage.total:,} steps × {seconds * 1e3:.1f} ms"
    if count := moves(stage):
        each = steps_per_move(stage.config, stage.data) * seconds
        line += f" and {count:,} moves of the labels × {each:.2g} s, by counted forwards"
    if extra := _finetune_steps(stage):
        line += f" and {extra * seconds:.2g} s of fine-tuning, by counted forwards"
    if extra := _reading_steps(stage):
        line += f" and {extra * seconds:.2g} s to read labels off the network"
    return line


def _searching(search: Search, seconds: float) -> str:
    """What it tries, a trial a line."""
    lines = [f"{search}, about {clock(seconds)}"]
    lines += [f"{c.name}: {settings_in_words(c.settings)}" for c in search.candidates]
    return "\n          ".join(lines)


def _finetuning(stage: Stage) -> list[tuple[str, str]]:
    """A row of :func:`_describe`, where a copy is fine-tuned."""
    config, count = stage.config, stage.meta_sampler.batch_size
    if not config.finetune_steps:
        return []
    models = sum(steps_of(config, name) > 0 for name in (stage.name, *config.baseline_names()))
    steps = f"{config.finetune_steps:,} clean steps of {count} {stage.data.source.noun}"
    copies = "a copy" + (f" of each of {models} models" if models > 1 else "")
    return [("finetune", f"{steps} at rate {config.finetune_lr:g}, momentum {MOMENTUM}, on {copies}")]


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
