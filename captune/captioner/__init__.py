"""Captioning with MiniGPT-4 and with transformers' image-text-to-text models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.captioner.captioner import CaptionBackend, Captioner
    from captune.captioner.minigpt4 import MiniGPT4Backend
    from captune.captioner.transformers_model import TransformersBackend

__all__ = [
    "CaptionBackend",
    "Captioner",
    "MiniGPT4Backend",
    "TransformersBackend",
]

__getattr__ = lazy_names(
    __name__,
    {
        "captioner": ["CaptionBackend", "Captioner"],
        "minigpt4": ["MiniGPT4Backend"],
        "transformers_model": ["TransformersBackend"],
    },
)
