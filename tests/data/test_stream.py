"""What tells one stream from another, for a run that is resumed."""

import numpy as np
import pytest
import torch

from fastmeta.data import Settings
from fastmeta.data.stream import SAMPLED, Stream

CPU = torch.device("cpu")


class Numbers(torch.utils.data.Dataset):
    def __init__(self, count=1000, targets=None, shift=0.0, noise=False):
        self.count, self.shift, self.noise, self.reads = count, shift, noise, 0
        self.targets = np.arange(count) % 3 if targets is None else targets

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        self.reads += 1
        x = torch.full((2,), float(row)) + self.shift
        return x + torch.rand(2) if self.noise else x, int(self.targets[row])


def fingerprint(**changes):
    return Stream.of(Numbers(**changes), "data").fingerprint()


def test_equal_data_have_one_fingerprint_and_draw_nothing():
    before = torch.get_rng_state()
    assert fingerprint(noise=True) == fingerprint(noise=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "changes", [{"count": 999}, {"shift": 1.0}, {"targets": np.arange(1000) % 3 * (np.arange(1000) != 1)}]
)
def test_other_labels_numbers_and_transforms_are_seen(changes):
    assert fingerprint(**changes) != fingerprint()


def test_it_reads_few_samples():
    data = Numbers()
    stream = Stream.of(data, "data")
    before = data.reads
    stream.fingerprint()
    assert data.reads - before == SAMPLED


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_next_step_fetches_is_sent_while_a_step_runs(workers):
    """With workers both batches of the next step are there before they are asked for; with none nothing is ahead."""
    source = Stream.of(Numbers(noise=True), "data").placed(Settings(workers=workers), CPU, None)
    plan = [[torch.arange(3) + 10 * step, torch.arange(2) + 500 + step] for step in range(4)]
    source.follow(lambda step: plan[step], 0, 4)
    try:
        for step, batches in enumerate(plan):
            for rows in batches:
                assert torch.equal(source.fetch(rows, step, CPU), source.batch_of(rows.tolist(), step))
            source.ahead(CPU)
            wanted = [(step + 1, rows.tolist()) for rows in plan[step + 1]] if step < 3 else [None, None]
            assert [key for key, _ in source._sent] == (wanted if workers else [])
        # the plan is over, and so is reading ahead
        assert torch.equal(source.fetch(torch.arange(3), 9, CPU), source.batch_of([0, 1, 2], 9))
        assert source._ahead is None
    finally:
        source.close()


def test_another_batch_than_the_plan_says_is_read_by_itself():
    source = Stream.of(Numbers(), "data").placed(Settings(workers=1), CPU, None)
    source.follow(lambda step: [torch.arange(3) + step], 0, 9)
    source.fetch(torch.arange(3), 0, CPU)
    source.ahead(CPU)
    assert source.fetch(torch.arange(3) + 7, 1, CPU)[:, 0].tolist() == [7, 8, 9]
    assert source.fetch(torch.arange(3) + 2, 2, CPU)[:, 0].tolist() == [2, 3, 4]
