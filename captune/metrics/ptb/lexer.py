"""Text to tokens: at every place the longest of all patterns, and of equal ones the first."""

from __future__ import annotations

import re
from collections.abc import Callable
from string import ascii_letters

from captune.metrics.ptb.characters import from_utf16_units, shape_of, to_utf16_units
from captune.metrics.ptb.rules import AFTER_WORD, ALNUM, BY_FIRST, TAG, WORD, Rule
from captune.metrics.ptb.spans import Spans
from captune.metrics.ptb.words import (
    CASE_RULES,
    ENDING_ABBREVIATIONS,
    INNER_ABBREVIATIONS,
    NUMBER_ABBREVIATIONS,
    SPLIT_WORDS,
)

__all__ = ["LINE_END", "STOPPED_WORDS", "lex"]

LINE_END = "\n"

#: Words after which a full stop is not simply a token of its own.
STOPPED_WORDS = INNER_ABBREVIATIONS | ENDING_ABBREVIATIONS | NUMBER_ABBREVIATIONS | frozenset(ascii_letters)

_BETWEEN = re.compile("[ \t\xa0\u2003\x00-\x08\x0b-\x1f\x7f‐]++").match
# A word of ASCII letters in plain surroundings, which no other pattern can begin or go on.
_PLAIN_WORD = re.compile(r" *+([A-Za-z]++)(?=([.,]?)(?:[ \n]|\Z))").match
_ABBREVIATION = re.compile(r"([A-Za-z]{2,6})\.").match
_DEGREE = re.compile(r"((?:ph|ed)\.d)\.", re.IGNORECASE | re.ASCII).match
_BLANKS_RUN = re.compile("[ \t\xa0\u2003]++").match
_CAPITAL_NEXT = re.compile("[ \t\xa0\u2003\n\x85][ \t\xa0\u2003\n\x85A-ZÉ]").match
_NUMBER_NEXT = re.compile("[ \t\xa0\u2003\n\x85]?[0-9٠]").match
_ASCII_WORD_START = frozenset(ascii_letters)
_WORD_START = frozenset(ascii_letters + "éÉ˂\xad\ue000")
_PLAIN: tuple[Rule, ...] = (Rule(WORD),)


def _blanks_bound(token: str) -> str:
    return token.replace(" ", "\xa0")


def _as_it_is(token: str) -> str:
    return token


class _Best:
    """The best token found so far at one place.

    Attributes:
        reach: how far its pattern looked; decides.
        end: where the token ends.
        render: how it is written out (see `Rule`).
        back: how many of its characters are read again.
    """

    __slots__ = ("back", "end", "reach", "render")

    def __init__(self) -> None:
        self.reach = -1
        self.end = -1
        self.render: Callable[[str], str] | None = None
        self.back = 0

    def offer(self, reach: int, end: int, render: Callable[[str], str] | None = None, back: int = 0) -> None:
        if reach > self.reach:
            self.reach, self.end, self.render, self.back = reach, end, render, back


def _offer_abbreviation(shape: str, position: int, best: _Best) -> None:
    """An abbreviation and its full stop, which at the end of a sentence is read again."""
    for match in (_DEGREE(shape, position), _ABBREVIATION(shape, position)):
        if match is None:
            continue
        spelling, end = match[1], match.end()
        name = spelling.lower()
        if name not in STOPPED_WORDS or (name in CASE_RULES and spelling[CASE_RULES[name][0]] != CASE_RULES[name][1]):
            continue
        if name in INNER_ABBREVIATIONS:
            best.offer(end, end)
        elif name in NUMBER_ABBREVIATIONS:
            if number := _NUMBER_NEXT(shape, end):
                best.offer(number.end(), end)
        elif _CAPITAL_NEXT(shape, end):
            best.offer(end + 2, end, back=1)
        elif shape[end : end + 1] in _BLANKS and (tag := TAG(shape, end + 1)):
            best.offer(tag.end(), end, back=1)
        elif end + 2 <= len(shape):
            best.offer(end + 2, end)
        else:
            best.offer(end, end, back=1)


