"""What a rank takes of the rows is a view; what is estimated of its rows is that of all ranks' rows."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmeta.data import Features, Images, InputError, Pool, Settings, Stream, load_dataset, npy_rows, split
from fastmeta.data.dataset import Dataset
from fastmeta.data.npy_rows import NpyFile
from fastmeta.data.source import as_slice
from fastmeta.distributed import Ranks
from tests.support.ranks import run_ranks

CPU = torch.device("cpu")


def arrays(kind, count=31):
    rng = np.random.default_rng(0)
    shape = (4, 5, 3) if kind == "images" else (6,)
    made = {}
    for part, n in (("train", count), ("meta", 6), ("test", 5)):
        x = rng.integers(0, 256, (n, *shape)).astype(np.uint8) if kind == "images" else rng.normal(50, 9, (n, *shape))
        made |= {f"x_{part}": x if kind == "images" else x.astype(np.float32), f"y_{part}": np.arange(n) % 3}
    return made


@pytest.mark.parametrize(
    ("rows", "same"),
    [([3, 4, 5], slice(3, 6)), ([7], slice(7, 8)), ([], None), ([3, 5], None), ([5, 4], None), ([0, 0], None)],
)
def test_rows_that_follow_each_other_are_a_slice(rows, same):
    found = as_slice(np.array(rows, np.int64))
    assert found == same if same is not None else np.array_equal(found, rows)


@pytest.mark.parametrize("kind", ["images", "features"])
def test_a_range_of_rows_is_a_view_and_others_are_a_copy(kind):
    source = Dataset.from_arrays(arrays(kind)).train
    part = source.take(np.arange(8, 19))
    assert np.shares_memory(part.x, source.x)
    assert np.shares_memory(part.targets, source.targets)
    assert type(part) is (Images if kind == "images" else Features)
    copied = source.take(np.array([8, 3]))
    assert not np.shares_memory(copied.x, source.x)
    assert np.array_equal(copied.x, source.x[[8, 3]])


def test_of_a_stream_a_range_reads_nothing():
    class Numbers(torch.utils.data.Dataset):
        targets, reads = np.arange(40) % 2, 0

        def __len__(self):
            return 40

        def __getitem__(self, row):
            self.reads += 1
            return torch.full((2,), float(row)), int(self.targets[row])

    data = Numbers()
    source = Stream.of(data, "numbers")
    before = data.reads
    part = source.take(np.arange(10, 30)).take(np.arange(5, 15))
    assert data.reads == before
    assert part.fetch(torch.arange(3), None, CPU)[:, 0].tolist() == [15, 16, 17]
    assert part.targets.tolist() == [1, 0] * 5
    assert source.take(np.array([7, 3])).fetch(torch.arange(2), None, CPU)[:, 0].tolist() == [7, 3]


def own_rows(parts, ranks):
    first, last = ranks.share(len(parts.train))
    from dataclasses import replace

    rows = np.arange(first, last)
    own = replace(parts.train, source=parts.train.source.take(rows), y=parts.train.y[rows], row=parts.train.row[rows])
    return replace(parts, train=own), first


def each_rank(rank, size, folder):
    ranks = Ranks(torch.distributed.group.WORLD)
    for kind in ("images", "features"):
        parts = split(Dataset.from_arrays(arrays(kind)))
        whole = Pool.of(parts, CPU, Settings())
        own, first = own_rows(parts, ranks)
        pool = Pool.of(own, CPU, Settings(), ranks=ranks)
        rows = torch.arange(pool.train_size)
        ours = pool.source.network_input(rows, None, CPU)
        torch.testing.assert_close(ours, whole.source.network_input(rows + first, None, CPU), rtol=1e-6, atol=1e-6)
        clean = torch.arange(pool.meta_size) + pool.clean_start
        theirs = whole.source.network_input(torch.arange(whole.meta_size) + whole.clean_start, None, CPU)
        torch.testing.assert_close(pool.source.network_input(clean, None, CPU), theirs, rtol=1e-6, atol=1e-6)
    Path(folder, f"{rank}.json").write_text(json.dumps(pool.train_size))


def test_mean_and_deviation_are_those_of_all_ranks(tmp_path):
    """31 rows: one rank has 16, the other 15."""
    run_ranks(each_rank, 2, tmp_path, str(tmp_path))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [16, 15]


def rank_of_files(rank, size, folder):
    """Counts which rows of the training file this rank reads, where they are held and where they are streamed."""
    ranks, read = Ranks(torch.distributed.group.WORLD), []
    reader = NpyFile.read

    def noted(self, rows, out, places):
        if self.path.name == "x_train.npy":
            read.extend(rows.tolist())
        reader(self, rows, out, places)

    parts = split(load_dataset(f"npy:{folder}/set")).own(ranks)
    NpyFile.read = noted
    for resident in ("yes", "no"):
        pool = Pool.of(parts, CPU, Settings(), resident, ranks)
        pool.source.fetch(torch.arange(pool.train_size), None if resident == "no" else torch.tensor(0), CPU)
    Path(folder, f"read{rank}.json").write_text(json.dumps(sorted(set(read))))


def test_a_rank_reads_its_own_rows_of_a_file_alone(tmp_path):
    (tmp_path / "set").mkdir()
    for name, array in arrays("features").items():
        np.save(tmp_path / "set" / f"{name}.npy", array)
    run_ranks(rank_of_files, 2, tmp_path, str(tmp_path))
    read = [json.loads((tmp_path / f"read{rank}.json").read_text()) for rank in range(2)]
    assert read == [list(range(16)), list(range(16, 31))]


#: file, row of the one number that is NaN, whether rows are held; rank 0 has the training rows below 16
SPOILT = [("x_train", 20, "yes"), ("x_train", 20, "no"), ("x_train", 3, "no"), ("x_test", 1, "yes")]


def rank_of_spoilt_files(rank, size, folder):
    ranks = Ranks(torch.distributed.group.WORLD)
    npy_rows.LOOKED_AT = 0  # as if they were large: nobody has looked at all rows before
    said = []
    for i, (_, _, resident) in enumerate(SPOILT):
        parts = split(load_dataset(f"npy:{folder}/{i}")).own(ranks)
        with pytest.raises(InputError) as caught:
            Pool.of(parts, CPU, Settings(), resident, ranks)
        said.append(str(caught.value))
    Path(folder, f"said{rank}.json").write_text(json.dumps(said))
    fail_in_turns(rank, ranks)


def fail_in_turns(rank, ranks):
    """Before the first, between two and behind the last of three things for which all come."""
    seen = []

    def act(agree, fails):
        for turn in range(4):
            if rank == 1 and turn == fails:
                raise InputError(f"no sample in turn {turn}")
            if turn < 3:
                agree()
                seen.append(int(ranks.sum(torch.tensor(rank))))
        return rank

    for fails in range(4):
        with pytest.raises(InputError, match=f"^rank 1: no sample in turn {fails}$"):
            ranks.side_by_side(partial(act, fails=fails))
    assert ranks.side_by_side(partial(act, fails=4)) == rank
    assert seen == [1] * (0 + 1 + 2 + 3 + 3)


def test_samples_of_one_rank_that_cannot_be_used_end_all_with_that(tmp_path):
    for i, (where, row, _) in enumerate(SPOILT):
        (tmp_path / f"{i}").mkdir()
        made = arrays("features")
        made[where][row, 2] = np.nan
        for name, array in made.items():
            np.save(tmp_path / f"{i}" / f"{name}.npy", array)
    run_ranks(rank_of_spoilt_files, 2, tmp_path, str(tmp_path))
    ours, theirs = (json.loads((tmp_path / f"said{rank}.json").read_text()) for rank in range(2))
    assert ours == theirs
    for i, (where, row, _) in enumerate(SPOILT):
        whose = "" if where == "x_test" else f"rank {int(row >= 16)}: "  # of all, it is no rank's
        assert ours[i].startswith(f"{whose}{tmp_path / str(i) / where}.npy holds nan in row {row} ")
