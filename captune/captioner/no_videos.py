"""Stands where a processor of videos would, for models that are only asked for images."""

from __future__ import annotations

from typing import Any

from transformers.video_processing_utils import VideoProcessorMixin

from captune.errors import InputError

__all__ = ["NoVideos"]


class NoVideos(VideoProcessorMixin):  # type: ignore[misc]  # transformers has no types here
    """Takes no videos."""

    model_input_names: tuple[str, ...] = ()

    def __call__(self, videos: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse.

        Raises:
            InputError: always.
        """
        raise InputError("Videos need torchvision, which is not installed; captune captions images.")