_BLANKS = frozenset(" \t\xa0\u2003\n\x85")


def _offer_addresses(shape: str, position: int, spans: Spans, best: _Best) -> None:
    first = shape[position]
    if spans.may_have_email and (first in ALNUM or first in "<&"):
        end = spans.email(position)
        best.offer(end, end, _as_it_is)
    if first in "hH":
        end = spans.link(position)
        best.offer(end, end, _as_it_is)
    if first in "wW":
        end = spans.www(position)
        best.offer(end, end, _as_it_is)
    if spans.may_have_site:
        end = spans.site(position)
        best.offer(end, end, _as_it_is)
    if first == "<":
        end = spans.tag(position)
        best.offer(end, end, _blanks_bound)

def _best_at(shape: str, position: int, spans: Spans) -> _Best:
    best = _Best()
    first = shape[position]
    rules = BY_FIRST.get(first, ())
    word = WORD(shape, position) if first in _WORD_START else None
    if word:
        rules = (*AFTER_WORD.get(shape[word.end() : word.end() + 1], _PLAIN), *rules)
    for rule in rules:
        match = rule.match(shape, position)
        if match and match.end() > best.reach:
            best.offer(match.end(), match.end(1), rule.render, rule.back)
    _offer_addresses(shape, position, spans, best)
    if word and shape[word.end() : word.end() + 1] == ".":
        _offer_abbreviation(shape, position, best)
        best.offer(*spans.file(position), _as_it_is)
    elif first in "0123456789٠":
        best.offer(*spans.file(position), _as_it_is)
    if spans.may_have_list and first in ALNUM:
        end = spans.hyphenated_list(position)
        stopped = end > 0 and shape[end : end + 1] == "." and shape[end + 1 : end + 2] in {",", ";", ":"}
        best.offer(end + 2 if stopped else end, end + 1 if stopped else end)
    return best


def _blank_end(shape: str, position: int) -> int:
    """Where the next token can begin: behind all blanks, or behind one dropped character."""
    blanks = _BLANKS_RUN(shape, position)
    return blanks.end() if blanks else position + 1


def lex(text: str, *, first_line_only: bool = False) -> list[str]:
    """All tokens of a text in lower case; a line end is a token of its own.

    Any string is taken: characters that the original drops separate words, a lone surrogate is such a character.
    """
    astral = not text.isascii() and max(text) > "\uffff"
    if astral:
        text = to_utf16_units(text)
    shape = shape_of(text)
    spans = Spans(shape)
    tokens: list[str] = []
    position, length = 0, len(shape)
    while position < length:
        if plain := _PLAIN_WORD(shape, position):
            name = plain[1].lower()
            if name not in SPLIT_WORDS and not (plain[2] == "." and name in STOPPED_WORDS) and not spans.may_have_site:
                tokens.append(name)
                position = plain.end()
                continue
        if between := _BETWEEN(shape, position):
            if not spans.may_have_site or (end := spans.site(position)) <= (gap := _blank_end(shape, position)):
                position = between.end() if not spans.may_have_site else gap
            else:
                tokens.append(text[position:end].lower())
                position = end
            continue
        if shape[position] == LINE_END:
            if first_line_only:
                break
            tokens.append(LINE_END)
            position += 1
            continue
        best = _best_at(shape, position, spans)
        if best.reach < 0:
            position += 1
            continue
        token = text[position : best.end]
        first = SPLIT_WORDS.get(token.lower())
        if first and best.reach == best.end:
            best.end = position + first
            token = token[:first]
        if best.render:
            token = best.render(token)
        elif "\xad" in token:
            token = token.replace("\xad", "") or "-"
        if token:
            tokens.append(token.lower())
        position = best.end - best.back
    return [from_utf16_units(token) for token in tokens] if astral else tokens
