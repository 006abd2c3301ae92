"""What a graph of the step cannot hold, Python around it and inside the model: it runs eagerly and says so."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

import fastmeta
from fastmeta.functional.network import Network
from fastmeta.meta.tangents import TangentPlan
from tests.support import cases
from tests.support.meta import make_labels, relative


def build(model, case, compile="trace", **kw):
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    return fastmeta.MetaStep(model, labels, optimizer, label_lr=5.0, compile=compile, **kw), labels


def test_hooks_of_the_optimizer_run():
    case = cases.make("mlp")
    step, _ = build(case.model, case)
    step(case.train, case.meta)
    assert not step._untraced
    calls = []
    step.optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    with pytest.warns(UserWarning, match="hooks of the optimizer's step are Python around the update"):
        step(case.train, case.meta)
    assert calls == ["pre"]


def test_hooks_of_all_optimizers_run():
    case, calls = cases.make("mlp"), []
    step, _ = build(case.model, case)
    hook = register_optimizer_step_post_hook(lambda *_: calls.append("post"))
    try:
        with pytest.warns(UserWarning, match="hooks of the optimizer's step"):
            step(case.train, case.meta)
    finally:
        hook.remove()
    assert calls == ["post"]


def test_hooks_of_parameters_run():
    """A hook that stops a layer's gradient stops the layer, compiled as eagerly."""
    case = cases.make("mlp")
    before = copy.deepcopy(case.model.state_dict())
    case.model[0].weight.register_hook(torch.zeros_like)
    step, _ = build(case.model, case)
    with pytest.warns(UserWarning, match="hooks of parameters are Python between the gradient and the update"):
        step(case.train, case.meta)
    assert torch.equal(case.model[0].weight, before["0.weight"])
    assert not torch.equal(case.model[2].weight, before["2.weight"])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 10)

    def forward(self, batch):
        return self.inner(batch["x"] * batch["factor"])


def test_a_batch_that_holds_more_than_tensors_runs_eagerly():
    case = cases.make("mlp")
    model, tables = Scaled().to(case.x.dtype), []
    for compile in ("off", "trace"):
        step, labels = build(copy.deepcopy(model), case, compile)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            for factor in (1, 3):
                step(({"x": case.x, "factor": factor}, case.index), ({"x": case.x_meta, "factor": factor}, case.y_meta))
        said = [str(w.message) for w in caught if "the batch holds int" in str(w.message)]
        assert len(said) == (compile == "trace")
        tables.append(labels.label_logits)
    assert torch.equal(*tables)


def test_schedules_do_not_miss_the_optimizers_step():
    case = cases.make("mlp")
    step, _ = build(case.model, case)
    schedule = torch.optim.lr_scheduler.StepLR(step.optimizer, 1)
    step(case.train, case.meta)
    assert not step._untraced
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        schedule.step()


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.temperature = nn.Linear(6, 10), 1.0

    def forward(self, x):
        return self.inner(x) / self.temperature


def test_an_attribute_that_changes_makes_another_graph():
    case = cases.make("mlp")
    model, tables = Tempered().to(case.x.dtype), []
    for compile in ("off", "trace"):
        own = copy.deepcopy(model)
        step, labels = build(own, case, compile)
        for temperature in (1.0, 0.25, 1.0):
            own.temperature = temperature
            step(case.train, case.meta)
        tables.append(labels.label_logits)
    assert step._graphs.compilations == 2
    assert relative(*tables) < 1e-12


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = nn.Linear(6, 10), 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


def test_a_model_that_counts_its_forwards_has_one_graph():
    case = cases.make("mlp")
    step, _ = build(Counting().to(case.x.dtype), case)
    for _ in range(3):
        step(case.train, case.meta)
    assert step._graphs.compilations == 1


class Caching(Scaled):
    """Keeps what depends on the batch's shape."""

    def __init__(self):
        super().__init__()
        self.ones = {}

    def forward(self, x):
        if len(x) not in self.ones:
            self.ones[len(x)] = torch.ones_like(x)
        return self.inner(x * self.ones[len(x)])


@pytest.mark.parametrize("keeps", [False, True])
def test_forwards_before_a_graph(keeps, monkeypatch):
    """Two of each batch, and more where the model keeps something of them."""
    case = cases.make("mlp")
    real, call = [], Network.__call__

    def counted(self, params, state, x):
        if not isinstance(x, FakeTensor):
            real.append(len(x))
        return call(self, params, state, x)

    monkeypatch.setattr(Network, "__call__", counted)
    model = (Caching() if keeps else copy.deepcopy(case.model)).to(case.x.dtype)
    step, _ = build(model, case)
    step.plan = TangentPlan("reverse", False, "of the test")
    step(case.train, case.meta)
    assert step.graphs
    batches = [len(case.train[1]), len(case.meta[1])]
    assert real[-4:] == batches * 2
    assert (len(real) == 4) != keeps


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_a_copy_of_the_step_goes_its_own_way(compile):
    case = cases.make("resnet")
    step, labels = build(case.model, case, compile)
    step(case.train, case.meta)
    other = copy.deepcopy(step)
    before = copy.deepcopy((case.model.state_dict(), labels.state_dict()))
    other(case.train, case.meta)
    for old, new in zip(before, (case.model.state_dict(), labels.state_dict()), strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)
    step(case.train, case.meta)
    assert torch.equal(labels.label_logits, other.labels.label_logits)
    assert all(torch.equal(a, b) for a, b in zip(case.model.parameters(), other.model.parameters(), strict=True))
