"""The labels of a finished run in the forms that other tools read, and back into the data that they came from."""

from fastmeta.export.corrected import apply
from fastmeta.export.registry import FORMATS, export
from fastmeta.export.sample_views import Samples, samples_of

__all__ = ["FORMATS", "Samples", "apply", "export", "samples_of"]
