"""The tokens of training and of generation, side by side: what a language model is fed and trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.explain.checks import FedToken, piece_text
    from captune.explain.explanation import Explanation, explain, stand_in

__all__ = [
    "Explanation",
    "FedToken",
    "explain",
    "piece_text",
    "stand_in",
]

__getattr__ = lazy_names(
    __name__,
    {
        "explanation": ["Explanation", "explain", "stand_in"],
        "checks": ["FedToken", "piece_text"],
    },
)
