"""Which tokenizer a score was made with: a name in the signature, and the functions behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from captune.errors import MetricInputError

__all__ = ["TOKENIZERS", "Tokenizer", "tokenizer"]

TOKENIZERS = ("ptb", "zh-char", "zh-jieba", "13a", "none")


class Tokenizer(NamedTuple):
    """How captions become tokens.

    Attributes:
        name: what stands in the signature, with the version ("ptb3.4.1").
        tokenize: one caption to its tokens.
        chunk_tokens: the tokens of one chunk of `caption.split(separator)` when they are the same in every caption,
            else None; absent where there is no such thing.
        separator: what stands between chunks; None is any white space.
        tokenize_call: the captions of a whole call at once, as the original tool sees them; None where captions do
            not depend on each other anyway.
    """

    name: str
    tokenize: Callable[[str], Sequence[str]]
    chunk_tokens: Callable[[str], tuple[str, ...] | None] | None = None
    separator: str | None = None
    tokenize_call: Callable[[Sequence[str]], list[list[str]]] | None = None


def _split_on_spaces(caption: str) -> list[str]:
    return caption.split(" ")


def _chunk_itself(chunk: str) -> tuple[str]:
    return (chunk,)


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a name.

    Args:
        name: "ptb" (English, what coco-caption uses), "zh-char", "zh-jieba", "13a" (sacrebleu's), or "none"
            (captions are tokenized already, one space between two tokens).

    Raises:
        MetricInputError: there is no such tokenizer.
    """
    if name == "ptb":
        from captune.metrics import ptb

        return Tokenizer("ptb3.4.1", ptb.tokenize, ptb.chunk_tokens, None, ptb.tokenize_call)
    if name == "none":
        return Tokenizer("none", _split_on_spaces, _chunk_itself, " ")
    if name in TOKENIZERS:
        from captune.metrics.languages import language_tokenizer

        return Tokenizer(*language_tokenizer(name))
    raise MetricInputError(f"the tokenizer {name!r} is not known; choose one of {', '.join(TOKENIZERS)}")
