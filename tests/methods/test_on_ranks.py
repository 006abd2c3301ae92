"""Every method that trains on several ranks: two, each with rows of its own, learn what one learns with all rows."""

import math
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from fastmeta.distributed import Ranks
from fastmeta.methods import METHODS, mentor
from tests.support.own_rows import CLASSES, Problem, counted
from tests.support.ranks import run_ranks

EPOCHS, STEPS = 2, 4
#: name -> method, options, settings of its labels; all others are as they are by default
CASES = {name: (name, {}, {}) for name, kind in METHODS.items() if "ranks" in kind.supports}
CASES |= {
    "distill": ("distill", {"teacher": "any", "hard": 0.3, "temperature": 2.0}, {}),
    "coteaching": ("coteaching", {"forget_rate": 0.4, "ramp_epochs": 1}, {}),
    "mentornet learned": ("mentornet", {"curriculum": "learned"}, {}),
    "data_parameters": ("data_parameters", {"parameters": "both", "decay": 0.01}, {}),
    "mwnet n": ("mwnet", {"normalise": "n"}, {}),
    "emlc": ("emlc", {"injection": "random", "embedding": 4, "hidden": 4}, {}),
    "emlc adversarial": ("emlc", {"injection": "adversarial", "embedding": 4, "hidden": 4, "moves_by": "after"}, {}),
    "mlc input": ("mlc", {"features": "input", "embedding": 4, "hidden": 4}, {}),
    "instance_labels exact": ("instance_labels", {}, {"update": "exact"}),
    "instance_labels epoch": ("instance_labels", {}, {"update": "epoch"}),
    "instance_labels none": ("instance_labels", {}, {"update": "none"}),
    "instance_labels posterior": ("instance_labels", {}, {"update": "posterior"}),
    "entropy": ("instance_labels", {}, {"update": "exact", "entropy_weight": "1-H/logC", "reset": True}),
    "momentum": ("instance_labels", {}, {"update": "exact", "label_momentum": 0.8}),
    "simplex": ("instance_labels", {}, {"update": "exact", "parametrisation": "simplex", "target_prob": 0.8}),
    "class_labels": ("class_labels", {}, {"update": "exact"}),
    "class_labels epoch": ("class_labels", {}, {"update": "epoch"}),
}
del CASES["instance_labels"]
#: computed in float32, whatever the network is
ROUNDED = ("instance_labels posterior", "mentornet learned", "emlc", "emlc adversarial")
#: the only methods of the package that stay with one process
ALONE = {"replay"}

LABELS = {
    "target_prob": 0.7,
    "label_lr": None,
    "label_step": None,
    "lookahead_choice": "sgd",
    "tangent": "auto",
    "lookahead_steps": 1,
    "entropy_weight": "none",
    "reset": False,
    "warmup_epochs": 0,
    "parametrisation": "softmax",
    "label_momentum": 0,
    "dtype": "float64",
    "steps": 3,
    "clean_lr": 0.05,
    "clean_batch": 5,
    "eta": None,
    "mix": 0.3,
    "margin": 2.0,
    "trust": None,
    "store": "device",
}


class Fake:
    """What a method asks of the trainer, of this rank."""

    def __init__(self, ranks, of_labels):
        self.ranks, self.problem, self.num_classes = ranks, Problem(), CLASSES
        a, b = self.rows = self.problem.own(ranks)
        self.targets, self.device, self.noise_rate = self.problem.targets[a:b], torch.device("cpu"), None
        self.epochs, self.steps_per_epoch, self.steps, self.batch_size = EPOCHS, STEPS, EPOCHS * STEPS, 4
        self.input_shape, self.transform, self.totals = (6,), None, None
        labels = SimpleNamespace(**{**LABELS, **of_labels}, moves_after=lambda epoch, epochs: True)
        self.config = SimpleNamespace(
            labels=labels,
            optim=SimpleNamespace(lr=0.3),
            micro_batch=None,
            mixup=None,
            compile="off",
            approx_choice=None,
            watch_choice=None,
            seed=0,
            epochs=EPOCHS,
            precision="fp32",
        )
        self.made = []

    def network_input(self, x):
        return x

    def fixed_samples(self):
        a, b = self.rows
        return ((self.problem.x[a + i], i) for i in torch.arange(b - a).split(3))

    def model(self, name="model"):
        torch.manual_seed(len(name))
        body = torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, CLASSES)
        self.made.append(torch.nn.Sequential(*body).double())
        return self.made[-1]

    def teacher(self, path):
        return self.model("the teacher")

    def optimizer(self, params, name="optimizer"):
        return torch.optim.SGD(params, lr=0.3, momentum=0.9, nesterov=True, weight_decay=1e-3)

    def samples(self, epoch):
        problem = self.problem
        return SimpleNamespace(
            epoch=epoch,
            train=self.fixed_samples,
            clean_targets=problem.y_meta,
            clean_rows=problem.x_meta.__getitem__,
            clean=lambda count: [(problem.x_meta[k : k + 4], problem.y_meta[k : k + 4]) for k in range(count)],
        )


