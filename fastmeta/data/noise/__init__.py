"""Label noise on purpose, for measuring: one file per kind, found as ``KIND:RATE``,
``file:PATH`` or ``package.module:function``."""

from fastmeta.data.noise.corrupt import corrupt, noisy
from fastmeta.data.noise.measured import MOST_KEPT, in_words, transition
from fastmeta.data.noise.noise_file import NoiseFile
from fastmeta.data.noise.registry import GROUPED, KINDS, Noise, lasting, parse

__all__ = [
    "GROUPED",
    "KINDS",
    "MOST_KEPT",
    "Noise",
    "NoiseFile",
    "corrupt",
    "in_words",
    "lasting",
    "noisy",
    "parse",
    "transition",
]
