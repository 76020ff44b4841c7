"""Tuning of transformers' image-text-to-text models: rows of prompts and captions, image features, losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.vlm.card import tuned_card
    from captune.vlm.checkpoints import CheckpointSwapper, load_adapter, save_adapter
    from captune.vlm.conversation import Conversation, PromptRow
    from captune.vlm.decoder import PackedRow
    from captune.vlm.export import export_merged, export_tuned
    from captune.vlm.generation import CaptionGenerator
    from captune.vlm.image_features import FeatureCall, ImageFeatures
    from captune.vlm.loading import is_image_text_model, load_image_text_model, weightless_model
    from captune.vlm.loss_method import (
        COMPUTATION_FILE,
        EXACT,
        EXACT_IN_HALF,
        Computation,
        ProbeSample,
        choose_computation,
    )
    from captune.vlm.memory import ImageTextMemory, ImageTextSize
    from captune.vlm.model import ImageTextModel

__all__ = [
    "COMPUTATION_FILE",
    "EXACT",
    "EXACT_IN_HALF",
    "CaptionGenerator",
    "CheckpointSwapper",
    "Computation",
    "Conversation",
    "FeatureCall",
    "ImageFeatures",
    "ImageTextMemory",
    "ImageTextModel",
    "ImageTextSize",
    "PackedRow",
    "ProbeSample",
    "PromptRow",
    "choose_computation",
    "export_merged",
    "export_tuned",
    "is_image_text_model",
    "load_adapter",
    "load_image_text_model",
    "save_adapter",
    "tuned_card",
    "weightless_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "card": ["tuned_card"],
        "loss_method": [
            "COMPUTATION_FILE",
            "EXACT",
            "EXACT_IN_HALF",
            "Computation",
            "ProbeSample",
            "choose_computation",
        ],
        "conversation": ["Conversation", "PromptRow"],
        "decoder": ["PackedRow"],
        "export": ["export_merged", "export_tuned"],
        "checkpoints": ["CheckpointSwapper", "load_adapter", "save_adapter"],
        "generation": ["CaptionGenerator"],
        "image_features": ["FeatureCall", "ImageFeatures"],
        "loading": ["is_image_text_model", "load_image_text_model", "weightless_model"],
        "memory": ["ImageTextMemory", "ImageTextSize"],
        "model": ["ImageTextModel"],
    },
)
