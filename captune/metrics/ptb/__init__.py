"""The tokens of coco-caption: Stanford's PTBTokenizer 3.4.1 as pycocoevalcap 1.2 calls it, in pure Python.

    tokenize("A man's dog can't stop.")    # ['a', 'man', "'s", 'dog', 'ca', "n't", 'stop']

Equal to the Java tool on real captions and hostile strings, in time linear in the text, on any string at all.
The work of others that this reproduces was only observed from outside; the patterns and lists here are our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from captune.metrics.ptb.lexer import LINE_END, PUNCTUATION, chunk_tokens, lex

__all__ = ["PUNCTUATION", "chunk_tokens", "tokenize", "tokenize_all", "tokenize_batch", "tokenize_call"]

# pycocoevalcap replaces the first by a space; the others end a line for Java, which shifts all captions that follow.
_LINE_FEED = "\n"
_LINE_BREAKS = re.compile("[\v\f\r\u2028\u2029]")


def tokenize_all(caption: str) -> list[str]:
    """Every token of a caption that is alone in its call of the tool: lower case, punctuation included.

    Characters that break lines count as spaces. A token can hold no-break spaces ("1 1/2" is one token).
    """
    return lex(_on_one_line(caption))


def tokenize(caption: str) -> list[str]:
    """The tokens of a caption that coco-caption's metrics see: lower case, without those in `PUNCTUATION`.

    The caption is alone in its call, so its tokens depend on nothing else. Any string has an answer.
    """
    return _kept(tokenize_all(caption))


def tokenize_batch(captions: Sequence[str]) -> list[list[str]]:
    """`[tokenize(caption) for caption in captions]`, several times faster."""
    known: dict[str, tuple[str, ...] | None] = {}
    batch = []
    for caption in captions:
        tokens = _from_chunks(caption, known)
        batch.append(tokenize(caption) if tokens is None else tokens)
    return batch


def tokenize_call(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of all captions of one call of the tool, which at a line's end looks at the next caption.

    "letter p." keeps the full stop ("p.") unless the caption after it begins with "A", "The" or the like. One fault of
    the original is not reproduced: line-breaking characters inside a caption, which shift all captions after it, count
    as spaces; a warning says how many there were.
    """
    lines = [_on_one_line(caption) for caption in captions]
    broken = sum(len(_LINE_BREAKS.findall(caption)) for caption in captions)
    if broken:
        import logging  # as slow to import as a thousand captions are to tokenize

        logging.getLogger(__name__).warning(
            "%d characters that break lines (such as a carriage return) stand inside captions and were read as spaces; "
            "the Java tool shifts all captions after one of them.",
            broken,
        )
    known: dict[str, tuple[str, ...] | None] = {}
    call = []
    for index, line in enumerate(lines):
        tokens = _from_chunks(line, known)
        call.append(_kept(_before_next(lines, index)) if tokens is None else tokens)
    return call


def _on_one_line(caption: str) -> str:
    return _LINE_BREAKS.sub(" ", caption.replace(_LINE_FEED, " "))


def _kept(tokens: list[str]) -> list[str]:
    """What pycocoevalcap keeps of a line of tokens; it strips the end of the line, no-break spaces too."""
    if tokens and tokens[-1][-1].isspace():
        tokens[-1] = tokens[-1].rstrip()
    return [token for token in tokens if token not in PUNCTUATION]


def _from_chunks(caption: str, known: dict[str, tuple[str, ...] | None]) -> list[str] | None:
    """The tokens of a caption from those of its chunks, or None where a chunk's depend on others."""
    tokens: list[str] = []
    for chunk in caption.split():
        if chunk in known:
            tokens_of_chunk = known[chunk]
        else:
            tokens_of_chunk = known[chunk] = chunk_tokens(chunk)
        if tokens_of_chunk is None:
            return None
        tokens += tokens_of_chunk
    return tokens


def _before_next(lines: Sequence[str], index: int) -> list[str]:
    """All tokens of a line, read with what follows as far as the tool looks: to the end of the next line not blank."""
    if index + 1 == len(lines):
        return lex(lines[index])
    return lex(LINE_END.join([lines[index], *_following(lines, index)]), first_line_only=True)


def _following(lines: Sequence[str], index: int) -> Iterator[str]:
    for following in range(index + 1, len(lines)):
        yield lines[following]
        if lines[following].strip():
            yield ""
            return
