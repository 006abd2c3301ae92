"""Two processes, each with half of every batch, equal one process with all of it."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

import fastmeta
from tests.support import cases
from tests.support.meta import FAMILIES, make_labels, optimizers, relative
from tests.support.ranks import run_ranks

STEPS = 3


def rounded(case):
    """A bfloat16 table, whose rows are rounded stochastically."""
    return fastmeta.InstanceLabels(case.targets, case.num_classes, 0.5, dtype=torch.bfloat16, seed=5)


def build(name, family, tangent, group=None, given=True):
    case = cases.make(name, dtype=torch.float32 if family is rounded else torch.float64)
    labels = rounded(case) if family is rounded else make_labels(family, case)
    optimizer = optimizers(list(case.model.parameters()))["nesterov"]
    step = fastmeta.MetaStep(
        case.model,
        labels,
        optimizer,
        label_lr=(2.0 if family is fastmeta.ClassLabels else 20.0) if given else None,
        lookahead="optimizer",
        tangent=tangent,
        process_group=group,
    )
    return case, labels, step


def part(tensor, rank, size):
    return tensor.chunk(size)[rank]


def run(case, step, rank, size, poison=False):
    results = []
    for i in range(STEPS):
        x = part(case.x, rank, size) * (1 + 0.1 * i)
        if poison and i == 1 and rank == size - 1:
            x = x * float("nan")
        train = x, part(case.index, rank, size)
        results.append(step(train, (part(case.x_meta, rank, size), part(case.y_meta, rank, size))))
    return results


JOBS = {
    f"{name}-{family.family}-{tangent}": (name, family, tangent, False, True)
    for name, tangent in (("mlp", "reverse"), ("groupnorm", "forward"))
    for family in FAMILIES
}
JOBS["poisoned"] = ("mlp", fastmeta.InstanceLabels, "reverse", True, True)
JOBS["rounded"] = ("mlp", rounded, "reverse", False, True)
JOBS |= {f"normalised {f.family}": ("mlp", f, "reverse", False, False) for f in FAMILIES}
JOBS["normalised poisoned"] = ("mlp", fastmeta.InstanceLabels, "reverse", True, False)


def worker(rank, size, out):
    for key, (name, family, tangent, poison, given) in JOBS.items():
        case, labels, step = build(name, family, tangent, dist.group.WORLD, given)
        results = run(case, step, rank, size, poison)
        flags = [bool(r.finite) for r in results]
        norms = [r.label_grad_norm for r in results]
        torch.save((labels.state_dict(), case.model.state_dict(), flags, norms), f"{out}/{key}-{rank}.pt")


def assert_rounded_alike(labels, learned):
    """Both ranks hold the same bits; one process has them too, but for the draws that a last bit of float32 decides."""
    assert torch.equal(learned[0]["label_logits"], learned[1]["label_logits"])
    assert learned[0]["label_step"] == learned[1]["label_step"] == labels.label_step == STEPS
    differ = learned[0]["label_logits"] != labels.label_logits
    assert differ.double().mean() < 0.02
    torch.testing.assert_close(learned[0]["label_logits"], labels.label_logits)


def test_two_processes_equal_one(tmp_path):
    run_ranks(worker, 2, tmp_path, str(tmp_path))

    for key, (name, family, tangent, poison, given) in JOBS.items():
        case, labels, step = build(name, family, tangent, given=given)
        start = copy.deepcopy(labels.state_dict())
        truth = run(case, step, 0, 1, poison)
        if family is rounded:
            assert not torch.equal(labels.label_logits, start["label_logits"])
            assert_rounded_alike(labels, [torch.load(f"{tmp_path}/{key}-{rank}.pt")[0] for rank in range(2)])
            continue
        table = "label_logits" if family is fastmeta.InstanceLabels else "alpha"
        assert relative(labels.state_dict()[table], start[table]) > 1e-3
        for rank in range(2):
            learned, model, flags, norms = torch.load(f"{tmp_path}/{key}-{rank}.pt")
            assert flags == [bool(r.finite) for r in truth] == [True, not poison, True]
            assert relative(learned[table], labels.state_dict()[table]) < 1e-10, key
            for a, b in zip(model.values(), case.model.state_dict().values(), strict=True):
                assert relative(a, b) < 1e-10, key
            for norm, result in zip(norms, truth, strict=True):
                if bool(result.finite):
                    assert torch.allclose(norm, result.label_grad_norm, rtol=1e-5), key


@pytest.mark.parametrize("size", [1])
def test_a_group_of_one_is_no_group(size, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=size)
    try:
        (case, labels, step), (other, alone, plain) = (
            build("mlp", fastmeta.InstanceLabels, "reverse", group) for group in (dist.group.WORLD, None)
        )
        run(case, step, 0, 1)
        run(other, plain, 0, 1)
        assert torch.equal(labels.label_logits, alone.label_logits)
    finally:
        dist.destroy_process_group()


def test_an_optimizer_made_beside_a_group_does_not_keep_it(tmp_path):
    """Torch's does, with the threads of the group, unless fastmeta was imported before there was one."""
    script = f"""
import inspect, sys
import fastmeta, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://{tmp_path}/rendezvous", rank=0, world_size=1)
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
function = sys.modules["torch.distributed.nn.functional"].all_reduce
print("kept", inspect.signature(function).parameters["group"].default)
dist.destroy_process_group()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["kept None"], done.stderr
