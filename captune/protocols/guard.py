"""Whether the images that a run is evaluated on were among those it trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from captune.config import RunConfig
from captune.data.leaks import ImageFile, find_leaks
from captune.data.manifest import Sample
from captune.events import Listener

__all__ = ["ALLOWED", "image_files", "leak_reason"]

logger = logging.getLogger(__name__)

ALLOWED = "allowed by --allow-leaks"
"""Stands for the reason of a mark where the user asked to see the numbers without it."""


def image_files(manifest: str | os.PathLike[str], images: Sequence[Sample]) -> list[ImageFile]:
    """Images of a manifest as the leak guard takes them."""
    folder = os.path.dirname(os.path.abspath(manifest))
    return [ImageFile(image.id, os.path.join(folder, image.image)) for image in images]


def leak_reason(
    config: RunConfig, trained: Sequence[ImageFile], evaluated: Sequence[ImageFile], listener: Listener | None = None
) -> str | None:
    """Look for the evaluated images among the trained ones, and say so on the log when some are there.

    Args:
        config: of the run; `evaluate.allow_leaks` keeps the reason to itself.
        trained: the images that the run trains on.
        evaluated: the images that it is evaluated on.
        listener: is told how far it is.

    Returns:
        why the rows are marked LEAK, or None.

    Raises:
        MissingExtraError: the library of perceptual hashes is absent.
    """

    def tell(done: int, count: int) -> None:
        if listener is not None:
            listener({"event": "leaks", "done": done, "count": count})

    report = find_leaks(trained, evaluated, progress=tell)
    if report.reason is None:
        return None
    if config.evaluate.allow_leaks:
        return ALLOWED
    logger.warning(
        "the results are marked LEAK: %s. Take them out, or pass --allow-leaks to have the mark without the reason.",
        report.reason,
    )
    return report.reason
