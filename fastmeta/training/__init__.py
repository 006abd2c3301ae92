"""Training with learned labels: config in, run directory out."""

from fastmeta.data import InputError
from fastmeta.training.config import TrainConfig
from fastmeta.training.fold_runs import train_folds
from fastmeta.training.listener import Listener
from fastmeta.training.rundir import Run, load_run
from fastmeta.training.sections import DataConfig, LabelConfig, OptimConfig
from fastmeta.training.signals import Interrupted
from fastmeta.training.stage import TrainingError
from fastmeta.training.trainer import train

__all__ = [
    "DataConfig",
    "InputError",
    "Interrupted",
    "LabelConfig",
    "Listener",
    "OptimConfig",
    "Run",
    "TrainConfig",
    "TrainingError",
    "load_run",
    "train",
    "train_folds",
]
