"""A transform inside the step: the step on batches that it would have made, in every way to run it."""

import copy

import pytest
import torch

import fastmeta
from fastmeta.data import TrainBatches, Transform
from fastmeta.meta.engines.captured import Captured
from tests.support import cases
from tests.support.capture import Recorder, states
from tests.support.meta import F64, FAMILIES, make_labels, relative
from tests.support.pairs import parametrize_some

WAYS = ["eager", "traced", "recorded"]


def image_batches(seed=0, device="cpu"):
    """(rows, step) -> float64 crops of 40 images as the "resnet" case takes them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (40, 4, 4, 2), dtype=torch.uint8, generator=generator).to(device)
    transform = Transform.of(images, padding=1, pad_mode="reflect", flip=True)
    return TrainBatches(images, transform, seed=11, dtype=F64)


def make_step(case, family, way="eager", **kw):
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    labels = make_labels(family, case)
    compile = "off" if way == "eager" else "trace"
    return fastmeta.MetaStep(case.model, labels, optimizer, label_lr=3.0, compile=compile, unique_index=True, **kw)


def record(step):
    step._graphs.record = Recorder()


@parametrize_some(1, way=WAYS, family=FAMILIES, approx=[None, "every:2", "delayed"])
def test_equals_the_step_on_loaded_batches(way, family, approx):
    load = image_batches()
    plain_case, case = cases.make("resnet"), cases.make("resnet")
    plain = make_step(plain_case, family, approx=approx)
    step = make_step(case, family, way, approx=approx, transform=load)
    rows, meta_rows = case.index, torch.arange(28, 40)
    for k in range(4):
        if k == 2 and way == "recorded":
            record(step)
        counter = torch.tensor(k)
        x, x_meta = (load((r, counter), load.tensors) for r in (rows, meta_rows))
        expected = plain((x, case.index), (x_meta, case.y_meta))
        got = step(((rows, counter), case.index), ((meta_rows, counter), case.y_meta))
        for name, value in vars(got).items():
            tolerance = 1e-6 if name == "label_grad_norm" else 1e-12  # the norm is float32 in a graph
            known = getattr(expected, name).to(value.dtype)
            assert torch.allclose(value, known, rtol=tolerance, atol=tolerance, equal_nan=True), name
        if way == "eager":
            assert torch.equal(got.logits, expected.logits)
    for mine, other in zip(states(step), states(plain), strict=True):
        assert torch.allclose(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["traced", "recorded"])
def test_another_step_is_another_crop_of_the_same_graph(way):
    case, load = cases.make("resnet"), image_batches()
    step = make_step(case, fastmeta.InstanceLabels, way, transform=load)
    rows, meta_rows = case.index, torch.arange(28, 40)

    def take(counter):
        return step(((rows, counter), case.index), ((meta_rows, counter), case.y_meta)).logits

    def logits(counter):
        """At the state where the step stands: what it moves is put back."""
        kept = [t.clone() for t in states(step)]
        result = take(torch.tensor(counter))
        with torch.no_grad():
            for t, before in zip(states(step), kept, strict=True):
                t.copy_(before)
        return result

    take(torch.tensor(0))
    if way == "recorded":
        record(step)
    first, second, again = logits(0), logits(1), logits(0)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert step._graphs.compilations == 1
    assert step._graphs.captures == (1 if way == "recorded" else 0)


def test_a_captured_step_reads_the_images_where_they_lie():
    """And copies rows and counter alone; images elsewhere are captured anew."""
    case, load = cases.make("resnet"), image_batches()
    step = make_step(case, fastmeta.InstanceLabels, "recorded", transform=load)
    rows, meta_rows, counter = case.index, torch.arange(28, 40), torch.tensor(3)

    def take():
        return step(((rows, counter), case.index), ((meta_rows, counter), case.y_meta))

    take()
    record(step)
    take()
    ((kept,),) = step._graphs._graphs.values()
    (captured,) = kept.captured.values()
    assert all(t.numel() <= len(meta_rows) for t in captured._batch)
    step.transform = step._graphs.transform = image_batches(seed=1)
    x = step.transform((rows, counter), step.transform.tensors)
    model = copy.deepcopy(case.model)
    assert torch.allclose(take().logits, model(x), rtol=1e-10)
    assert step._graphs.captures == 2


def test_a_counter_on_the_host_is_not_captured():
    """Its value would be in the graph for good."""
    batch = [torch.zeros(3), torch.zeros((), dtype=torch.int64, device="meta")]
    with pytest.raises(RuntimeError, match="a part of the batch is on the host"):
        Captured(lambda flat: [], batch, [], lambda: None, Recorder())


def test_no_gradient_flows_through_it():
    case = cases.make("mlp")

    class Scaled:
        factor = torch.full((), 2.0, dtype=F64, requires_grad=True)
        tensors = (factor,)

        def __call__(self, x, tensors):
            made = x * tensors[0]
            assert not made.requires_grad
            return made

    step = make_step(case, fastmeta.ClassLabels, transform=Scaled())
    step(case.train, case.meta)
    assert Scaled.factor.grad is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_follows_the_counter():
    load, moved = image_batches(device="cuda"), []
    for compile in ("off", "full"):
        case = cases.make("resnet")
        labels = make_labels(fastmeta.InstanceLabels, case).cuda()
        optimizer = torch.optim.SGD(case.model.cuda().parameters(), lr=0.1, momentum=0.9)
        step = fastmeta.MetaStep(
            case.model, labels, optimizer, label_lr=3.0, compile=compile, unique_index=True, transform=load
        )
        index, y_meta, meta_rows = case.index.cuda(), case.y_meta.cuda(), torch.arange(28, 40, device="cuda")
        for k in range(4):
            counter = torch.full((), k, device="cuda")
            step(((index, counter), index), ((meta_rows, counter), y_meta))
        moved.append(states(step))
    assert step._graphs.captures == 1, step.explain()
    for a, b in zip(*moved, strict=True):
        assert relative(a.double(), b.double()) < 1e-9
