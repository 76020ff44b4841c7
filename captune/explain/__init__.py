"""The tokens of training and of generation, side by side: what a language model is fed and trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.explain.compare import Explanation, explain, stand_in
    from captune.explain.layout import FedToken, piece_text

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
        "compare": ["Explanation", "explain", "stand_in"],
        "layout": ["FedToken", "piece_text"],
    },
)
