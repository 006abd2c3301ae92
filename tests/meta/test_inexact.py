"""A tangent that is inexact although an exact one was asked for: a warning that names the layer, everywhere, once."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from fastmeta.meta import label_gradient
from tests.support import cases
from tests.support.layers import OnceDifferentiable
from tests.support.meta import F64, make_labels


class Warped(nn.Module):
    """What stands in the way is a function in a layer's forward."""

    def forward(self, x):
        grid = torch.stack(torch.meshgrid(*[torch.linspace(-0.9, 0.9, 4, dtype=x.dtype)] * 2, indexing="ij"), -1)
        return F.grid_sample(x.view(-1, 1, 2, 3), grid.expand(len(x), -1, -1, -1), align_corners=False).flatten(1)


class Bagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(12, 8), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.tanh(self.bag((x.abs() * 3).long().clamp(max=11))))


class Odd(nn.Module):
    def forward(self, x):
        return OnceDifferentiable.apply(x)


#: grid_sample has a second derivative from torch 2.14 on
OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14)
MODELS = {
    r"bag \(EmbeddingBag\)": Bagged,
    r"1\.0 \(Odd\)": lambda: nn.Sequential(nn.Linear(6, 6), nn.Sequential(Odd()), nn.Linear(6, 10)),
}


def setup(name, dtype=F64):
    torch.manual_seed(0)
    case = cases.make("mlp")
    case.x, case.x_meta = case.x.to(dtype), case.x_meta.to(dtype)
    case.model = MODELS[name]().to(dtype)
    return case, make_labels(fastmeta.InstanceLabels, case).to(dtype)


if OLD:
    MODELS[r"1 \(Warped\)"] = lambda: nn.Sequential(nn.Linear(6, 6), Warped(), nn.Linear(16, 10))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_warns_once_and_names_the_layer(name, dtype):
    case, labels = setup(name, dtype)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1), label_lr=1.0)
    with pytest.warns(
        UserWarning, match=rf"inexact.*no exact way leads through {name}: .*tangent='difference'"
    ) as seen:
        step(case.train, case.meta)
    assert [w.filename for w in seen if w.category is UserWarning] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        step(case.train, case.meta)
        case.model.eval()  # another plan, the same trouble
        step(case.train, case.meta)
    assert step.plan.kind == "difference"


@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_and_a_check_warn(name):
    case, labels = setup(name)
    with pytest.warns(UserWarning, match=name) as seen:
        label_gradient(case.model, labels, case.train, case.meta, lr=0.1)
    assert [w.filename for w in seen if w.category is UserWarning] == [__file__]
    with pytest.warns(UserWarning, match=name):
        report = fastmeta.check(case.model, labels, case.train, case.meta, 0.1, timing=False)
    assert report.ok
    assert "\nwarning: the label gradient is inexact" in str(report)


@pytest.mark.parametrize("options", [{"tangent": "difference"}, {"approx": "difference"}], ids=str)
def test_who_asks_for_differences_is_not_warned(options):
    case, labels = setup(r"bag \(EmbeddingBag\)")
    step = fastmeta.MetaStep(
        case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1), label_lr=1.0, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        step(case.train, case.meta)
        if "tangent" in options:
            label_gradient(case.model, labels, case.train, case.meta, lr=0.1, **options)
            tangents = ("reverse", "difference")
            report = fastmeta.check(case.model, labels, case.train, case.meta, 0.1, timing=False, tangents=tangents)
            assert "warning:" not in str(report)


def test_healthy_models_warn_of_nothing():
    for name in ("mlp", "resnet"):
        case = cases.make(name)
        labels = make_labels(fastmeta.InstanceLabels, case)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            label_gradient(case.model, labels, case.train, case.meta, lr=0.1)


class Counting(nn.Module):
    """Moves a buffer, a plain tensor and a number in its forward."""

    def __init__(self):
        super().__init__()
        self.norm, self.mean, self.calls = nn.BatchNorm1d(8), torch.zeros(8, dtype=F64), 0

    def forward(self, x):
        self.calls += 1
        self.mean += x.detach().mean(0)
        return self.norm(x)


@pytest.mark.filterwarnings("ignore:.*inexact")
def test_the_search_for_the_layer_moves_nothing():
    case, labels = setup(r"bag \(EmbeddingBag\)")
    case.model.head = nn.Sequential(Counting(), nn.Linear(8, 10)).to(F64)
    label_gradient(case.model, labels, case.train, case.meta, lr=0.1)
    counting = case.model.head[0]
    assert counting.calls == 0
    assert not counting.mean.any()
    assert not counting.norm.running_mean.any()
    assert counting.norm.num_batches_tracked == 0
