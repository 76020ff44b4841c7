"""Compare the input tokens of training and of generation side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.explain.checks import InputToken, piece_text
    from captune.explain.conversation import explain_conversation
    from captune.explain.explanation import Explanation, explain, small_copy

__all__ = [
    "Explanation",
    "InputToken",
    "explain",
    "explain_conversation",
    "piece_text",
    "small_copy",
]

__getattr__ = lazy_names(
    __name__,
    {
        "explanation": ["Explanation", "explain", "small_copy"],
        "conversation": ["explain_conversation"],
        "checks": ["InputToken", "piece_text"],
    },
)
