"""What the environment of torchrun says of a process's place."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from fastmeta.distributed.launch import LaunchError, Place, here, joined, lost, of_this_start, place
from fastmeta.training import TrainingError

WHOLE = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
WHOLE |= {"MASTER_ADDR": "host", "MASTER_PORT": "29500"}


def test_a_process_by_itself_has_none():
    assert place({}) is None
    assert place({"WORLD_SIZE": "1", "RANK": "0"}) is None
    with joined() as ranks:
        assert ranks.size == here().size == 1


def test_place():
    assert place(WHOLE) == Place(3, 4, 1, 2)
    assert place(WHOLE).command == ["torchrun", "--nnodes 2", "--nproc-per-node 2", "..."]
    one = place(WHOLE | {"WORLD_SIZE": "2", "RANK": "1"})
    assert one.command == ["torchrun", "--standalone", "--nproc-per-node 2"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"MASTER_ADDR": None}, "WORLD_SIZE is 4 and MASTER_ADDR is not set"),
        ({"RANK": None}, "RANK is not set"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK must be a number"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE must be a number"),
        ({"RANK": "4"}, "RANK must be below WORLD_SIZE"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK below LOCAL_WORLD_SIZE"),
    ],
)
def test_half_an_environment_is_refused(change, says):
    environment = {k: v for k, v in (WHOLE | change).items() if v is not None}
    with pytest.raises(LaunchError, match=says) as error:
        place(environment)
    assert "torchrun" in str(error.value)


def start(store, size=3):
    """All ranks of one start, each in a thread: what rank 0 has written for the others, as they read it."""
    text = uuid.uuid4().hex

    def one(rank):
        mine = of_this_start(store(), rank, size, 5.0)
        if rank == 0:
            mine.set("address", text)
        return mine.get("address").decode()

    with ThreadPoolExecutor(size) as pool:
        assert list(pool.map(one, reversed(range(size)))) == [text] * size


def test_ranks_that_are_started_again_read_nothing_of_the_start_before(tmp_path):
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def client():
        return dist.TCPStore("localhost", server.port, is_master=False, timeout=timedelta(seconds=5))

    start(client)
    start(client)
    with pytest.raises(RuntimeError, match="rank 1, 2 did not come"):
        of_this_start(client(), 0, 3, 0.1)
    start(client)


def test_a_path_in_an_error_of_ours_makes_no_rank_lost():
    assert not lost(TrainingError("/data/gloo/x.npy cannot be read"))
    assert lost(RuntimeError("[../third_party/gloo/pair.cc:534] Connection closed by peer"))
