"""Work that ranks do together: where one of them fails, all of them hear of it and leave by the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastmeta.distributed.ranks import Ranks

T = TypeVar("T")


def together(work: Callable[[], T], ranks: Ranks) -> T:
    """What `work` gives on this rank. An error of any rank is raised on all: a rank's own, else that of the first.

    So none waits for one that has left. An OSError of another rank stays one, with its number and file, and so does a
    ValueError; any other is a RuntimeError here.
    """
    if ranks.size == 1:
        return work()
    try:
        result = work()
    except Exception as error:
        ranks.each(_told(error))
        raise
    for rank, failed in enumerate(ranks.each(None)):
        if failed is not None:
            kind, *content = failed
            raise OSError(*content) if kind is OSError else kind(f"rank {rank}: {content[0]}")
    return result


def _told(error: Exception) -> tuple[Any, ...]:
    if isinstance(error, OSError) and error.errno is not None:
        return OSError, error.errno, error.strerror, error.filename
    if isinstance(error, ValueError):
        return ValueError, str(error)
    return RuntimeError, f"{type(error).__name__}: {error}"