@mock.patch.object(mentor, "STEPS", 20)
def trained(case, group):
    """Networks, rows of this rank, all else that the method keeps, and what its figures and losses are."""
    name, options, of_labels = CASES[case]
    context = Fake(Ranks(group), of_labels)
    torch.manual_seed(0)
    method = METHODS[name](METHODS[name].Config(**options))
    method.setup(context)
    for part in (getattr(method, "loss", None), method.labels):
        if isinstance(part, torch.nn.Module):
            part.double()
    told = []
    for number in range(EPOCHS * STEPS):
        rows = context.problem.batch(number, context.ranks)
        meta = context.problem.clean(context.ranks) if method.uses_meta_batch else None
        x = context.problem.x[rows].clone()
        if number == 2 and context.ranks.rank == context.ranks.size - 1:
            x[-1] = torch.nan  # the last row of the batch of all
        outcome = method.step(SimpleNamespace(x=x, index=rows - context.rows[0], meta=meta))
        finite = outcome.train_loss.isfinite() if outcome.finite is None else outcome.finite
        assert bool(finite) == (number != 2)
        if (number + 1) % STEPS == 0:
            method.end_epoch(context.samples((number + 1) // STEPS))
            told.append({k: v for k, v in method.figures().items() if isinstance(v, int | float)})
    by_row, shared = {}, {}
    for key, part in method.stateful().items():
        state = part.state_dict()
        state |= dict(part.named_buffers()) if isinstance(part, torch.nn.Module) else {}
        for k, v in state.items():
            if isinstance(v, torch.Tensor):
                (by_row if k in getattr(part, "row_state", ()) else shared)[f"{key} {k}"] = v
            elif isinstance(v, int | float):
                shared[f"{key} {k}"] = torch.tensor(v)
    networks = [p.detach() for net in context.made for p in net.parameters()]
    return networks, by_row, shared, told


def job(rank, size, folder):
    for case in CASES:
        torch.save(trained(case, dist.group.WORLD), f"{folder}/{case} {rank}.pt")
    torch.save(sent_by_a_plain_step(dist.group.WORLD), f"{folder}/sent {rank}.pt")


def sent_by_a_plain_step(group):
    context = Fake(Ranks(group), {})
    method = METHODS["elr"]()
    method.setup(context)
    rows = context.problem.batch(0, context.ranks)
    with counted() as sent:
        method.step(SimpleNamespace(x=context.problem.x[rows], index=rows - context.rows[0], meta=None))
    return sent.calls, sent.bytes, sum(p.numel() for p in context.made[0].parameters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods-on-ranks")
    run_ranks(job, 2, folder, str(folder))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(case, folder):
    parts = [torch.load(folder / f"{case} {rank}.pt") for rank in range(2)]
    networks, by_row, shared, told = trained(case, None)
    rtol, atol = (1e-4, 1e-5) if case in ROUNDED else (1e-12, 1e-12)

    def close(a, b, what):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{what}: {text}")

    assert all(map(torch.equal, parts[0][0], parts[1][0]))  # the copies stay equal, bit for bit
    for a, b in zip(parts[0][0], networks, strict=True):
        close(a, b, "network")
    for key, t in by_row.items():
        close(torch.cat([part[1][key] for part in parts]), t, key)
    for key, t in shared.items():
        for part in parts:
            close(part[2][key], t, key)
    for part in parts:
        for own, of_one in zip(part[3], told, strict=True):
            assert own.keys() == of_one.keys()
            for key, value in of_one.items():
                assert math.isclose(own[key], value, rel_tol=max(rtol, 1e-9), abs_tol=1e-9), key


def test_a_plain_step_sends_one_gradient_and_two_numbers(folder):
    for rank in range(2):
        calls, sent, parameters = torch.load(folder / f"sent {rank}.pt")
        assert calls == {"all_reduce": 1}
        assert sent == {"all_reduce": 8 * (parameters + 2)}


def test_what_does_not_train_on_ranks_says_why():
    assert {name for name, kind in METHODS.items() if "ranks" not in kind.supports} == ALONE
    for name in ALONE:
        assert METHODS[name].not_on_ranks != METHODS["onehot"].not_on_ranks
