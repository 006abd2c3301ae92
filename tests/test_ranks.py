"""The harness for several processes: no hang, and the message of the rank that failed."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.support.ranks import RankError, run_ranks


def add_up(rank, size, folder):
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    with open(f"{folder}/{rank}.txt", "w") as file:
        file.write(f"{total.item():g} of {size}")


def one_raises(rank, size):
    if rank == 1:
        raise ValueError("the second rank has had enough")
    dist.barrier()  # would wait for ever


def one_hangs(rank, size):
    if rank == 0:
        time.sleep(1000)
    dist.barrier()


def one_is_killed(rank, size):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_all_ranks_meet(tmp_path):
    run_ranks(add_up, 2, tmp_path, str(tmp_path))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["3 of 2", "3 of 2"]


@pytest.mark.parametrize(
    ("function", "says"),
    [(one_raises, "the second rank has had enough"), (one_is_killed, "rank 1 ended with code -9")],
)
def test_the_first_failure_ends_all(function, says, tmp_path):
    began = time.monotonic()
    with pytest.raises(RankError, match=says):
        run_ranks(function, 2, tmp_path, seconds=100)
    assert time.monotonic() - began < 60


def test_a_hang_ends_at_the_limit_with_the_stack(tmp_path):
    with pytest.raises(RankError, match=r"not done after 15 s(.|\n)*in one_hangs"):
        run_ranks(one_hangs, 2, tmp_path, seconds=15)
