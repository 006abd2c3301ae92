"""Stages of a run that find something out for the others: no result tells of them."""

from __future__ import annotations

from fastmeta.data import PILOT

_TRIAL = "trial-"


def trial_name(number: int) -> str:
    """Of the trial `number`, from 1 on, of a search: see :mod:`fastmeta.training.search`."""
    return f"{_TRIAL}{number}"


def is_trial(name: str) -> bool:
    return name.removeprefix(_TRIAL).isdecimal() and name.startswith(_TRIAL)


def is_aside(name: str) -> bool:
    """Whether it is the pilot, or a trial."""
    return name == PILOT or is_trial(name)
