"""What tells one stream from another, for a run that is resumed."""

import numpy as np
import pytest
import torch

from fastmeta.data.stream import SAMPLED, Stream


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
