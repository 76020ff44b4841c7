"""Decoding of image files beside the event loop, a few at a time so that memory is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from captune.apps.serving.captioners import ServedCaptioner
from captune.apps.serving.checkpoints import ServedModel
from captune.apps.serving.errors import APIError
from captune.apps.serving.jobs import Pixels
from captune.errors import DataError

__all__ = ["ImagePool"]


class ImagePool:
    """Makes pixels of image files.

    Args:
        served: knows how large the model wants them.
        threads: files decoded at once; one of the largest that are let in takes a few hundred MB while it is decoded.
    """

    def __init__(self, served: ServedModel | ServedCaptioner, threads: int = 2) -> None:
        self._served = served
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="captune-images")

    async def pixels(self, files: Sequence[bytes]) -> tuple[Pixels, ...]:
        """Pixels of image files, in their order.

        Raises:
            APIError: 400 for one that is broken.
        """
        loop = asyncio.get_running_loop()
        return tuple([await loop.run_in_executor(self._threads, self._prepare, data) for data in files])

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(cancel_futures=True)

    def _prepare(self, data: bytes) -> Pixels:
        try:
            return Pixels.of(self._served.captioner.prepare(data, "of the request"))
        except DataError as error:
            raise APIError(400, str(error), code="invalid_image", param="messages") from None
