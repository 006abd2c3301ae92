"""The captured step without a GPU: a stand-in for CUDA graphs replays the step on the memory that it was recorded with.

What a real capture adds (streams, refusals of what cannot be captured) is tested on a device alone.
"""

import copy
from contextlib import contextmanager

import pytest
import torch

import fastmeta
from fastmeta.functional.network import copy_all_
from fastmeta.meta.engines.captured import record_cuda
from fastmeta.meta.engines.traced import GraphStep
from tests.support import cases
from tests.support.capture import Recorder, states
from tests.support.meta import FAMILIES, make_labels, relative

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def capturing(case, labels, record, **kw):
    """A MetaStep whose traced step is recorded by `record`."""
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=3.0, compile="trace", unique_index=True, **kw)
    step(case.train, case.meta)
    step._graphs.record = record
    return step


@pytest.mark.parametrize(("name", "family"), [("resnet", fastmeta.InstanceLabels), ("mlp", fastmeta.ClassLabels)])
def test_replays_are_steps(name, family):
    """Same parameters, momentum, buffers and labels as without capture, over batches, rates and shapes."""
    plain, recorded = cases.make(name), cases.make(name)
    record = Recorder()
    a = capturing(plain, make_labels(family, plain), None)
    b = capturing(recorded, make_labels(family, recorded), record)
    generator = torch.Generator().manual_seed(3)
    for lr, label_lr in ((0.1, 3.0), (0.1, 3.0), (0.05, 4.0), (0.01, 4.0)):
        order = torch.randperm(len(plain.index), generator=generator)
        results = []
        for step, case in ((a, plain), (b, recorded)):
            step.optimizer.param_groups[0]["lr"], step.label_lr = lr, label_lr
            # new memory for each batch, as a loader gives it
            results.append(step((case.x[order].clone(), case.index[order].clone()), case.meta))
        assert all(torch.equal(x, y) for x, y in zip(vars(results[0]).values(), vars(results[1]).values(), strict=True))
    assert (b._graphs.captures, record.replays) == (1, 4)
    b((recorded.x[:5], recorded.index[:5]), recorded.meta)
    a((plain.x[:5], plain.index[:5]), plain.meta)
    assert b._graphs.captures == 2
    for x, y in zip(states(a), states(b), strict=True):
        assert torch.equal(x, y)


def test_results_outlive_the_next_replay():
    case = cases.make("mlp")
    step = capturing(case, make_labels(fastmeta.InstanceLabels, case), Recorder())
    first = step(case.train, case.meta)
    kept = {k: t.clone() for k, t in vars(first).items()}
    step(case.train, case.meta)
    assert all(torch.equal(kept[k], t) for k, t in vars(first).items())


def test_state_that_moved_is_captured_anew():
    """A graph reads addresses: a parameter with other memory must not be missed."""
    case = cases.make("mlp")
    step = capturing(case, make_labels(fastmeta.InstanceLabels, case), Recorder())
    step(case.train, case.meta)
    parameter = next(case.model.parameters())
    parameter.data = parameter.data.clone()
    before = parameter.detach().clone()
    step(case.train, case.meta)
    assert step._graphs.captures == 2
    assert not torch.equal(parameter, before)


def test_what_cannot_be_captured_runs_compiled_and_moves_nothing_before(caplog):
    case = cases.make("resnet")
    labels = make_labels(fastmeta.InstanceLabels, case)

    def refuse(body):
        body()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    step = capturing(case, labels, refuse)
    twin, twin_labels = copy.deepcopy((case, labels))
    optimizer = torch.optim.SGD(twin.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    reference = fastmeta.MetaStep(twin.model, twin_labels, optimizer, label_lr=3.0, compile="trace", unique_index=True)
    step(case.train, case.meta)
    reference(twin.train, twin.meta)
    for x, y in zip(states(step), states(reference), strict=True):
        assert torch.equal(x, y)
    (told,) = [record for record in caplog.records if record.name == "fastmeta.compile"]
    assert told.levelname == "WARNING"  # which Python shows where nobody has set up logging
    end = "not captured in a CUDA graph: RuntimeError: operation not permitted when stream is capturing"
    assert told.getMessage().endswith(end)
    assert "not captured in a CUDA graph: RuntimeError: operation not permitted" in step.explain()


def test_a_capture_that_fails_gives_the_stream_back(monkeypatch):
    """torch's own context leaves the capture's stream as the current one."""

    class Stream:
        def wait_stream(self, other):
            pass

    main, running = Stream(), []
    running.append(main)

    @contextmanager
    def on(stream):
        before = running[-1]
        running.append(stream)
        try:
            yield
        finally:
            running.append(before)

    class Refusing:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            running.append("capture")

        def __exit__(self, *_):
            raise RuntimeError("operation failed due to a previous error during capture")

    for name, stand_in in {
        "Stream": Stream,
        "stream": on,
        "current_stream": lambda: running[-1],
        "CUDAGraph": object,
        "graph": Refusing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with pytest.raises(RuntimeError, match="during capture"):
        record_cuda(list)
    assert running[-1] is main


def test_copies_are_grouped(monkeypatch):
    """By dtype and layout, without which one odd tensor makes a launch of every other."""
    values = [torch.randn(3), torch.tensor(5), torch.randn(2, 4), torch.randn(4, 2).T, torch.tensor(True)]
    targets = [torch.zeros_like(t) for t in values]
    targets[3] = torch.zeros(2, 4)
    calls = []
    copy_ = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, of: (calls.append(len(to)), copy_(to, of)))
    copy_all_(targets, values)
    assert all(map(torch.equal, targets, values))
    assert calls == [2, 1, 1, 1]


class Sums:
    def __init__(self):
        self.values = torch.zeros(3, dtype=torch.float64)

    def added(self, values, result, targets):
        finite = result.finite.to(torch.float64)
        right = (result.logits.argmax(1) == targets).sum()
        return values + torch.stack([finite, 1 - finite, right.to(torch.float64)])


@pytest.mark.parametrize("way", ["eager", "traced", "recorded"])
def test_totals_are_part_of_the_step(way):
    case = cases.make("mlp")
    labels = make_labels(fastmeta.ClassLabels, case)
    sums = Sums()
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(
        case.model, labels, optimizer, label_lr=1.0, totals=sums, compile="off" if way == "eager" else "trace"
    )
    right = 0
    bad = case.x.clone()
    bad[0, 0] = torch.nan
    for k, x in enumerate((case.x, bad, case.x, case.x)):
        if k == 2 and way == "recorded":
            step._graphs.record = Recorder()
        result = step((x, case.index), case.meta)
        right += int((result.logits.argmax(1) == labels.targets[case.index]).sum())
    assert sums.values.tolist() == [3, 1, right]
    if way != "eager":
        names = [n.name for n in step._graphs.graphs[0].graph.nodes]
        assert any("argmax" in name for name in names)


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["resnet", "mlp"])
def test_a_cuda_graph_is_the_step(name, family):
    """Compiled, captured and replayed on a GPU: parameters, buffers and labels as in eager float64."""
    learned = []
    for compile in ("off", "full"):
        case = cases.make(name)
        labels = make_labels(family, case).cuda()
        case.model.cuda()
        optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
        step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=3.0, compile=compile, unique_index=True)
        for _ in range(4):
            step((case.x.cuda(), case.index.cuda()), (case.x_meta.cuda(), case.y_meta.cuda()))
        learned.append(states(step))
    assert isinstance(step._graphs, GraphStep)
    assert step._graphs.captures == 1, step.explain()
    for a, b in zip(*learned, strict=True):
        assert relative(a.double(), b.double()) < 1e-9
