"""Label noise on purpose, for measuring: one file per kind, found as ``KIND:RATE`` or ``package.module:function``."""

from fastmeta.data.noise.registry import KINDS, Noise, corrupt, parse

__all__ = ["KINDS", "Noise", "corrupt", "parse"]
