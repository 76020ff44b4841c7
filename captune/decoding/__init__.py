"""From images to captions: stored features, batched generation."""

from __future__ import annotations

from captune.decoding.features import encode_images
from captune.decoding.generate import Engine, generate_captions, generate_ids
from captune.decoding.loop import ConstantText, DecodingLoop
from captune.decoding.options import Caption, DecodingOptions
from captune.decoding.request import Progress, Request
from captune.decoding.stop import StopRule

__all__ = [
    "Caption",
    "ConstantText",
    "DecodingLoop",
    "DecodingOptions",
    "Engine",
    "Progress",
    "Request",
    "StopRule",
    "encode_images",
    "generate_captions",
    "generate_ids",
]
