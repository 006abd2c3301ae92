"""Image sets with an index: where they come from, their splits and noise, and batches of them on the device."""

from fastmeta.data.batches import EpochSampler, TrainBatches, Transform, load_batch
from fastmeta.data.dataset import Dataset
from fastmeta.data.device import DeviceData
from fastmeta.data.errors import InputError
from fastmeta.data.seeds import derived_seed
from fastmeta.data.sources import load_dataset
from fastmeta.data.splits import Part, Splits, split

__all__ = [
    "Dataset",
    "DeviceData",
    "EpochSampler",
    "InputError",
    "Part",
    "Splits",
    "TrainBatches",
    "Transform",
    "derived_seed",
    "load_batch",
    "load_dataset",
    "split",
]
