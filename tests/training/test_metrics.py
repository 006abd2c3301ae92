"""Figures against plain computations, and guards that count without waiting for the device."""

import contextlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastmeta import ClassLabels, InstanceLabels
from fastmeta.data import Images, Settings
from fastmeta.methods import Outcome
from fastmeta.training.health import Health
from fastmeta.training.label_metrics import average_precision, flips, label_figures, learned_labels
from fastmeta.training.metrics import StepTotals, class_accuracy, evaluate, means

CPU = torch.device("cpu")


def placed(images, targets):
    return Images(images.numpy(), targets.numpy()).placed(Settings(), CPU, None)


def test_evaluation_equals_a_plain_one_and_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (100, 4, 4, 1), dtype=torch.uint8)
    targets = torch.randint(0, 3, (100,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        model[1].weight *= 5
    source = placed(images, targets)
    transform = source.transform.transform
    buffers = [b.clone() for b in model.buffers()]
    got = evaluate(model, source, targets, batch_size=33, autocast=contextlib.nullcontext)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))

    x = (images.permute(0, 3, 1, 2) - transform.center[:, None, None]) * transform.scale[:, None, None]
    q = model.eval()(x).detach().double().softmax(1).numpy()
    confidence, right = q.max(1), q.argmax(1) == targets.numpy()
    bins = np.minimum(np.ceil(confidence * 15).astype(int), 15)
    ece = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean())
        for b in range(1, 16)
        if (bins == b).any()
    )
    assert got["test_accuracy"] == pytest.approx(right.mean())
    assert got["nll"] == pytest.approx(-np.log(q[np.arange(100), targets.numpy()]).mean(), rel=1e-6)
    assert got["ece"] == pytest.approx(ece, rel=1e-6)


def test_accuracy_by_class_equals_a_plain_one_over_the_rows_that_are_asked_for():
    torch.manual_seed(1)
    images = torch.randint(0, 256, (90, 4, 4, 1), dtype=torch.uint8)
    targets = torch.randint(0, 3, (90,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))
    source = placed(images, targets)
    how = {"batch_size": 7, "autocast": contextlib.nullcontext}
    whole, by_class = class_accuracy(model, source, targets, range(20, 90), 4, **how)
    assert model.training
    x = next(source.read([torch.arange(20, 90)], CPU))
    right = model.eval()(x).argmax(1) == targets[20:]
    assert whole == pytest.approx(right.double().mean().item())
    assert by_class[3] is None  # a class without rows
    assert by_class[:3] == pytest.approx([right[targets[20:] == k].double().mean().item() for k in range(3)])
    # of all rows it is what evaluate says, to the last bit
    model.train()
    assert (
        class_accuracy(model, source, targets, range(90), 4, **how)[0]
        == evaluate(model, source, targets, **how)["test_accuracy"]
    )


