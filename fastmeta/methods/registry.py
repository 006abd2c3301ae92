"""Methods by name."""

from __future__ import annotations

import inspect

from fastmeta._text import shown
from fastmeta._trust import load_object
from fastmeta.methods.base import Method
from fastmeta.methods.class_labels import ClassLabelMethod
from fastmeta.methods.coteaching import Coteaching
from fastmeta.methods.data_parameters import DataParameters
from fastmeta.methods.distill import Distill
from fastmeta.methods.elr import ELR
from fastmeta.methods.emlc import EMLC
from fastmeta.methods.fixed_labels import ConfidencePenalty, Focal, LabelSmoothing, OneHot
from fastmeta.methods.instance_labels import InstanceLabelMethod
from fastmeta.methods.l2rw import L2RW
from fastmeta.methods.mentornet import MentorNet
from fastmeta.methods.mlc import MetaLabelCorrection
from fastmeta.methods.mwnet import MetaWeightNet
from fastmeta.methods.replay import Replay
from fastmeta.methods.sop import SOP

#: every method of this package by its name in a config
METHODS: dict[str, type[Method]] = {
    "onehot": OneHot,
    "class_labels": ClassLabelMethod,
    "instance_labels": InstanceLabelMethod,
    "label_smoothing": LabelSmoothing,
    "confidence_penalty": ConfidencePenalty,
    "focal": Focal,
    "elr": ELR,
    "sop": SOP,
    "coteaching": Coteaching,
    "data_parameters": DataParameters,
    "mentornet": MentorNet,
    "distill": Distill,
    "replay": Replay,
    "l2rw": L2RW,
    "mwnet": MetaWeightNet,
    "mlc": MetaLabelCorrection,
    "emlc": EMLC,
}


def method_class(name: str) -> type[Method]:
    """The class that `name` stands for, one of `METHODS` or ``package.module:Class``.

    Raises:
        ValueError: no such name, or no subclass of :class:`Method`, in one line.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ValueError(f"method must be one of {', '.join(METHODS)} or package.module:Class, got {shown(name)}")
    found = load_object(name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"method {name} must be a subclass of fastmeta.methods.Method, got {shown(found)}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ValueError(f"method {name} lacks {missing}; every method has setup, step and predictor")
    return found
