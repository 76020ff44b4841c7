"""Work on a stream of items in threads, a bounded number ahead, with the results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetch_map"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_IN_FLIGHT = 256


def prefetch_map(
    items: Iterable[Item], work: Callable[[Item], Result], workers: int | None = None, *, ahead: int = _IN_FLIGHT
) -> Generator[tuple[Item, Result], None, None]:
    """Each item with its result, in the order of the items.

    Args:
        items: taken at most `ahead` ahead of what is given out.
        work: called in a thread; Pillow decodes outside of Python's lock, so threads are enough for images.
        workers: number of threads; as many as processors by default, at most eight.
        ahead: how many results may be in memory.

    Yields:
        item and result. What `work` raises is raised here; when the iterator is closed, waiting work is dropped.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > ahead:
                item, result = waiting.popleft()
                yield item, result.result()
        while waiting:
            item, result = waiting.popleft()
            yield item, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
