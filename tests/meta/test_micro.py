"""Batches in pieces: the same step to rounding, less memory, and what BatchNorm and random layers make of it."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastmeta
from fastmeta import models
from fastmeta.measure import peak_bytes
from fastmeta.meta.micro import pieces_of, take
from tests.support import cases
from tests.support.meta import F64, FAMILIES, make_labels, relative
from tests.support.pairs import parametrize_some
from tests.support.pieces import assert_equal, learned, steps

WAYS = ["forward", "reverse", "difference"]


@parametrize_some(
    2,
    name=["mlp", "groupnorm", "attention", "embedding", "lstm"],
    family=FAMILIES,
    tangent=["forward", "reverse"],
    most=[1, 3, 10, 19],
)
def test_pieces_give_the_whole_step(name, family, tangent, most):
    """8 train and 12 meta rows: 10 cuts the meta batch alone, 19 nothing, but the train graph is built twice."""
    case = cases.make(name)
    start = learned(make_labels(family, case))
    whole = steps(case, family, tangent=tangent)
    assert relative(learned(whole[1]), start) > 1e-4
    assert_equal(steps(case, family, tangent=tangent, micro_batch=most), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_repeated_rows_and_weights(family):
    case = cases.make("mlp")
    kw = {"index": torch.tensor([3, 1, 3, 3, 0, 1, 2, 5]), "weight": torch.rand(8, dtype=F64)}
    assert_equal(steps(case, family, micro_batch=3, **kw), steps(case, family, **kw))


@pytest.mark.parametrize("approx", ["delayed", "every:2", "last:1", "difference"])
def test_approximations(approx):
    case = cases.make("groupnorm")
    bound = 1e-4 if approx == "difference" else 1e-10
    kw = {"count": 3, "approx": approx}
    assert_equal(
        steps(case, fastmeta.InstanceLabels, micro_batch=3, **kw), steps(case, fastmeta.InstanceLabels, **kw), bound
    )


def test_a_dict_of_tensors_is_cut_where_it_has_rows():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cases.mlp(10)

        def forward(self, batch):
            return self.inner(batch["x"] * batch["scale"])

    case = cases.make("mlp")
    case.model = Two().double()
    case.x = {"x": case.x, "scale": torch.tensor(1.5, dtype=F64)}
    case.x_meta = {"x": case.x_meta, "scale": torch.tensor(0.5, dtype=F64)}
    assert_equal(steps(case, FAMILIES[0], micro_batch=3), steps(case, FAMILIES[0]))


@pytest.mark.parametrize("tangent", WAYS)
def test_each_piece_keeps_its_dropout_mask(tangent):
    """Against fixed masks: three train pieces draw before the four meta pieces, and every later pass sees the same."""

    class Drawn(nn.Module):
        def forward(self, h):
            return h * (torch.rand(h.shape, dtype=F64) < 0.5).double() * 2

    class Fixed(nn.Module):
        def __init__(self, masks):
            super().__init__()
            self.masks = masks

        def forward(self, h):
            return h * self.masks[len(h)]

    case = cases.make("mlp")
    torch.manual_seed(3)
    parts = [
        torch.cat([(torch.rand(r, 16, dtype=F64) < 0.5).double() * 2 for r in rows]) for rows in ((2, 3, 3), (3,) * 4)
    ]
    whole, cut = copy.deepcopy(case), copy.deepcopy(case)
    whole.model.insert(2, Fixed({8: parts[0], 12: parts[1]}))
    cut.model.insert(2, Drawn())
    truth = steps(whole, FAMILIES[0], 1, tangent=tangent)
    torch.manual_seed(3)
    got = steps(cut, FAMILIES[0], 1, tangent=tangent, micro_batch=3)
    assert_equal(got, truth, 1e-4 if tangent == "difference" else 1e-10)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    torch.rand(8 + 12, 16, dtype=F64)
    assert torch.equal(torch.get_rng_state(), after)


def test_batchnorm_has_the_statistics_of_each_piece_and_says_so():
    case = cases.make("resnet")
    labels = make_labels(FAMILIES[0], case)
    truth = copy.deepcopy(case.model)
    for rows in (slice(0, 4), slice(4, 8)):
        truth(case.x[rows])
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, micro_batch=4)
    with pytest.warns(UserWarning, match="BatchNorm in training mode, whose statistics will be those of each piece"):
        result = step(case.train, case.meta)
    assert bool(result.finite)
    for (key, new), old in zip(case.model.named_buffers(), truth.buffers(), strict=True):
        assert torch.allclose(new, old, rtol=1e-12), key  # once per piece, in order; the meta pieces move nothing
        if key.endswith("num_batches_tracked"):
            assert int(new) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        step(case.train, case.meta)  # said once


@pytest.mark.parametrize("tangent", WAYS)
def test_batchnorm_is_exact_while_no_batch_is_cut(tangent):
    case = cases.make("resnet")
    bound = 1e-4 if tangent == "difference" else 1e-10
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        got = steps(case, FAMILIES[0], tangent=tangent, micro_batch=12)
        assert_equal(got, steps(case, FAMILIES[0], tangent=tangent), bound)
    assert int(got[0][1].num_batches_tracked) == 2


def test_batchnorm_in_evaluation_mode_is_exact():
    case = cases.make("resnet")
    case.model(case.x)
    case.model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_equal(steps(case, FAMILIES[0], micro_batch=3), steps(case, FAMILIES[0]))


def test_what_is_not_finite_in_one_piece_changes_nothing():
    case = cases.make("mlp")
    case.x[6, 0] = torch.nan
    before = copy.deepcopy(case.model.state_dict())
    model, labels, results, step = steps(case, FAMILIES[0], 1, micro_batch=3)
    assert not bool(results[0].finite)
    assert int(step.nonfinite_steps) == 1
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(learned(labels), learned(make_labels(FAMILIES[0], case)))


def groupnorm_resnet():
    model = models.build("resnet20", num_classes=10, input_shape=(3, 16, 16))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(4, child.num_features))
    return model


def image_step(tangent, size, **kw):
    torch.manual_seed(0)
    labels = fastmeta.InstanceLabels(torch.randint(10, (16,)), 10)
    model = groupnorm_resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=1.0, tangent=tangent, unique_index=True, **kw)
    x, x_meta = torch.randn(16, 3, size, size), torch.randn(32, 3, size, size)
    batches = (x, torch.arange(16)), (x_meta, torch.randint(10, (32,)))
    step(*batches)
    return lambda: step(*batches)


def test_peak_memory_falls():
    """One graph at a time the forward way, unasked; the reverse way by asking; and in quarters and eighths."""
    cpu = torch.device("cpu")
    both = peak_bytes(image_step("reverse", 16), cpu)
    in_turn = peak_bytes(image_step("forward", 16), cpu)
    assert in_turn < 0.6 * both
    assert peak_bytes(image_step("forward", 16, micro_batch=32), cpu) == pytest.approx(in_turn, rel=0.01)
    assert peak_bytes(image_step("reverse", 16, micro_batch=32), cpu) < 0.85 * both
    for tangent in ("forward", "reverse"):
        assert peak_bytes(image_step(tangent, 16, micro_batch=4), cpu) < 0.4 * both


@pytest.mark.parametrize(("tangent", "most", "more"), [("forward", 32, 0), ("forward", 4, 1), ("reverse", 32, 4)])
def test_extra_work(tangent, most, more):
    """In train forwards: one for the last backward, and by the reverse way one with its backward for the tangent."""

    def flops(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    model = groupnorm_resnet()
    forward = flops(lambda: model(torch.zeros(16, 3, 8, 8)))
    extra = flops(image_step(tangent, 8, micro_batch=most)) - flops(image_step(tangent, 8))
    assert extra / forward == pytest.approx(more, abs=0.1)


def test_pieces():
    assert [s.stop - s.start for s in pieces_of(9, 4)] == [3, 3, 3]
    assert [s.stop - s.start for s in pieces_of(8, 3)] == [2, 3, 3]
    assert pieces_of(8, None) == pieces_of(8, 8) == [slice(0, 8)]
    x = torch.arange(6)
    assert take(x, slice(0, 6), 6) is x
    assert take((x, torch.tensor(1)), slice(2, 4), 6)[0].tolist() == [2, 3]


def test_compiled_steps_run_eagerly_and_say_why():
    case = cases.make("mlp")
    labels = make_labels(FAMILIES[0], case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, micro_batch=4, compile="trace")
    with pytest.warns(UserWarning, match="micro_batch builds train graphs more than once"):
        step(case.train, case.meta)
    assert "runs eagerly: micro_batch" in step.explain()
    with pytest.raises(ValueError, match="micro_batch must be None or a whole number of rows from 1 on, got 0"):
        fastmeta.MetaStep(case.model, labels, optimizer, micro_batch=0)
