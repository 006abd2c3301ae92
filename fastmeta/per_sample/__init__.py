"""Per-sample gradient dots and norms without per-sample gradients."""

from fastmeta.per_sample.model import PerSample, per_sample

__all__ = ["PerSample", "per_sample"]
