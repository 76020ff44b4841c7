"""From images to captions: stored features, batched generation."""

from __future__ import annotations

from captune.decoding.features import encode_images
from captune.decoding.generate import Caption, DecodingOptions, generate_captions

__all__ = ["Caption", "DecodingOptions", "encode_images", "generate_captions"]
