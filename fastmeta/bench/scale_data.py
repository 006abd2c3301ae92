"""Steps with samples that are read as they are needed beside the same steps with samples in memory, in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmeta.training import DataConfig, TrainConfig
from fastmeta.training.prepare import prepare
from fastmeta.training.stage import Stage

#: images of 32 x 32 pixels, as CIFAR has them
TRAIN, CLEAN, SIDE, CLASSES = 2048, 512, 32, 10
#: steps of one kind behind each other; the first ones of these are left out, for which reading had time before
BLOCK, LEFT_OUT = 16, 5
#: seconds in which workers read as far ahead as they will, so that none of it falls on the other kind
SETTLE = 0.15
#: networks, and samples of their train batches, as many clean ones: many images in a short step, few in a long one
NETWORKS = (("fastmeta.models.narrow:narrow_resnet", 64), ("resnet20", 16))


def measure(seconds: float) -> dict[str, Any]:
    """Median seconds of a step, and what share of the throughput with samples in memory is kept.

    Two threads compute, and one worker reads: on two cores the worker's time is taken from the step. Kinds take turns
    in blocks, so that what else the machine does falls on all alike.
    """
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.set_num_threads(2)
            _write(Path(folder))
            each = seconds / len(NETWORKS)
            return {"networks": [_measured(Path(folder), *network, each) for network in NETWORKS]}
        finally:
            torch.set_num_threads(before)


def _measured(folder: Path, model: str, batch: int, seconds: float) -> dict[str, Any]:
    arrays, images = f"npy:{folder / 'arrays'}", f"folder:{folder / 'images'}"
    with _stages(
        {
            "memory": _config(model, batch, arrays, resident="yes"),
            "npy": _config(model, batch, arrays, resident="no", workers=1),
            "npy without workers": _config(model, batch, arrays, resident="no"),
            "folder": _config(model, batch, images, resident="no", workers=1),
        }
    ) as stages:
        times: dict[str, list[float]] = {name: [] for name in stages}
        for stage in stages.values():
            _block(stage)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not all(times.values()):
            for name, stage in stages.items():
                times[name] += _block(stage)[LEFT_OUT:]
                time.sleep(SETTLE)
    steps = {name: statistics.median(values) for name, values in times.items()}
    return {
        "what": f"{model.rpartition(':')[2]}, {batch} + {batch} images 32x32x3 with crops and flips, 2 threads",
        "step_seconds": steps,
        "steps_timed": {name: len(values) for name, values in times.items()},
        "share_of_throughput": {name: steps["memory"] / value for name, value in steps.items() if name != "memory"},
    }


def _block(stage: Stage) -> list[float]:
    times = []
    for _ in range(BLOCK):
        begin = time.perf_counter()
        stage.take_step()
        times.append(time.perf_counter() - begin)
    return times


@contextmanager
def _stages(configs: dict[str, TrainConfig]) -> Iterator[dict[str, Stage]]:
    stages: dict[str, Stage] = {}
    try:
        for name, config in configs.items():
            stages[name] = prepare(config).stage(config.method)
        yield stages
    finally:
        for stage in stages.values():
            stage.close()


def _config(model: str, batch: int, dataset: str, **of_data: Any) -> TrainConfig:
    data = DataConfig(batch_size=batch, meta_batch_size=batch, augment="crop_flip", **of_data)
    config = TrainConfig(dataset=dataset, model=model, epochs=1000, device="cpu", baselines="none", data=data)
    return replace(config, labels=replace(config.labels, update="exact", warmup_epochs=0))


def _write(folder: Path) -> None:
    """The same images as arrays and as PNG files in a folder for each class, train/ and meta/."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("meta", CLEAN)):
        y = np.sort(np.arange(count) % CLASSES)
        x = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        place = folder / "arrays" / part
        place.mkdir(parents=True)
        np.save(place / "x.npy", x)
        np.save(place / "y.npy", y)
        for c in range(CLASSES):
            (folder / "images" / part / f"{c}").mkdir(parents=True)
        for k, (pixels, c) in enumerate(zip(x, y.tolist(), strict=True)):
            Image.fromarray(pixels).save(folder / "images" / part / f"{c}" / f"{k:05}.png", compress_level=1)


def told(result: dict[str, Any]) -> str:
    lines = []
    for network in result["networks"]:
        lines.append(network["what"])
        for name, seconds in network["step_seconds"].items():
            share = network["share_of_throughput"].get(name)
            kept = "" if share is None else f", {share:.1%} of memory's"
            lines.append(f"{name}: {1000 * seconds:.1f} ms a step{kept}")
    return "\n".join(lines)
