"""The state of a run on several ranks: whole at any moment, the same rows on any number of ranks, damage is found."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fastmeta.data import InputError
from fastmeta.distributed import ALONE, Ranks, rows_to_first
from fastmeta.training.rundir import checkpoint, rank_files, spread_rows
from fastmeta.training.rundir.rank_folders import is_rank_folder
from tests.support.ranks import run_ranks

#: rows of all ranks: uneven for two and three, and fewer than three ranks can share
SIZES = {"labels": 101, "few": 4}
BY_ROW = frozenset(SIZES) | {"flags"}


def whole_rows(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "labels": torch.randn(101, 7, generator=g).bfloat16(),
        "few": torch.randn(4, 2, 3, generator=g, dtype=torch.float64),
        "flags": torch.rand(101, generator=g) < 0.5,
    }


def state(rank, size, seed=0):
    """Tensors and values of a rank: rows, what all have alike, and what differs."""
    ranks, g = Ranks(None), torch.Generator().manual_seed(seed + 1)
    ranks.rank, ranks.size = rank, size
    tensors = {name: t[slice(*ranks.share(len(t)))].clone() for name, t in whole_rows(seed).items()}
    tensors |= {"weights": torch.randn(5, 5, generator=g).t(), "steps": torch.tensor(3)}
    tensors |= {"mean": torch.full((3,), float(rank)), "draws": torch.tensor([rank], dtype=torch.uint8)}
    if rank == 0:
        tensors["of the first"] = torch.zeros(2)
    if rank == 1:
        tensors["of the second"] = torch.ones(())
    return tensors, {"config": {}, "stage": {"name": "s", "seconds": 1.5 * rank}}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, t in wanted.items():
        assert found[name].dtype == t.dtype, name
        assert torch.equal(found[name], t), name


def assert_rows(found, rank, size, seed=0):
    wanted, _ = state(rank, size, seed)
    assert_equal({k: found[k] for k in BY_ROW}, {k: wanted[k] for k in BY_ROW})


def folders(path):
    return sorted(name for name in os.listdir(path.parent) if is_rank_folder(name))


def refused(path, ranks, says):
    """All ranks refuse together, in one line."""
    with pytest.raises(InputError, match=says) as error:
        rank_files.load(path, ranks)
    assert "begin the run anew" in str(error.value)
    assert "\n" not in str(error.value)


def two(rank, size, folder):
    path, ranks = Path(folder, "run", "checkpoint", "state.safetensors"), Ranks(dist.group.WORLD)
    tensors, values = state(rank, size)
    rank_files.save(path, tensors, values, ranks, by_row=BY_ROW)
    found, read, begun = rank_files.load(path, ranks)
    assert begun == 2
    assert_equal(found, tensors)
    assert read["stage"] == values["stage"]
    first = folders(path)
    dist.barrier()

    _damage(path, ranks)
    _fails(path, ranks, tensors, values, first)

    # a save that follows has a folder of its own, and the old one goes
    later, values = state(rank, size, seed=5)
    rank_files.save(path, later, values, ranks, by_row=BY_ROW, max_shard_mb=0.1)
    assert_equal(rank_files.load(path, ranks)[0], later)
    assert len(folders(path)) == 1
    assert folders(path) != first

    wrong = tensors | {"labels": tensors["labels"][rank:]}
    with pytest.raises(ValueError, match=r"labels has .* rows on the ranks"):
        rank_files.save(path, wrong, values, ranks, by_row=BY_ROW)
    assert_equal(rank_files.load(path, ranks)[0], later)


def _damage(path, ranks):
    """A byte that has changed, a file that is gone, one too many, another save's: found, and said in one line."""
    copy = path.parents[2] / "copy"
    part = sorted(path.parent.glob("ranks-*/rows/*"))[1].relative_to(path.parent)
    own = sorted(path.parent.glob("ranks-*/rank-1.safetensors"))[0].relative_to(path.parent)
    damages = [
        (lambda p: _flip(p / part), f"its part .*{part.name} has changed"),
        (lambda p: os.unlink(p / part), f"its part .*{part.name}: No such file"),
        (lambda p: _flip(p / own), "its part .*rank-1.safetensors has changed"),
        (lambda p: shutil.rmtree(p / part.parents[1]), "its part .*: No such file"),
        (lambda p: shutil.copy(p / part, p / part.parent / "other.safetensors"), "other.safetensors is none of its"),
        (lambda p: _flip(p / path.name), "differ"),
    ]
    for damage, says in damages:
        if ranks.first:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path.parent, copy)
            damage(copy)
        dist.barrier()
        refused(copy / path.name, ranks, says)
        dist.barrier()


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _fails(path, ranks, tensors, values, before):
    """A full disk at a place of the save, on either rank: all of them hear of it, and the old state stays."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    later, _ = state(ranks.rank, ranks.size, seed=9)
    for rank, module, name in (
        (0, checkpoint, "save"),  # what would make the save count
        (1, checkpoint, "pack"),
        (0, rank_files, "seal_of"),
        (1, torch.distributed.checkpoint.filesystem, "_write_files_from_queue"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if ranks.rank == rank:
                patch.setattr(module, name, full)
            with pytest.raises(OSError, match="No space left") as error:
                rank_files.save(path, later, values, ranks, by_row=BY_ROW)
            assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "somewhere")
        dist.barrier()
        assert folders(path) == before
        assert_equal(rank_files.load(path, ranks)[0], tensors)
        dist.barrier()


def three(rank, size, folder):
    """Goes on where two were, and where one was."""
    path, ranks = Path(folder, "run", "checkpoint", "state.safetensors"), Ranks(dist.group.WORLD)
    found, values, begun = rank_files.load(path, ranks)
    assert begun == 2
    assert_rows(found, rank, size, seed=5)
    assert torch.equal(found["mean"], torch.full((3,), 0.5))
    assert torch.equal(found["draws"], torch.tensor([0], dtype=torch.uint8))
    assert values["stage"]["seconds"] == 0
    tensors, values = state(rank, size, seed=5)
    rank_files.save(path, tensors, values, ranks, by_row=BY_ROW)
    assert_equal(rank_files.load(path, ranks)[0], tensors)

    one = Path(folder, "one", "checkpoint", "state.safetensors")
    _brought(rank, size, ranks)
    tensors, _, begun = rank_files.load(one, ranks)
    assert begun == 1
    assert len(tensors["labels"]) == 101  # whole: whoever knows the rows takes this rank's
    with open(f"{folder}/three-{rank}.json", "w") as file:
        json.dump(folders(path), file)


def _brought(rank, size, ranks):
    """Rows of every dtype come to the first rank, in pieces of a few rows too."""
    for piece in (40, 2**26):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastmeta.distributed.all_rows._PIECE", piece)
            for t in whole_rows().values():
                found = rows_to_first(t[slice(*ranks.share(len(t)))], ranks)
                assert torch.equal(found, t if rank == 0 else t[:0])


def test_rows_go_from_two_ranks_to_three_to_one(tmp_path):
    path, one = (tmp_path / name / "checkpoint" / "state.safetensors" for name in ("run", "one"))
    for place in (path, one):
        place.parent.mkdir(parents=True)
    run_ranks(two, 2, tmp_path, str(tmp_path))
    rank_files.save(one, *state(0, 1))
    assert os.listdir(one.parent) == [one.name]
    run_ranks(three, 3, tmp_path, str(tmp_path))

    found, values, begun = rank_files.load(path)
    assert begun == 3
    assert_rows(found, 0, 1, seed=5)
    assert torch.equal(found["mean"], torch.ones(3))
    assert "ranks" not in values
    # leftovers of a save that was cut off, and nothing else, are taken away
    (path.parent / f"ranks-{'0' * 32}" / "rows").mkdir(parents=True)
    (path.parent / "ranks-of-a-friend").mkdir()
    rank_files.remove_leftovers(path)
    assert len(folders(path)) == 1
    assert (path.parent / "ranks-of-a-friend").exists()
    rank_files.save(path, *state(0, 1))
    assert folders(path) == []
    assert_equal(rank_files.load(path)[0], state(0, 1)[0])


def test_a_state_that_somebody_made_by_hand(tmp_path):
    """Its digest is right: what it names is looked at before anything is opened or made room for."""
    path = tmp_path / "checkpoint" / "state.safetensors"
    path.parent.mkdir()
    good = {"size": 2, "token": "0" * 32, "files": {}, "rows": {}}
    huge = {"labels": {"shape": [2**50, 2**20], "dtype": "float32"}}
    for change, says in (
        ({"token": "../../../etc"}, "names a folder that no run writes"),
        ({"files": {"rows/../../x.safetensors": {"bytes": 1, "digest": ""}}}, "names files that no run writes"),
        ({"rows": huge}, "more rows than its files have"),
        ({"rows": {"labels": {"shape": [2], "dtype": "load"}}}, "must be one of"),
        ({"size": True}, "size"),
        ({"files": None}, "files"),
    ):
        checkpoint.save(path, {}, {"ranks": good | change})
        refused(path, ALONE, says)


def test_dtypes_are_those_of_safetensors():
    from safetensors.torch import save

    for name, dtype in spread_rows.DTYPES.items():
        assert save({name: torch.zeros(2, dtype=dtype)})


def test_a_start_that_was_cut_off_may_hold_the_folder_of_a_save(tmp_path):
    from fastmeta.training.rundir.layout import only_a_beginning, remove_beginning

    path, name = tmp_path / "run", f"ranks-{'a' * 32}"
    (path / "checkpoint" / name / "rows").mkdir(parents=True)
    (path / "checkpoint" / name / "rows" / "x.safetensors").touch()
    assert only_a_beginning(path)
    remove_beginning(path, [path])
    assert not path.exists()
    (path / "checkpoint").mkdir(parents=True)
    (path / "checkpoint" / name).symlink_to(tmp_path)  # of somebody who would like to see it emptied
    assert not only_a_beginning(path)
    remove_beginning(path, [])
    assert tmp_path.is_dir()
