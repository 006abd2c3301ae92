"""Many processes that train one model: what they ask of each other."""

from fastmeta.distributed.agree import together
from fastmeta.distributed.ranks import ALONE, Ranks

__all__ = ["ALONE", "Ranks", "together"]
