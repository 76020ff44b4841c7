"""Any captioner behind one small interface: MiniGPT-4 and transformers' image-text-to-text models."""

from __future__ import annotations

from captune.captioner.interface import Captioner, Picture
from captune.captioner.minigpt4 import MiniGPT4Captioner
from captune.captioner.transformers_model import TransformersCaptioner

__all__ = ["Captioner", "MiniGPT4Captioner", "Picture", "TransformersCaptioner"]
