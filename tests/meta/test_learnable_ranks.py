"""Two processes that learn a loss of any kind, each with half of every batch, equal one process with all of it."""

import torch
import torch.distributed as dist

from tests.support.cases import make
from tests.support.losses import built
from tests.support.ranks import run_ranks

STEPS = 3
#: losses whose rows do not depend on each other: a normalised weighting net sees the rows of its rank alone
NAMES = ["sample weights", "corrector", "transition"]


def part(tensor, rank, size):
    return tensor.chunk(size)[rank]


def run(name, rank, size, group=None):
    case = make("mlp", 5)
    step = built(name, case, process_group=group)
    finite = []
    for i in range(STEPS):
        x = part(case.x, rank, size) * (1 + 0.1 * i)
        if i == 1 and rank == size - 1:
            x = x * float("nan")  # all ranks skip what is not finite on one
        train, meta = (x, part(case.index, rank, size)), (part(case.x_meta, rank, size), part(case.y_meta, rank, size))
        finite.append(bool(step(train, meta).finite))
    state = [s for o in (step.optimizer, step.loss_optimizer) for p in o.state.values() for s in p.values()]
    return finite, [*step.model.state_dict().values(), *step.loss.state_dict().values(), *state]


def job(rank, size, folder):
    for name in NAMES:
        torch.save(run(name, rank, size, dist.group.WORLD), f"{folder}/{name} {rank}.pt")


def test_ranks(tmp_path):
    run_ranks(job, 2, tmp_path, str(tmp_path))
    for name in NAMES:
        (finite, first), (_, second) = (torch.load(tmp_path / f"{name} {rank}.pt") for rank in range(2))
        assert finite == [True, False, True]
        assert all(map(torch.equal, first, second))  # the copies stay equal, bit for bit
        _, alone = run(name, 0, 1)
        for a, b in zip(first, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
