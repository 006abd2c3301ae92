"""Training losses with parameters of their own, which the meta-gradient moves."""

from fastmeta.losses.batch_weights import BatchWeights
from fastmeta.losses.class_labels import ClassLabels, class_gradient
from fastmeta.losses.epoch_moves import EpochMove
from fastmeta.losses.head import Head, Move
from fastmeta.losses.host_table import HostTable
from fastmeta.losses.instance_labels import InstanceLabels, instance_gradient
from fastmeta.losses.label_corrector import LabelCorrector
from fastmeta.losses.label_teacher import LabelTeacher
from fastmeta.losses.labels import Labels
from fastmeta.losses.learnable_loss import LearnableLoss
from fastmeta.losses.mmap_table import MmapTable
from fastmeta.losses.momentum_labels import MomentumLabels
from fastmeta.losses.read_out import read_out
from fastmeta.losses.row_file import TableError
from fastmeta.losses.simplex_labels import SimplexLabels, onto_simplex
from fastmeta.losses.table import DenseTable, LabelTable, Start, put_rows_, take_rows
from fastmeta.losses.traced_loss import TracedLoss, Unsupported
from fastmeta.losses.weighting_net import WeightingNet

#: label families by the name under which files hold them
FAMILIES: dict[str, type[Labels]] = {kind.family: kind for kind in (InstanceLabels, ClassLabels, SimplexLabels)}

__all__ = [
    "FAMILIES",
    "BatchWeights",
    "ClassLabels",
    "DenseTable",
    "EpochMove",
    "Head",
    "HostTable",
    "InstanceLabels",
    "LabelCorrector",
    "LabelTable",
    "LabelTeacher",
    "Labels",
    "LearnableLoss",
    "MmapTable",
    "MomentumLabels",
    "Move",
    "SimplexLabels",
    "Start",
    "TableError",
    "TracedLoss",
    "Unsupported",
    "WeightingNet",
    "class_gradient",
    "instance_gradient",
    "onto_simplex",
    "put_rows_",
    "read_out",
    "take_rows",
]
