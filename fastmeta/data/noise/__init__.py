"""Label noise on purpose, for measuring: one file per kind, found as ``KIND:RATE`` or ``package.module:function``."""

from fastmeta.data.noise.measured import confusion, in_words, shares
from fastmeta.data.noise.noise_file import NoiseFile
from fastmeta.data.noise.registry import KINDS, Noise, corrupt, parse

__all__ = ["KINDS", "Noise", "NoiseFile", "confusion", "corrupt", "in_words", "parse", "shares"]
