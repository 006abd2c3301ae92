"""What optimizers and parameters a step cannot have is said in one line at the start; every number is a number."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import ops
from tests.support import cases
from tests.support.meta import F64, make_labels
from tests.support.ops import Batch
from tests.support.pairs import parametrize_some


def net(dtype=F64):
    return cases.mlp(10).to(dtype)


def sgd(model, **kw):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **kw})


class Tokens(nn.Module):
    def __init__(self, **kw):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6, **kw), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.table(x).mean(1))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(6, 4, dtype=torch.complex128)), nn.Linear(4, 10, dtype=F64)

    def forward(self, x):
        return self.head((x.to(self.w.dtype) @ self.w).abs())


def apart():
    model = net()
    model[2].to("meta")
    return model


def lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 10))


def with_stranger(model):
    return torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(3, 7))], lr=0.1)


KINDS = {
    "LBFGS": (
        net,
        lambda m: torch.optim.LBFGS(m.parameters()),
        TypeError,
        "but LBFGS evaluates the loss again and again",
    ),
    "SparseAdam": (
        net,
        lambda m: torch.optim.SparseAdam(m.parameters()),
        TypeError,
        "SparseAdam takes sparse ones alone",
    ),
    "differentiable": (net, lambda m: sgd(m, differentiable=True), TypeError, "SGD has differentiable=True"),
    "sparse": (
        lambda: Tokens(sparse=True),
        sgd,
        ValueError,
        r"layer 'table' \(Embedding\) has sparse=True.*set sparse=False",
    ),
    "complex": (Complex, sgd, ValueError, r"parameter w is complex \(torch.complex128\)"),
    "devices": (apart, sgd, ValueError, r"parameter 2.weight is on the meta device, which holds no numbers"),
    "lazy": (lazy, sgd, ValueError, r"0.weight has no shape yet \(a lazy layer\); run the model once"),
    "stranger": (net, with_stranger, ValueError, r"holds 1 parameters that are not the model's \(of shape \(3, 7\)\)"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_cannot_be_had(kind):
    model, optimizer, error, text = KINDS[kind]
    model = model()
    labels = fastmeta.InstanceLabels(torch.arange(10), 10)
    with pytest.raises(error, match=text) as raised:
        fastmeta.MetaStep(model, labels, optimizer(model), label_lr=1.0, lookahead=0.1)
    assert "\n" not in str(raised.value)


def test_two_devices_and_none():
    from fastmeta.meta.demands import check_parameters

    model = net()
    optimizer = sgd(model)
    case = cases.make("mlp")
    step = fastmeta.MetaStep(case.model, make_labels(fastmeta.InstanceLabels, case), optimizer)
    with pytest.raises(ValueError, match="no parameter to train: none requires a gradient and belongs to"):
        step(case.train, case.meta)
    if torch.cuda.is_available():
        model[2].cuda()
        with pytest.raises(ValueError, match=r"must be on one device, got .* on cpu, .* on cuda:0; move the model"):
            check_parameters(model, sgd(model))


def test_what_changes_between_steps_is_looked_at_again():
    case = cases.make("mlp")
    step = fastmeta.MetaStep(case.model, make_labels(fastmeta.InstanceLabels, case), sgd(case.model), label_lr=1.0)
    step(case.train, case.meta)
    step.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ValueError, match="holds 1 parameters that are not the model's"):
        step(case.train, case.meta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_precision_run_with_a_warning(dtype):
    torch.manual_seed(0)
    model, labels = net(dtype), fastmeta.InstanceLabels(torch.randint(10, (8,)), 10)
    with pytest.warns(UserWarning, match=f"parameter 0.weight is {dtype}: steps below its rounding are lost"):
        step = fastmeta.MetaStep(model, labels, sgd(model), label_lr=1.0)
    meta = torch.randn(12, 6, dtype=dtype), torch.randint(10, (12,))
    assert bool(step((torch.randn(8, 6, dtype=dtype), torch.arange(8)), meta).finite)


def test_fused_and_other_optimizers_run():
    for make in (
        lambda m: sgd(m, fused=True),
        lambda m: torch.optim.AdamW(m.parameters()),
        lambda m: sgd(m, foreach=True),
    ):
        case = cases.make("mlp")
        step = fastmeta.MetaStep(
            case.model, make_labels(fastmeta.InstanceLabels, case), make(case.model), label_lr=1.0, lookahead=0.1
        )
        assert bool(step(case.train, case.meta).finite)


NUMBERS = [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)]


@pytest.mark.parametrize("half", NUMBERS, ids=lambda v: type(v).__name__)
def test_rates(half):
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        step = fastmeta.MetaStep(case.model, labels, sgd(case.model), label_lr=half, lookahead=half)
        assert type(step.label_lr) is float
        step(case.train, case.meta)
        step.optimizer.param_groups[0]["lr"] = half
        step.label_lr = half
        step(case.train, case.meta)
        got = fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=half).grad
    assert torch.equal(got, fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=0.5).grad)
    assert labels.default_label_lr(half, np.uint8(8)) == labels.default_label_lr(0.5, 8)
    assert torch.equal(
        fastmeta.InstanceLabels([0, 1], 2, half).label_logits, fastmeta.InstanceLabels([0, 1], 2, 0.5).label_logits
    )
    assert torch.equal(fastmeta.ClassLabels([0, 1], 2, half).alpha, fastmeta.ClassLabels([0, 1], 2, 0.5).alpha)
    b = Batch(6, 4)
    new = ops.class_label_step(b.alpha, b.targets, b.logits, b.u, half, half)
    assert torch.equal(new.new_alpha, ops.class_label_step(b.alpha, b.targets, b.logits, b.u, 0.5, 0.5).new_alpha)
    rule = {"lr": half, "gain": half, "carry": half, "weight_decay": half}
    (star,) = ops.lookahead_update([b.logits], [b.u], [b.logits], **rule)
    assert torch.equal(star, ops.lookahead_update([b.logits], [b.u], [b.logits], **dict.fromkeys(rule, 0.5))[0])


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.uint16, np.array, torch.tensor])
def test_counts(kind):
    case = cases.make("mlp")
    labels = fastmeta.InstanceLabels(case.targets, kind(10), dtype=F64)
    assert type(labels.num_classes) is int
    step = fastmeta.MetaStep(case.model, labels, sgd(case.model), label_lr=kind(3), micro_batch=kind(4))
    assert (step.micro_batch, step.label_lr) == (4, 3.0)
    step(case.train, case.meta)
    b = Batch(6, 4)
    table = b.table.bfloat16()
    rows = [
        ops.instance_label_step_(t := table.clone(), b.index, b.logits, b.u, 1, 1, seed=s, step=s) and t
        for s in (kind(3), 3)
    ]
    assert torch.equal(*rows)
    assert fastmeta.InstanceLabels([0, 1], 2, dtype=torch.bfloat16, seed=kind(3)).seed == 3


@parametrize_some(1, compile=["off", "trace"], dtype=[torch.int32, torch.uint8, torch.uint16, torch.int16])
def test_indices_and_classes_of_any_integer_dtype(dtype, compile):
    ends = []
    for kind in (torch.int64, dtype):
        case = cases.make("mlp")
        labels = fastmeta.InstanceLabels(case.targets.to(kind), 10, dtype=F64)
        step = fastmeta.MetaStep(case.model, labels, sgd(case.model), label_lr=3.0, compile=compile)
        step((case.x, case.index.to(kind)), (case.x_meta, case.y_meta.to(kind)))
        ends.append(labels.label_logits)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    "targets",
    [
        [0, 2, 1],
        np.array([0, 2, 1], dtype=np.uint16),
        np.array([0, 2, 1], dtype=">i4"),
        np.array([1, 2, 0])[::-1],
        np.array([0, 2, 1], dtype=object),
        torch.tensor([0, 2, 1], dtype=torch.uint32),
    ],
    ids=lambda t: f"{type(t).__name__} {getattr(t, 'dtype', '')}",
)
def test_targets(targets):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert fastmeta.InstanceLabels(targets, 3).targets.tolist() == [0, 2, 1]
        array = np.array([0, 2, 1])
        array.flags.writeable = False
        assert fastmeta.ClassLabels(array, 3).targets.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    "targets", [["a"], [None], np.array(["a"]), [0.5], [True], np.array([2**63], dtype=np.uint64), 3]
)
def test_what_are_no_targets(targets):
    with pytest.raises(ValueError, match="targets must"):
        fastmeta.InstanceLabels(targets, 3)


@pytest.mark.parametrize("value", [True, "0.1", None, 1j, [0.1], float("nan"), np.array([0.1])], ids=str)
def test_what_is_no_rate(value):
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    with pytest.raises(ValueError, match="lookahead must be"):
        fastmeta.MetaStep(case.model, labels, sgd(case.model), lookahead=value)
    if value is not None:
        with pytest.raises(ValueError, match="label_lr must be None or a finite number >= 0, got"):
            fastmeta.MetaStep(case.model, labels, sgd(case.model), label_lr=value)
        with pytest.raises(ValueError, match="lr must be None or a finite number >= 0, got"):
            fastmeta.label_gradient(case.model, labels, case.train, case.meta, lr=value)
        with pytest.raises(ValueError, match="micro_batch must be None or a whole number"):
            fastmeta.MetaStep(case.model, labels, sgd(case.model), micro_batch=value)
    with pytest.raises(ValueError, match="target_prob must lie"):
        fastmeta.InstanceLabels([0, 1], 2, value)
    with pytest.raises(ValueError, match="num_classes must be a whole number"):
        fastmeta.ClassLabels([0, 1], value)
    with pytest.raises(ValueError, match="default_label_lr needs positive"):
        labels.default_label_lr(value, 8)
    with pytest.raises((TypeError, ValueError), match=r"gain must be (a number|finite), got"):
        ops.lookahead_update([torch.ones(2)], [torch.ones(2)], lr=0.1, gain=value)
