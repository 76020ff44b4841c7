"""Models that were saved with a processor of images and a tokenizer, and nothing that joins them (ViT-GPT2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["ImagesAlone"]


class ImagesAlone:
    """A processor that takes images and no words.

    Args:
        image_processor: makes the pixels.
        tokenizer: turns ids into words.
    """

    takes_text = False

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(self, images: Sequence[Any], **settings: Any) -> Any:
        """The model's inputs for images."""
        return self.image_processor(images=images, **settings)
