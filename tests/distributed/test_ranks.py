"""Which rows a rank has."""

import pytest
import torch

from fastmeta.distributed import ALONE, Ranks


class Of(Ranks):
    def __init__(self, rank, size):
        super().__init__(None)
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [0, 1, 5, 8, 1003])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_shares_are_those_of_torch_chunk(size, ranks):
    rows = torch.arange(size)
    shares = [rows[slice(*Of(rank, ranks).share(size))] for rank in range(ranks)]
    assert torch.cat(shares).equal(rows)
    for share, chunk in zip(shares, rows.chunk(ranks), strict=False):
        assert share.equal(chunk)


def test_a_process_by_itself_has_all_rows():
    assert ALONE.share(7) == (0, 7)
    assert ALONE.first
