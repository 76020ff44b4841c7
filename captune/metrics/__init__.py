"""Caption metrics with coco-caption's numbers, without Java: exact, fast, signed, with error bars.

    from captune.metrics import score_captions

    scores = score_captions({"1": "a dog runs", ...}, {"1": ["A dog runs.", "The dog is running."], ...})
    print(scores)                      # numbers and the signature
    scores.corpus["CIDEr"], scores.per_image["1"]["BLEU-4"]

Importing this package imports nothing heavy; numpy comes with the first name that needs it, torch never.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captune.metrics import ptb
    from captune.metrics.frequencies import DocumentFrequencies
    from captune.metrics.scorer import DEFAULT_METRICS, Scorer, score_captions
    from captune.metrics.scores import METRICS, Metric, Scores
    from captune.metrics.signature import Signature, prompt_hash
    from captune.metrics.significance import (
        Comparison,
        Interval,
        approximate_randomization,
        confidence_intervals,
        paired_bootstrap,
    )

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "Comparison",
    "DocumentFrequencies",
    "Interval",
    "Metric",
    "Scorer",
    "Scores",
    "Signature",
    "approximate_randomization",
    "confidence_intervals",
    "paired_bootstrap",
    "prompt_hash",
    "ptb",
    "score_captions",
]

_HOME = {
    "DEFAULT_METRICS": "scorer",
    "METRICS": "scores",
    "Comparison": "significance",
    "DocumentFrequencies": "frequencies",
    "Interval": "significance",
    "Metric": "scores",
    "Scorer": "scorer",
    "Scores": "scores",
    "Signature": "signature",
    "approximate_randomization": "significance",
    "confidence_intervals": "significance",
    "paired_bootstrap": "significance",
    "prompt_hash": "signature",
    "score_captions": "scorer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name == "ptb":
        return import_module("captune.metrics.ptb")
    if name in _HOME:
        return getattr(import_module(f"captune.metrics.{_HOME[name]}"), name)
    raise AttributeError(f"module 'captune.metrics' has no attribute '{name}'")
