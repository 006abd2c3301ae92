"""The meta step and the trainer on a GPU: exact in float64, in every mode, skipped whole, resumed bitwise."""

import copy
import signal

import pytest
import torch

import fastmeta
from fastmeta import reference
from fastmeta.meta import label_gradient
from fastmeta.training import Interrupted, load_run, train
from tests.support import cases
from tests.support.meta import (
    ETA,
    FAMILIES,
    draw,
    make_labels,
    optimizers,
    reference_gradient,
    relative,
    run_reference,
)
from tests.support.runs import two_classes
from tests.support.stopped import Kill, assert_same, config

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MODES = {
    "eager": {},
    "forward": {"tangent": "forward"},
    "reverse": {"tangent": "reverse"},
    "in turn": {"tangent": "forward", "micro_batch": 12},
    "pieces": {"micro_batch": 3},
    "trace": {"compile": "trace"},
    "full": {"compile": "full"},
}


def to_cuda(case):
    """The same case with its tensors on the GPU."""
    moved = copy.deepcopy(case)
    moved.model.cuda()
    for name in ("x", "x_meta", "targets", "index", "y_meta"):
        setattr(moved, name, getattr(moved, name).cuda())
    return moved


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", cases.NAMES)
def test_exact(name, family):
    case = cases.make(name)
    on_host = make_labels(family, case)
    truth = reference_gradient(case, on_host, reference.SGDState(0.3))
    device = to_cuda(case)
    labels = make_labels(family, case).cuda()
    # cuDNN's recurrent layers have no second derivative and no forward one: what is chosen for them has to do
    for tangent in ("auto",) if name == "lstm" else ("auto", "forward", "reverse"):
        out = label_gradient(device.model, labels, device.train, device.meta, lr=0.3, tangent=tangent)
        assert relative(out.grad.cpu(), truth.grad) < (1e-6 if "inexact" in out.plan.reason else 1e-10), out.plan
        assert torch.allclose(out.meta_loss.cpu(), truth.meta_loss, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["resnet", "attention", "mlp"])
def test_five_steps_equal_the_reference(name, family, mode):
    if mode == "pieces" and name == "resnet":
        pytest.skip("BatchNorm needs the whole batch")
    case = cases.make(name)
    truth, device = copy.deepcopy(case), to_cuda(case)
    labels = make_labels(family, case)
    optimizer = optimizers(list(device.model.parameters()))["momentum"]
    table = run_reference(truth, labels, "sgd", optimizer.param_groups[0], 5)
    labels = labels.cuda()
    step = fastmeta.MetaStep(
        device.model, labels, optimizer, label_lr=ETA[labels.family], unique_index=True, **MODES[mode]
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        index, x, x_meta, y_meta = (t.cuda() for t in draw(case, generator))
        result = step((x, index), (x_meta, y_meta))
        assert bool(result.finite)
    learned = labels.label_logits if labels.family == "instance" else labels.alpha
    assert relative(learned.cpu(), table) < 1e-9, step.explain()
    for ours, wanted in zip(device.model.state_dict().values(), truth.model.state_dict().values(), strict=True):
        assert relative(ours.cpu().double(), wanted.double()) < 1e-9, step.explain()


@pytest.mark.parametrize("mode", ["eager", "trace", "full"])
def test_a_bad_step_moves_nothing(mode):
    case = to_cuda(cases.make("resnet"))
    labels = make_labels(fastmeta.InstanceLabels, case).cuda()
    optimizer = optimizers(list(case.model.parameters()))["momentum"]
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, unique_index=True, **MODES[mode])

    def everything():
        inner = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        return [t.clone() for t in (*case.model.state_dict().values(), *labels.state_dict().values(), *inner)]

    for _ in range(3):
        step(case.train, case.meta)
    before = everything()
    bad = case.x.clone()
    bad[0] = torch.nan
    assert not bool(step((bad, case.index), case.meta).finite)
    assert all(map(torch.equal, before, everything()))
    assert bool(step(case.train, case.meta).finite)


@pytest.mark.parametrize("compile", ["off", "full"])
def test_dropout_is_replayed(compile):
    """Both forwards of a step and its derivative see one mask; the next step sees another."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(32, 4))
    model = model.double().cuda()
    labels = fastmeta.InstanceLabels(torch.randint(4, (16,)), 4, 0.8, dtype=torch.float64).cuda()
    x, x_meta = torch.randn(8, 6, dtype=torch.float64).cuda(), torch.randn(12, 6, dtype=torch.float64).cuda()
    index, y_meta = torch.arange(8).cuda(), torch.randint(4, (12,)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=0.0, lookahead=0.1, unique_index=True, compile=compile)
    seen = [step((x, index), (x_meta, y_meta)).logits.clone() for _ in range(6)]
    assert len({float(s.sum()) for s in seen}) == 6


@pytest.mark.parametrize("compile", ["off", "full"])
def test_a_run_resumes_bitwise(tmp_path, compile):
    """As on the host: killed behind a step, gone on with, and equal to the run that nothing stopped."""
    settings = {"device": "cuda", "compile": compile, "baselines": "union"}
    unbroken = train(config(tmp_path / "a", **settings), data=two_classes()).path
    with pytest.raises(Interrupted):
        train(
            config(tmp_path / "b", **settings), data=two_classes(), listener=Kill(signal.SIGINT, "instance_labels", 7)
        )
    train(resume=tmp_path / "b", data=two_classes())
    assert_same(tmp_path / "b", unbroken)
    assert load_run(tmp_path / "b")
