"""When a run will end and, where that is far off on a CPU, what would end sooner."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from fastmeta.data import InputError
from fastmeta.training.config import TrainConfig

#: seconds from which a run on a CPU is worth a thought
LONG = 30 * 60.0
#: ways out that are told
WAYS = 3
#: train forwards of a plain step and of steps that learn labels, as benchmarks/results counts them for ResNet-20
PLAIN_FORWARDS = 3.0
FORWARDS = {"none": 14.0, "delayed": 12.0, "last:1": 5.0, "difference": 13.0}
#: what an approximation gives up
PRICES = {"last:1": "look-ahead through the last layer alone", "every:4": "labels move on one step in 4"}


def forwards(approx: str) -> float:
    """Of a step that learns labels; for several layers an upper bound."""
    kind, _, number = approx.partition(":")
    if kind == "every" and number.isdecimal():
        return (FORWARDS["none"] + (int(number) - 1) * PLAIN_FORWARDS) / int(number)
    return FORWARDS.get(approx, 7.0 if kind == "last" else FORWARDS["none"])


def plain_share(learns_in_steps: bool, approx: str) -> float:
    """What a plain step costs, as a share of a run's own, which may learn labels by `approx`."""
    return min(1.0, PLAIN_FORWARDS / forwards(approx)) if learns_in_steps else 1.0


@dataclass(frozen=True)
class Way:
    """A cheaper run."""

    option: str
    seconds: float
    price: str


def by_arithmetic(seconds: float, baselines: float, epochs: int) -> list[Way]:
    """What follows from the length of a run, of which `baselines` is a part."""
    ways = [Way(f"--epochs {epochs // 2}", seconds * (epochs // 2) / epochs, "fewer passes")] if epochs > 1 else []
    if baselines > 0:
        ways.append(Way("--baselines none", seconds - baselines, "nothing to compare with"))
    return ways


def approximations(config: TrainConfig) -> dict[str, TrainConfig]:
    """The config with each approximation of `PRICES` that its method takes; none where it has one already."""
    found: dict[str, TrainConfig] = {}
    for approx in PRICES if config.approx == "none" and config.label_update == "exact" else ():
        with suppress(InputError):
            found[approx] = replace(config, approx=approx)
    return found


def by_forwards(seconds: float, baselines: float, config: TrainConfig) -> list[Way]:
    """Approximations, by the forwards that were counted elsewhere."""
    own = (seconds - baselines) / forwards(config.approx)
    return [Way(f"--approx {name}", own * forwards(name) + baselines, PRICES[name]) for name in approximations(config)]


def end_at(seconds: float, now: float | None = None) -> str:
    """``14:32``, `seconds` after `now`, a time.time(); with the day where that is another."""
    begin = time.time() if now is None else now
    end, today = time.localtime(begin + seconds), time.localtime(begin)
    days = (end.tm_year, end.tm_yday) != (today.tm_year, today.tm_yday)
    form = "%H:%M" if not days else "%a %H:%M" if seconds < 6 * 86400 else "%Y-%m-%d %H:%M"
    return time.strftime(form, end)


def ways_out(seconds: float, ways: Sequence[Way], source: str) -> list[str]:
    """The cheapest of `ways` as lines under a heading, none where none is cheaper; `source` tells of their figures."""
    cheaper = sorted((way for way in ways if way.seconds < 0.95 * seconds), key=lambda way: way.seconds)[:WAYS]
    if not cheaper:
        return []
    wide = max(len(way.option) for way in cheaper)
    lines = [
        f"{way.option:<{wide}}  {seconds / way.seconds:.1f}x faster, {clock(way.seconds)}: {way.price}"
        for way in cheaper
    ]
    return [f"long for a CPU; cheaper, {source}:", *lines]


def clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {s:02} s" if minutes else f"{s} s"
