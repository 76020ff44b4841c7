"""From image features to captions: batched generation with a static KV cache, sampling, beam search and streaming."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.decoding.capabilities import unsupported_reason
    from captune.decoding.caption_cache import (
        CollectedCaptions,
        cached_captions,
        collect_captions,
        has_captions,
        stored_identities,
    )
    from captune.decoding.engine import DecodingEngine, SharedPrefix
    from captune.decoding.generate import Engine, as_caption, generate_captions, generate_ids, prompt_embeddings
    from captune.decoding.kv_cache import StaticKVCache
    from captune.decoding.oom import halve_on_oom, in_batches, is_out_of_memory
    from captune.decoding.options import (
        NON_FINITE_SCORES,
        Caption,
        DecodingKeywords,
        DecodingOptions,
        Progress,
        Request,
        StopRule,
        with_keywords,
    )
    from captune.decoding.text_stream import TextStream, stream_text
    from captune.decoding.transformers_generate import SamplingProcessor, ScoreCheck

__all__ = [
    "NON_FINITE_SCORES",
    "Caption",
    "CollectedCaptions",
    "DecodingEngine",
    "DecodingKeywords",
    "DecodingOptions",
    "Engine",
    "Progress",
    "Request",
    "SamplingProcessor",
    "ScoreCheck",
    "SharedPrefix",
    "StaticKVCache",
    "StopRule",
    "TextStream",
    "as_caption",
    "cached_captions",
    "collect_captions",
    "generate_captions",
    "generate_ids",
    "halve_on_oom",
    "has_captions",
    "in_batches",
    "is_out_of_memory",
    "prompt_embeddings",
    "stored_identities",
    "stream_text",
    "unsupported_reason",
    "with_keywords",
]

__getattr__ = lazy_names(
    __name__,
    {
        "capabilities": ["unsupported_reason"],
        "caption_cache": [
            "CollectedCaptions",
            "cached_captions",
            "collect_captions",
            "has_captions",
            "stored_identities",
        ],
        "engine": ["DecodingEngine", "SharedPrefix"],
        "generate": ["Engine", "as_caption", "generate_captions", "generate_ids", "prompt_embeddings"],
        "kv_cache": ["StaticKVCache"],
        "oom": ["halve_on_oom", "in_batches", "is_out_of_memory"],
        "options": [
            "NON_FINITE_SCORES",
            "Caption",
            "DecodingKeywords",
            "DecodingOptions",
            "Progress",
            "Request",
            "StopRule",
            "with_keywords",
        ],
        "transformers_generate": ["SamplingProcessor", "ScoreCheck"],
        "text_stream": ["TextStream", "stream_text"],
    },
)
