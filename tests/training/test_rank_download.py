"""A data set that is to be downloaded is downloaded by the first rank alone."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from fastmeta.data.sources import of_torchvision
from fastmeta.distributed.launch import joined
from fastmeta.training import DataConfig, TrainConfig
from fastmeta.training.prepare import prepare
from tests.support.ranks import run_ranks


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def fetched(folder, rank):
    """In place of torchvision, which needs a network."""

    def fetch(argument, root, choose):
        Path(folder, f"asked by {rank}").touch()
        time.sleep(0.3)
        for name, dims, _ in of_torchvision.IDX_FILES:
            y = np.arange(60) % 10
            Path(root).mkdir(exist_ok=True)
            Path(root, name).write_bytes(idx(y if dims == 1 else np.ones((60, 8, 8)) * y[:, None, None]))

    return fetch


def two(rank, size, folder):
    config = TrainConfig(
        dataset="torchvision:MNIST",
        data=DataConfig(meta_count=10, root=f"{folder}/data", download=True),
        model="mlp",
        epochs=1,
    )
    with pytest.MonkeyPatch.context() as patch, joined() as ranks:
        patch.setattr(of_torchvision, "_fetched", fetched(folder, rank))
        prepared = prepare(config, ranks=ranks)
        assert len(prepared.splits.test) == 60


def test_the_first_rank_alone_downloads(tmp_path):
    run_ranks(two, 2, tmp_path, str(tmp_path))
    assert [p.name for p in tmp_path.glob("asked by *")] == ["asked by 0"]
