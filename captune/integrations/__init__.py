"""Captune inside other trainers: `CaptionEvaluation`, a callback for transformers' `Trainer` and trainers based on it.

from captune.integrations import CaptionEvaluation
evaluation = CaptionEvaluation(manifest="photos.jsonl", split="val", output="runs/photos")
trainer = SFTTrainer(..., callbacks=[evaluation])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.integrations.caption_evaluation import CaptionEvaluation

__all__ = ["CaptionEvaluation"]

__getattr__ = lazy_names(__name__, {"caption_evaluation": ["CaptionEvaluation"]})
