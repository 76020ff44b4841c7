"""Metrics that need another program or model: METEOR and SPICE in Java, CLIPScore with a CLIP model."""

from captune.metrics.external.corenlp import CORENLP_SHA1, CORENLP_URL, fetch_models

__all__ = [
    "CORENLP_SHA1",
    "CORENLP_URL",
    "fetch_models",
]
