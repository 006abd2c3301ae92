"""A run that has diverged names the rate that is to blame."""

import pytest
import torch

import fastmeta
from fastmeta.training import DataConfig, LabelConfig, OptimConfig, TrainingError
from fastmeta.training.health import label_rate_to_blame
from fastmeta.training.prepare import prepare
from fastmeta.training.stage import MOST_NONFINITE
from tests.support.runs import Faulty, config, two_classes

TARGETS = torch.arange(4).repeat(5)


@pytest.mark.parametrize(
    ("method", "label_lr", "text"),
    [
        ("instance_labels", 1e12, r"has diverged; lower labels\.label_lr, now 1e\+12 where about [0-9.e+]+ is usual$"),
        ("class_labels", 1e12, r"has diverged; lower labels\.label_lr, now 1e\+12"),
        ("instance_labels", 20.0, r"has diverged; lower optim\.lr, now 5\.0$"),
        ("onehot", None, r"has diverged; lower optim\.lr, now 5\.0$"),
    ],
)
def test_ten_bad_steps_name_a_rate(method, label_lr, text, tmp_path):
    model = Faulty("loss")
    labels = LabelConfig(label_lr=label_lr) if label_lr else LabelConfig()
    plan = config(
        tmp_path, method=method, model=None, data=DataConfig(batch_size=16), optim=OptimConfig(lr=5.0), labels=labels
    )
    stage = prepare(plan, model=model, data=two_classes()).stage(method)
    model.bad = stage.model.bad = True
    for _ in range(MOST_NONFINITE):
        stage.take_step()
    with pytest.raises(TrainingError, match=text):
        stage.check()


def test_what_tells():
    instance, smoothing = (family(TARGETS, 4) for family in (fastmeta.InstanceLabels, fastmeta.ClassLabels))
    for labels in (instance, smoothing):
        assert label_rate_to_blame(labels, 50.0, 30.0) is None
        assert "lower labels.label_lr, now 1e+12 where about 30 is usual" in label_rate_to_blame(labels, 1e12, 30.0)
    for value in (1e4, torch.nan, torch.inf):
        instance.label_logits[:5, 0] = value
        assert "25% of the labels have run away to one class: lower labels.l" in label_rate_to_blame(
            instance, 50.0, 30.0
        )
