"""Time and peak memory of known work. No timing is judged but what sleeps."""

import time

import pytest
import torch

from fastmeta.measure import MAX_ROUNDS, MIN_ROUNDS, Stopped, Timing, interleave, peak_bytes

CPU = torch.device("cpu")


def test_interleave_tells_long_from_short():
    timings = interleave(
        {"short": [lambda: time.sleep(0.001)], "long": [lambda: time.sleep(0.005)]}, CPU, seconds=1, rounds=7
    )
    assert len(timings["long"].seconds) == 7
    assert timings["long"].median >= 0.005
    assert timings["long"].ratio_to(timings["short"]) > 1
    low, high = timings["long"].quartiles
    assert low <= timings["long"].median <= high


def test_bodies_of_a_variant_rotate():
    calls = [0, 0, 0]

    def body(i):
        calls[i] += 1

    interleave({"a": [lambda i=i: body(i) for i in range(3)]}, CPU, seconds=1, rounds=2)
    assert calls[0] == calls[1] == calls[2] > 0


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-6, MIN_ROUNDS), (1e3, MAX_ROUNDS)])
def test_rounds_are_bounded(seconds, rounds):
    assert len(interleave({"a": [lambda: None]}, CPU, seconds=seconds)["a"].seconds) == rounds


@pytest.mark.parametrize("whole", [0, 3])
def test_who_stops_it_keeps_the_rounds_that_were_whole(whole):
    calls = {"a": 0, "b": 0}

    def body(name):
        calls[name] += 1
        time.sleep(0.002)  # one call a sample; three go before the first round
        if max(calls.values()) == 3 + whole + 1:
            raise KeyboardInterrupt

    bodies = {name: [lambda name=name: body(name)] for name in calls}
    with pytest.raises(KeyboardInterrupt) as stop:
        interleave(bodies, CPU, seconds=1, rounds=10)
    assert isinstance(stop.value, Stopped) == bool(whole)
    assert not whole or {name: len(t.seconds) for name, t in stop.value.timings.items()} == {"a": whole, "b": whole}


def test_ratio_is_paired():
    drifting, twice = Timing((1.0, 2.0, 10.0)), Timing((2.0, 4.0, 20.0))
    assert twice.ratio_to(drifting) == 2
    assert Timing((1.0, 5.0, 3.0)).median == 3


def test_peak_bytes_counts_what_is_alive_at_once():
    def body():
        a = torch.empty(1 << 20)
        b = a + 1  # two at once
        del a
        c = b * 2
        return c.sum()

    assert peak_bytes(body, CPU) == pytest.approx(2 * 4 * (1 << 20), rel=1e-3)
    assert peak_bytes(lambda: None, CPU) == 0
