"""Captioning with MiniGPT-4 and with transformers' image-text-to-text models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.captioner.captioner import CaptionBackend, Captioner
    from captune.captioner.display import CaptionedImages
    from captune.captioner.loading import image_text_config, probe_scores, require_effect
    from captune.captioner.minigpt4 import MiniGPT4Backend
    from captune.captioner.model_inputs import ModelInputs, probe_images
    from captune.captioner.processor import (
        complete_settings,
        copy_processor,
        load_processor,
        processor_folder,
        set_pixel_limits,
    )
    from captune.captioner.transformers_model import TransformersBackend, end_token_ids

__all__ = [
    "CaptionBackend",
    "CaptionedImages",
    "Captioner",
    "MiniGPT4Backend",
    "ModelInputs",
    "TransformersBackend",
    "complete_settings",
    "copy_processor",
    "end_token_ids",
    "image_text_config",
    "load_processor",
    "probe_images",
    "probe_scores",
    "processor_folder",
    "require_effect",
    "set_pixel_limits",
]

__getattr__ = lazy_names(
    __name__,
    {
        "captioner": ["CaptionBackend", "Captioner"],
        "display": ["CaptionedImages"],
        "loading": ["image_text_config", "probe_scores", "require_effect"],
        "minigpt4": ["MiniGPT4Backend"],
        "model_inputs": ["ModelInputs", "probe_images"],
        "processor": ["complete_settings", "copy_processor", "load_processor", "processor_folder", "set_pixel_limits"],
        "transformers_model": ["TransformersBackend", "end_token_ids"],
    },
)
