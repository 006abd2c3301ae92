"""Many processes that train one model: what they ask of each other."""

from fastmeta.distributed.all_rows import rows_to_first
from fastmeta.distributed.ranks import ALONE, Ranks

__all__ = ["ALONE", "Ranks", "rows_to_first"]
