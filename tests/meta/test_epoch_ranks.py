"""Two processes with unequal parts of the training set move a loss as one process with all of it."""

import pytest
import torch
import torch.distributed as dist

import fastmeta
from tests.support.cases import make
from tests.support.losses import loss_of, optimizers
from tests.support.ranks import run_ranks

#: rows of the train batch by rank, and a loss whose rows do not depend on each other
PARTS = {1: [slice(0, 8)], 2: [slice(0, 5), slice(5, 8)]}
NAMES = ["instance", "class", "sample weights", "corrector"]


def made(name, group):
    case = make("mlp", 5)
    optimizer = None
    if name in ("instance", "class"):
        family = fastmeta.InstanceLabels if name == "instance" else fastmeta.ClassLabels
        loss = family(case.targets, 5, 0.7, dtype=torch.float64)
    else:
        loss = loss_of(name, case)
        optimizer = optimizers("sgd", loss.parameters())
    options = {"steps": 3, "lr": 0.1, "loss_optimizer": optimizer, "process_group": group}
    return case, fastmeta.EpochLookahead(case.model, loss, **options)


def moved(name, rank, size, group=None):
    """What three moves tell, and the loss behind the first and the last."""
    case, lookahead = made(name, group)
    x, index = (t[PARTS[size][rank]] for t in case.train)
    train = list(zip(x.split(2), index.split(2), strict=True))
    x_meta, y_meta = (t.chunk(size)[rank] for t in case.meta)
    results = [lookahead.update(train, (x_meta, y_meta))]
    first = [t.clone() for t in lookahead.loss.state_dict().values()]
    results.append(lookahead.update([] if rank else train, (x_meta, y_meta)))  # a rank may have no rows
    bad = x_meta * (float("nan") if rank == size - 1 else 1)
    results.append(lookahead.update(train, (bad, y_meta)))  # none moves by what is not finite on one
    told = [(r.finite, r.rows, r.clean_rows, r.change, r.alignment, r.meta_loss[0]) for r in results[:2]]
    return told, results[2].finite, first, list(lookahead.loss.state_dict().values())


def job(rank, size, folder):
    for name in NAMES:
        torch.save(moved(name, rank, size, dist.group.WORLD), f"{folder}/{name} {rank}.pt")


def test_ranks(tmp_path):
    run_ranks(job, 2, tmp_path, str(tmp_path))
    for name in NAMES:
        told, last, first, end = torch.load(tmp_path / f"{name} 0.pt")
        told_too, _, _, end_too = torch.load(tmp_path / f"{name} 1.pt")
        assert told == told_too
        assert not last
        assert all(map(torch.equal, end, end_too))  # the copies stay equal, bit for bit
        assert [t[:3] for t in told] == [(True, 8, 36), (True, 5, 36)]
        alone, _, of_one, _ = moved(name, 0, 1)
        assert told[0][3:] == pytest.approx(alone[0][3:], rel=1e-9)
        for a, b in zip(first, of_one, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
