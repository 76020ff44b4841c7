"""Caption metrics with the numbers of coco-caption, without Java, with signatures and confidence intervals.

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
    from captune.metrics.document_frequencies import DocumentFrequencies
    from captune.metrics.metric import Column, MeanOfImages, Metric
    from captune.metrics.options import DEFAULT_METRICS, ScoringOptions
    from captune.metrics.references import PredictionBatch, ReferenceIndex
    from captune.metrics.registry import METRICS, check_metrics, find_column
    from captune.metrics.scorer import Scorer, score_captions
    from captune.metrics.scores import Scores, Signature, prompt_hash
    from captune.metrics.significance import (
        Comparison,
        Interval,
        approximate_randomization,
        confidence_intervals,
        paired_bootstrap,
    )

_MODULES = {
    "DEFAULT_METRICS": "options",
    "METRICS": "registry",
    "Column": "metric",
    "Comparison": "significance",
    "DocumentFrequencies": "document_frequencies",
    "Interval": "significance",
    "MeanOfImages": "metric",
    "Metric": "metric",
    "PredictionBatch": "references",
    "ReferenceIndex": "references",
    "Scorer": "scorer",
    "Scores": "scores",
    "ScoringOptions": "options",
    "Signature": "scores",
    "approximate_randomization": "significance",
    "check_metrics": "registry",
    "confidence_intervals": "significance",
    "find_column": "registry",
    "paired_bootstrap": "significance",
    "prompt_hash": "scores",
    "score_captions": "scorer",
}

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "Column",
    "Comparison",
    "DocumentFrequencies",
    "Interval",
    "MeanOfImages",
    "Metric",
    "PredictionBatch",
    "ReferenceIndex",
    "Scorer",
    "Scores",
    "ScoringOptions",
    "Signature",
    "approximate_randomization",
    "check_metrics",
    "confidence_intervals",
    "find_column",
    "paired_bootstrap",
    "prompt_hash",
    "ptb",
    "score_captions",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name == "ptb":
        return import_module("captune.metrics.ptb")
    if name in _MODULES:
        return getattr(import_module(f"captune.metrics.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'captune.metrics' has no attribute '{name}'")
