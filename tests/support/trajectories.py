"""Small runs whose labels are kept as they move."""

from fastmeta.training import DataConfig, LabelConfig
from tests.support.stopped import config

EXACT = {
    "instance_labels": LabelConfig(update="exact", target_prob=0.7, label_lr=20.0),
    "class_labels": LabelConfig(target_prob=0.7, label_step=0.1, warmup_epochs=1),
}


def plan(path, method, **changes):
    changes = {"model": "mlp", "baselines": "none", "trajectory_every": 1, "labels": EXACT[method], **changes}
    return config(path, method=method, data=DataConfig(batch_size=16), **changes)
