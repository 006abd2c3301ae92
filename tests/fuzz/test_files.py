"""The corpus of attacks and random changes of it, in bounded time and memory, without a fuzzer.

``python tests/fuzz/fuzz_files.py`` goes on from there, guided by coverage.
"""

import random
import resource
import time

import pytest

from tests.support.fuzz import corpus
from tests.support.fuzz.targets import Targets, judge

#: random changes; the slow test makes more
COUNTS = {"npz": 200, "npy": 300, "npy_folder": 100, "toml": 300, "summary": 30}
SECONDS, BYTES = 2.0, 256 * 2**20


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return Targets(tmp_path_factory.mktemp("fuzz"))


def replay(target, contents):
    """How many are taken."""
    before, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for content in contents:
        began = time.process_time()
        try:
            taken += judge(target, content)
        except BaseException as error:
            pytest.fail(f"{type(error).__name__}: {error}\nof {content[:4000]!r}")
        assert time.process_time() - began < SECONDS, content[:4000]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    return taken


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_attacks_that_are_known(name, thorough, targets):
    contents = targets.seeds(name)
    assert sum(map(len, contents)) < 2**22
    if name == "summary" and not thorough:  # every value of every key takes its time
        contents = contents[:4] + contents[4::9]
    assert 0 < replay(targets.by_name[name], contents) < len(contents)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("times", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_random_changes_of_them(name, times, targets):
    contents, draw = targets.seeds(name), random.Random(times)
    count = COUNTS[name] * times
    replay(
        targets.by_name[name],
        (corpus.changed(draw.choice(contents[:40]), draw.choice(contents), draw) for _ in range(count)),
    )
