"""Training with learned labels: config in, run directory out."""

from fastmeta.data import InputError
from fastmeta.training.config import DataConfig, LabelConfig, OptimConfig, TrainConfig
from fastmeta.training.result import Run, load_run
from fastmeta.training.session import Interrupted, train
from fastmeta.training.stage import TrainingError

__all__ = [
    "DataConfig",
    "InputError",
    "Interrupted",
    "LabelConfig",
    "OptimConfig",
    "Run",
    "TrainConfig",
    "TrainingError",
    "load_run",
    "train",
]
