"""Batches that are halved when memory runs out."""

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
    """Results of consecutive batches; a batch that does not fit into memory is halved, and so are those after it.

    Args:
        items: N of them.
        size: of a batch.
        run: computes one batch.

    Yields:
        A batch and its result.

    Raises:
        torch.OutOfMemoryError: a single item does not fit.
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the CPU, has no more memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def halve_on_oom(rows: int) -> int:
    """Half as many rows; called after the error is released, and with it what its traceback kept in memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning("out of memory: continuing with %d at once", rows // 2)
    return rows // 2
