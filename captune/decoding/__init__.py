"""From image features to captions: batched generation with a static KV cache, sampling, beam search and streaming."""

from __future__ import annotations

from captune.decoding.engine import DecodingEngine, SharedPrefix
from captune.decoding.generate import Engine, generate_captions, generate_ids, prompt_embeddings
from captune.decoding.options import NON_FINITE_SCORES, Caption, DecodingOptions, Progress, Request, StopRule

__all__ = [
    "NON_FINITE_SCORES",
    "Caption",
    "DecodingEngine",
    "DecodingOptions",
    "Engine",
    "Progress",
    "Request",
    "SharedPrefix",
    "StopRule",
    "generate_captions",
    "generate_ids",
    "prompt_embeddings",
]
