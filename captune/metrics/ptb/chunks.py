"""Chunks of a caption whose tokens depend on nothing around them: nearly all of them, and the way to be fast.

What can reach across a blank, or asks what stands behind one, needs a full stop after an initial or abbreviation, a
number, the beginning of a tag, a smiley, or one of 'll 're 've at the end. A chunk without any of these is lexed alone.
"""

from __future__ import annotations

import re

from captune.metrics.ptb.lexer import STOPPED_WORDS, lex
from captune.metrics.ptb.rules import Pattern
from captune.metrics.ptb.words import SPLIT_WORDS

__all__ = ["PUNCTUATION", "chunk_tokens"]

#: What pycocoevalcap drops after tokenising. Its list has brackets in capitals, which never meet lower-case tokens.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_PLAIN = re.compile(r"([A-Za-z]++)([.,]?)").fullmatch
_HYPHENATED = re.compile(r"([A-Za-z]++(?:-[A-Za-z]++)+)[.,]?").fullmatch
_NUMBER = re.compile(r"([0-9]{1,2}|[0-9]{1,4}[A-Za-z]++)[.,]?").fullmatch
# Letters, quotes, dashes and other marks: no digit and none of [<@=&], stops only at the end, [:;] only as the last.
_SAFE_END = r"(?:\.*+[\"')!?,\]]*+|[:;])"
_SAFE = re.compile(r"[!-%'-\-/>?A-~]*" + _SAFE_END).fullmatch
_SAFE_BEYOND_ASCII = Pattern(r"[!-%'-\-/>?A-~\xa1-\u1fff\u2011-\u2015\U00010000-\U0010ffff]*" + _SAFE_END + r"\Z")
_MAY_END_A_TEXT = re.compile(r"['’](?:ll|re|ve)$", re.IGNORECASE).search


def chunk_tokens(chunk: str) -> tuple[str, ...] | None:
    """The tokens of one chunk of `caption.split()`, or None where they depend on what stands around it.

    For every caption all of whose chunks give a tuple, the tuples laid end to end are `tokenize(caption)`, and what
    `tokenize_call` gives too, whatever the caption's neighbours. Chunks repeat, so callers should cache the answers.

    Args:
        chunk: characters without white space between them.
    """
    if plain := _PLAIN(chunk):
        word = plain[1].lower()
        if word in SPLIT_WORDS:
            return word[: SPLIT_WORDS[word]], word[SPLIT_WORDS[word] :]
        return None if plain[2] == "." and word in STOPPED_WORDS else (word,)
    if simple := _HYPHENATED(chunk) or _NUMBER(chunk):
        return (simple[1].lower(),)
    safe = _SAFE(chunk) if chunk.isascii() else _SAFE_BEYOND_ASCII.match(chunk, 0)
    if not safe or _MAY_END_A_TEXT(chunk):
        return None
    tokens = lex(chunk)
    if "." in chunk and (
        chunk.lstrip(".")[:1] not in ("", chunk[0]) or any(token.rstrip(".") in STOPPED_WORDS for token in tokens)
    ):
        return None
    return tuple([token for token in tokens if token not in PUNCTUATION])
