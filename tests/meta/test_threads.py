"""Steps in several threads, each with a model of its own: the numbers of one thread, and a torch that is as before."""

import copy
import sys
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils import checkpoint

import fastmeta
from fastmeta.functional.turns import dual_level
from fastmeta.meta import label_gradient
from tests.support import cases
from tests.support.meta import F64, make_labels


class Encoder(nn.Module):
    """Attention that has to run as plain maths, in a part that runs again in the backward."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = x.unsqueeze(1) + torch.linspace(0, 1, 3, dtype=x.dtype)[:, None]
        return self.head(checkpoint.checkpoint(self.layer, x, use_reentrant=False).mean(1))


class Repeated(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint.checkpoint(self.inner, x, use_reentrant=False)


#: name: (model, batches, options)
KINDS = {
    "attention": (Encoder, "mlp", {}),
    "dual numbers": (lambda: cases.resnet(10), "resnet", {}),
    "checkpoints": (lambda: Repeated(cases.resnet(10)), "resnet", {}),
    "double vjp": (lambda: Repeated(cases.make("mlp").model), "mlp", {"tangent": "reverse"}),
    "differences": (lambda: cases.make("mlp").model, "mlp", {"tangent": "difference"}),
    "traced": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10)), "mlp", {"compile": "trace"}),
}


def job(kind):
    """A function that makes some steps on copies of a model and labels, and returns all that moved."""
    make, batches, options = KINDS[kind] if isinstance(kind, str) else kind
    torch.manual_seed(0)
    case, model = cases.make(batches), make().to(F64)
    labels = make_labels(fastmeta.InstanceLabels, case)

    def steps():
        own, table = copy.deepcopy(model), copy.deepcopy(labels)
        step = fastmeta.MetaStep(own, table, torch.optim.SGD(own.parameters(), lr=0.5), label_lr=5.0, **options)
        results = [step(case.train, case.meta) for _ in range(3)]
        assert not step._untraced
        return [*table.buffers(), *own.state_dict().values(), *(r.meta_loss for r in results)]

    return steps


def switches():
    """What a step could leave turned in the process."""
    return {
        "checkpoint": dict(vars(checkpoint)),
        "CheckpointFunction": dict(vars(checkpoint.CheckpointFunction)),
        "functional": dict(vars(nn.functional)),
        "Module": dict(vars(nn.Module)),
        "autograd": dict(vars(torch.autograd)),
        "forward_ad": dict(vars(forward_ad)),
        "parametrize": dict(vars(nn.utils.parametrize)),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "threads": torch.get_num_threads(),
        "filters": list(warnings.filters),
        "grad": torch.is_grad_enabled(),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "dtype": torch.get_default_dtype(),
    }


@pytest.fixture
def impatient():
    """Threads change every ten microseconds, so that what could meet does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(jobs):
    """The results of functions that run in threads of their own and start at once."""
    results, errors, start = [None] * len(jobs), [], threading.Barrier(len(jobs))

    def run(k):
        try:
            start.wait()
            results[k] = jobs[k]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return results


def assert_same(a, b):
    for s, t in zip(a, b, strict=True):
        assert torch.equal(s, t)


def plain_gradients():
    """Of a checkpointed model, by `.backward()`: what a patch that was left behind made wrong."""
    torch.manual_seed(1)
    model, x = Encoder().to(F64), torch.randn(8, 6, dtype=F64)
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters()]


def test_threads_get_the_numbers_of_one(impatient):
    alone = {kind: job(kind)() for kind in KINDS}
    before, gradients = switches(), plain_gradients()
    jobs = {kind: job(kind) for kind in KINDS}
    for _ in range(2):
        for kind, result in zip(jobs, together(list(jobs.values())), strict=True):
            assert_same(result, alone[kind])
        assert switches() == before
    assert_same(plain_gradients(), gradients)


def test_plain_training_beside_steps_is_not_touched(impatient):
    """It checkpoints, and its attention is the fused one."""
    truth = plain_gradients()
    torch.manual_seed(1)  # drawn here: all threads share the global generator, which steps put back
    model, x = Encoder().to(F64), torch.randn(8, 6, dtype=F64)

    def plain():
        grads = []
        for _ in range(40):
            model.zero_grad()
            model(x).square().sum().backward()
            grads.append([p.grad.clone() for p in model.parameters()])
        return grads

    for own in together([plain, job("attention"), job("double vjp")])[0]:
        assert_same(own, truth)


def test_gradients_and_checks_in_threads(impatient):
    case = cases.make("resnet")
    models = [Repeated(cases.resnet(10)).to(F64), cases.resnet(10).to(F64)]
    labels = make_labels(fastmeta.InstanceLabels, case)

    def gradient(model):
        return [label_gradient(model, labels, case.train, case.meta, lr=0.5).grad]

    def verdicts(model):
        report = fastmeta.check(model, labels, case.train, case.meta, 0.5, timing=False)
        return [torch.tensor([row.error for row in report.rows])]

    jobs = [lambda f=f, m=m: f(m) for m in models for f in (gradient, verdicts)]
    alone, before = [j() for j in jobs], switches()
    for a, b in zip(together(jobs), alone, strict=True):
        assert_same(a, b)
    assert switches() == before


def test_dual_levels_wait_for_each_other(impatient):
    """torch alone raises, or drops tangents, where two threads are inside."""

    def tangent():
        for _ in range(50):
            with dual_level():
                x = forward_ad.make_dual(torch.ones(3), torch.full((3,), 2.0))
                assert forward_ad.unpack_dual(x * x).tangent.tolist() == [4.0] * 3

    together([tangent] * 4)
    assert forward_ad._current_level == -1


class Masked(nn.Module):
    """Dropout by numbers of its own generator, or of torch's."""

    def __init__(self, own):
        super().__init__()
        self.a, self.head = nn.Linear(6, 16), nn.Linear(16, 10)
        self.generator = torch.Generator().manual_seed(5) if own else None

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.head(h * (torch.rand(h.shape, generator=self.generator, dtype=h.dtype) < 0.5))


def test_a_generator_of_its_own_gives_each_thread_its_own_numbers(impatient):
    kind = (lambda: Masked(True), "mlp", {"tangent": "forward"})
    alone, steps = job(kind)(), job(kind)
    for result in together([steps] * 4):
        assert_same(result, alone)


def test_who_shares_torchs_generator_keeps_its_masks_within_a_step(impatient):
    """A step whose forwards drew different masks would raise; the generator moves as by steps one after the other."""
    steps = job((lambda: Masked(False), "mlp", {"tangent": "forward"}))

    def drawn_after(run):
        torch.manual_seed(7)
        run()
        return torch.rand(4)

    in_turn = drawn_after(lambda: [steps() for _ in range(4)])
    assert torch.equal(drawn_after(lambda: together([steps] * 4)), in_turn)


def test_traces_at_once_leave_modules_as_they_were(impatient):
    before, alone = switches(), job("traced")()
    for result in together([job("traced") for _ in range(3)]):
        assert_same(result, alone)
    assert switches() == before
