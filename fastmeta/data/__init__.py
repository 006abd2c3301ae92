"""Samples with given labels: where they come from, their splits and noise, and batches of them on the device."""

from fastmeta.data.bounds import LARGEST_RATE, at_least, positive, within
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.given import DATA_FORMS, as_dataset, is_data
from fastmeta.data.hold_out import HoldOut
from fastmeta.data.images import TrainBatches, Transform, load_batch
from fastmeta.data.pool import PILOT, Pool
from fastmeta.data.resident import Features, Images
from fastmeta.data.sampler import EpochSampler
from fastmeta.data.seeds import derived_seed
from fastmeta.data.source import Settings, Source
from fastmeta.data.sources import load_dataset
from fastmeta.data.splits import Part, Splits, split
from fastmeta.data.stream import Stream

__all__ = [
    "DATA_FORMS",
    "LARGEST_RATE",
    "PILOT",
    "Dataset",
    "EpochSampler",
    "Features",
    "HoldOut",
    "Images",
    "InputError",
    "Part",
    "Pool",
    "Settings",
    "Source",
    "Splits",
    "Stream",
    "TrainBatches",
    "Transform",
    "as_dataset",
    "at_least",
    "derived_seed",
    "is_data",
    "load_batch",
    "load_dataset",
    "positive",
    "split",
    "within",
]
