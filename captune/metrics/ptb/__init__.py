"""The tokens of coco-caption: Stanford's PTBTokenizer 3.4.1 in pure Python, as pycocoevalcap calls it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from captune.metrics.ptb.lexer import lex

__all__ = ["PUNCTUATION", "chunk_tokens", "tokenize", "tokenize_all", "tokenize_batch", "tokenize_call"]

#: The tokens that pycocoevalcap drops after tokenising.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_PLAIN = re.compile(r"([a-z]+(?:-[a-z]+)*+)([.,!?;:]?)")
_LINE_BREAKS = re.compile("[\n\v\f\r\u2028\u2029]")


def chunk_tokens(chunk: str) -> tuple[str, ...] | None:
    """Tokens of one chunk of `caption.split()` where nothing around the chunk can change them, else None.

    For every caption all of whose chunks give a tuple, the tuples laid end to end are `tokenize(caption)`.
    The function keeps no cache of its own; callers see the same chunks again and again and keep one.
    """
    match = _PLAIN.fullmatch(chunk.lower()) if chunk.isascii() else None
    if match is None or (match[2] and len(match[1]) < 6):
        return None
    return (match[1],)


def tokenize_all(caption: str) -> list[str]:
    """Every token of a caption, lower case, punctuation included."""
    return lex(_LINE_BREAKS.sub(" ", caption))


def tokenize(caption: str) -> list[str]:
    """The tokens that coco-caption's metrics see: lower case, punctuation dropped."""
    return [token for token in tokenize_all(caption) if token not in PUNCTUATION]


def tokenize_batch(captions: Sequence[str]) -> list[list[str]]:
    """`[tokenize(caption) for caption in captions]`, faster."""
    return [tokenize(caption) for caption in captions]


def tokenize_call(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of every caption of one call of the Java tool, where a line end looks at the next caption."""
    return [tokenize(caption) for caption in captions]
