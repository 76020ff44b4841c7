"""Work on batches that become smaller when the memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

__all__ = ["halve_on_oom", "in_batches", "is_out_of_memory"]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    items: Sequence[Item], size: int, run: Callable[[Sequence[Item]], Result]
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Results of consecutive batches; a batch that does not fit is halved, and so are those behind it.

    Args:
        items: N of them.
        size: of a batch.
        run: does the work on one batch.

    Yields:
        A batch and its result.

    Raises:
        torch.OutOfMemoryError: a single item is too much.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            result = run(batch)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
        else:
            start += len(batch)
            yield batch, result
            continue
        size = halve_on_oom(len(batch))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the CPU, had no more memory to give."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def halve_on_oom(rows: int) -> int:
    """Half as many; called when the error is gone, and with it what its traceback kept in memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning("out of memory: going on with %d at once", rows // 2)
    return rows // 2