class Given(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits.clone()


def test_rows_without_a_softmax_are_wrong_and_have_no_calibration():
    images, targets = torch.zeros(4, 2, 2, 1, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    whole = torch.tensor([[2.0, 0.0, 0.0]]).expand(4, 3).clone()

    def figures(changed):
        logits = whole.clone()
        logits[0] = torch.tensor(changed)
        model = Given(logits)
        return evaluate(model, placed(images, targets), targets, batch_size=4, autocast=contextlib.nullcontext)

    assert figures([2.0, 0.0, 0.0])["test_accuracy"] == 1
    for bad in ([math.nan, 0, 0], [math.inf, 0, 0], [0, math.nan, 0], [math.nan] * 3, [-math.inf] * 3):
        assert figures(bad) == {"test_accuracy": 0.75, "nll": None, "ece": None}
    masked = figures([2.0, -math.inf, -math.inf])  # a class that is out of the question
    assert masked["test_accuracy"] == 1
    assert masked["nll"] > 0
    assert masked["ece"] > 0
    missed = figures([-math.inf, 0.0, 0.0])
    assert (missed["test_accuracy"], missed["nll"]) == (0.75, None)
    assert missed["ece"] is not None


def outcome(loss=1.0, *, finite=True, skipped=0, bad_rows=0):
    logits = torch.eye(4)
    logits[:bad_rows] = math.nan
    return Outcome(
        logits,
        torch.tensor(loss),
        torch.tensor(finite),
        torch.tensor(2 * loss),
        torch.full((4,), 0.5),
        torch.tensor(3.0),
        torch.tensor(skipped, dtype=torch.int32),
    )


TARGETS = torch.tensor([0, 1, 2, 0])


def test_means_leave_out_steps_that_were_not_finite():
    sums = StepTotals(CPU)
    for o in (outcome(1.0), outcome(math.nan, finite=False), outcome(2.0)):
        sums.add(o, TARGETS)
    read = sums.read()
    assert means(read, meta=True, learned=True) == {
        "train_loss": 1.5,
        "train_fit": 0.75,
        "meta_loss": 3.0,
        "label_entropy": 0.5,
        "label_grad_norm": 3.0,
    }
    assert read["nonfinite"] == 1


def test_means_of_label_figures_are_over_the_steps_that_moved_labels():
    sums = StepTotals(CPU)
    nothing = torch.tensor(math.nan)
    for o in (outcome(1.0), outcome(4.0)._replace(meta_loss=nothing, label_grad_norm=nothing), outcome(2.0)):
        sums.add(o, TARGETS)
    figures = means(sums.read(), meta=True, learned=True)
    assert (figures["train_loss"], figures["meta_loss"], figures["label_grad_norm"]) == (7 / 3, 3.0, 3.0)
    assert sums.read()["nonfinite"] == 0


def test_streaks_run_on_over_the_end_of_an_interval():
    sums = StepTotals(CPU)
    for finite in (False, False, True, False, False, False):
        sums.add(outcome(finite=finite), TARGETS)
    assert sums.read()["longest_streak"] == 3
    sums.reset()
    assert sums.read()["nonfinite"] == 0
    sums.add(outcome(finite=False), TARGETS)
    assert sums.read()["longest_streak"] == 4
    sums.add(outcome(), TARGETS)
    sums.reset()
    assert sums.read()["longest_streak"] == 0


def test_rows_skipped_for_their_logits_are_no_index_errors():
    sums = StepTotals(CPU)
    sums.add(outcome(math.nan, finite=False, skipped=2, bad_rows=2), TARGETS)
    sums.add(outcome(1.0, finite=False, skipped=4), TARGETS)  # a tangent that is not finite
    assert sums.read()["index_skips"] == 0
    sums.add(outcome(math.nan, finite=False, skipped=1), TARGETS)
    assert sums.read()["index_skips"] == 1


def table():
    labels = InstanceLabels(torch.tensor([0, 1, 2, 1]), 3, 0.6)
    labels.label_logits[1, 2] += 10  # 1 -> 2
    labels.label_logits[2, 0] += 10  # 2 -> 0
    return labels


def test_label_figures():
    labels = table()
    assert learned_labels(labels)["learned"].tolist() == [0, 2, 0, 1]
    figures = label_figures(labels, torch.tensor([0, 2, 2, 0]))
    assert figures["labels_changed"] == 2
    assert (figures["labels_corrected"], figures["labels_spoiled"], figures["label_accuracy"]) == (1, 1, 0.5)
    unknown = label_figures(labels, None)
    assert unknown["labels_changed"] == 2
    assert unknown["label_accuracy"] is unknown["labels_corrected"] is unknown["labels_spoiled"] is None
    assert flips(labels.targets, learned_labels(labels)["learned"], 3) == [
        {"given": 1, "learned": 2, "count": 1},
        {"given": 2, "learned": 0, "count": 1},
    ]


def test_the_given_class_wins_ties():
    labels = ClassLabels(torch.tensor([0, 1, 1]), 2, 0.5)
    assert learned_labels(labels)["learned"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("alpha", [1.0, 0.8, 0.7])
def test_a_label_without_a_leader_is_no_change(alpha):
    """Class labels that have left their class hold all others equal: none of them was learned."""
    labels = ClassLabels(torch.arange(4), 4, 0.9)
    labels.alpha[:2] = alpha
    table = learned_labels(labels)
    assert table["learned"].tolist() == [0, 1, 2, 3]
    assert torch.equal(table["probability"], table["given_probability"])
    of_two = ClassLabels(torch.tensor([0, 1]), 2, 0.9)
    of_two.alpha[:] = 0.8  # of two classes the other one leads
    assert learned_labels(of_two)["learned"].tolist() == [1, 0]


def test_average_precision_finds_wrong_labels():
    given, true = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 0, 0])
    assert average_precision(torch.tensor([0.9, 0.1, 0.8, 0.2]), given, true) == 1.0
    # ranked by 1 - p: rows 0 (right), 1 (wrong), 2 (right), 3 (wrong): (1/2 + 2/4) / 2
    assert average_precision(torch.tensor([0.1, 0.2, 0.3, 0.4]), given, true) == pytest.approx(0.5)
    assert average_precision(torch.tensor([0.1] * 4), given, None) is None
    assert average_precision(torch.tensor([0.1] * 4), true, true) is None


def look(labels, p0=0.6, progress=0.5, norm=1.0):
    return Health().look(labels, p0, progress, norm)


def test_health_says_by_what_factor_label_lr_is_too_small():
    labels = InstanceLabels(torch.arange(300) % 3, 3, 0.6)
    margin = math.log(0.6 * 2 / 0.4)
    labels.label_logits[:, 0] += margin / 400  # half the run: would be margin / 200 at its end
    (text,) = look(labels)
    assert "labels have hardly moved" in text
    assert "label_lr is too small by about ×200" in text
    assert look(labels, progress=0.05) == []  # too early to tell
    labels.label_logits[:, 0] += margin
    assert look(labels) == []
    still = ClassLabels(torch.arange(6) % 3, 3, 0.9)
    (text,) = look(still, p0=0.9)
    assert "×1000 or more" in text


def test_health_sees_collapse_clamp_and_a_zero_gradient_once():
    hard = InstanceLabels(torch.arange(6) % 3, 3, 0.6)
    hard.label_logits *= 40
    (text,) = look(hard)
    assert "entropy has collapsed" in text
    clamped = ClassLabels(torch.arange(6) % 3, 3, 0.5)
    clamped.alpha[:2] = 0
    health = Health()
    (text,) = health.look(clamped, 0.5, 0.5, 1.0)
    assert "67% of the class smoothing values stand at the clamp, mostly 0 (one-hot)" in text
    assert health.look(clamped, 0.5, 0.6, 1.0) == []
    (text,) = health.look(clamped, 0.5, 0.7, 0.0)
    assert "label gradient is exactly zero" in text


def test_average_precision_is_at_most_one():
    """A perfect finder's is a sum of n shares of 1/n."""
    for count in range(1, 60):
        given = torch.arange(100) % 2
        y_true = torch.where(torch.arange(100) < count, 1 - given, given)
        assert average_precision(torch.arange(100) / 100, given, y_true) == pytest.approx(1)
        assert average_precision(torch.arange(100) / 100, given, y_true) <= 1
