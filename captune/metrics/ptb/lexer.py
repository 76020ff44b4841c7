"""Split text into tokens: at each position the longest match of all patterns, the first of equally long ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import ascii_letters, digits

from captune.metrics.ptb.rules import (
    AFTER_WORD,
    ALNUM,
    BY_FIRST,
    CASE_RULES,
    ENDING_ABBREVIATIONS,
    INNER_ABBREVIATIONS,
    LONE_BEFORE,
    NUMBER_ABBREVIATIONS,
    SPLIT_WORDS,
    WORD,
    Pattern,
    Render,
    from_utf16_units,
    shape_of,
    to_utf16_units,
)

__all__ = ["LINE_END", "PUNCTUATION", "STOPPED_WORDS", "Spans", "chunk_tokens", "lex"]


# Long tokens: addresses, links, tags, lists joined by a hyphen.

# The longest tag, in characters.
_LONGEST_TAG = 1000

_EMAIL_OPENING = re.compile("<|&[lL][tT];").match
_EMAIL_RUN = re.compile(r'[^ \t\n"()<>{|}\xa0]++').match
_EMAIL_HOST = re.compile(r'[^ \t\n"().<>{|}\xa0]++(?:\.[^ \t\n"().<>{|}\xa0]++)*>?').match
# "a+b.com", but not "a-b.com": the original takes no capital, digit or most punctuation here, and all beyond ASCII.
_SITE_RUN = re.compile(r"""[^ \t\n!"$'(),-_`{|}\ue000]++(?:\.[^ \t\n!"$'(),-_`{|}\ue000]++)*""").match
_SITE_END = re.compile(r"\.(?:com|net|org|edu)", re.IGNORECASE | re.ASCII)
_WWW_RUN = re.compile(r'[wW]{3}\.[^ \t\n!"(),.<>?{|}]++(?:\.[^ \t\n!"(),.<>?{|}]++)*').match
_WWW_END = re.compile(r"\.[A-Za-z]{2,4}").match
_PATH = re.compile(r'/[^ \t\n"()<>|]+[^ \t\n!"(),\-.<>?{|}]').match
_LINK = re.compile(r'[hH][tT][tT][pP][sS]?://[^ \t\n"()<>{|}]+[^ \t\n!"(),\-.<>?{|}]').match
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*+"
_TAG = re.compile(
    rf"<(?:/{_NAME} *+|{_NAME}(?: ++{_NAME}(?: *+= *+(?:\"[^\"\n]*+\"|'[^'\n]*+'))?)* *+(?:/ *+)?)>"
).match
_DECLARATION = re.compile(r"<[!?][A-Za-z-][^>\n]*+").match
_FILE_RUN = Pattern("«LN»++(?:\\.«LN»++)+")
_FILE_END = Pattern(
    r"(?i:\.(?:bat|bmp|cgi|class|cpp|c|dll|docx?|exe|gif|gz|html?|h|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql"
    r"|tar|txt|wav|xml|x|zip))[ \t\xa0\u2003\n\x85.?!,]"
)
_LIST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.,\xad]*+").match
_LIST_TAIL = re.compile(r"(?:-[A-Za-z0-9\xad]++)+").match
_LIST_INITIALS = re.compile(r"(?<=-[A-Za-z])\.(?:[A-Za-z]\.)+").match


class Spans:
    """The long tokens of one shape.

    Every method takes a position and gives the end of the longest token of its kind that begins there, or -1. Positions
    must not decrease from call to call.
    """

    def __init__(self, shape: str) -> None:
        self._shape = shape
        self.may_have_email = "@" in shape
        self.may_have_site = "." in shape and _SITE_END.search(shape) is not None
        self.may_have_list = "-" in shape
        self._no_email_before = self._no_site_before = self._no_www_before = 0
        self._no_declaration_before = self._no_list_before = self._no_file_before = 0

    def email(self, position: int) -> int:
        """An address such as john.doe@x.org, in angle brackets or not; nearly every character may occur in it."""
        shape = self._shape
        opening = _EMAIL_OPENING(shape, position)
        start = opening.end() if opening else position
        if start < self._no_email_before or shape[start : start + 1] not in ALNUM:
            return -1
        run = _EMAIL_RUN(shape, start)
        assert run is not None
        at = shape.rfind("@", start + 1, run.end())
        while at > 0:
            host = _EMAIL_HOST(shape, at + 1)
            if host:
                return host.end()
            at = shape.rfind("@", start + 1, at)
        self._no_email_before = run.end()
        return -1

    def site(self, position: int) -> int:
        """A name that ends in .com, .net, .org or .edu, and the path after it."""
        shape = self._shape
        if position < self._no_site_before:
            return -1
        run = _SITE_RUN(shape, position)
        if run is None:
            return -1
        dot = shape.rfind(".", position + 1, run.end() + 1)
        while dot > 0:
            end = _SITE_END.match(shape, dot)
            if end:
                path = _PATH(shape, end.end())
                return (path or end).end()
            dot = shape.rfind(".", position + 1, dot)
        self._no_site_before = run.end()
        return -1

    def www(self, position: int) -> int:
        """A name that begins with www. and ends in two to four letters, and the path after it."""
        shape = self._shape
        if position < self._no_www_before or not (run := _WWW_RUN(shape, position)):
            return -1
        longest = -1
        dot = shape.rfind(".", position + 5, run.end() + 1)
        while dot > 0:
            end = _WWW_END(shape, dot)
            if end:
                longest = max(longest, end.end())
                if path := _PATH(shape, end.end()):
                    return max(longest, path.end())
            dot = shape.rfind(".", position + 5, dot)
        if longest < 0:
            self._no_www_before = run.end()
        return longest

    def link(self, position: int) -> int:
        """http:// or https:// and what follows."""
        match = _LINK(self._shape, position)
        return match.end() if match else -1

    def tag(self, position: int) -> int:
        """A tag, comment or processing instruction of mark-up."""
        shape = self._shape
        match = _TAG(shape, position, position + _LONGEST_TAG)
        if match:
            return match.end()
        if position >= self._no_declaration_before and (match := _DECLARATION(shape, position)):
            if shape[match.end() : match.end() + 1] == ">":
                return match.end() + 1
            self._no_declaration_before = match.end()
        return -1

    def hyphenated_list(self, position: int) -> int:
        """Words, numbers, stops and commas before a hyphen: U.S.-based, 1.5-2, a,b-c; or initials after one: ex-U.S."""
        if position < self._no_list_before or not (head := _LIST(self._shape, position)):
            return -1
        tail = _LIST_TAIL(self._shape, head.end())
        if tail is None:
            self._no_list_before = head.end()
            return -1
        while initials := _LIST_INITIALS(self._shape, tail.end()):
            tail = _LIST_TAIL(self._shape, initials.end())
            if tail is None:
                return initials.end()
        return tail.end()

    def file(self, position: int) -> tuple[int, int]:
        """A file name with a known ending before a blank or [.?!,]: where that ends, and where the name ends."""
        if position < self._no_file_before or not (run := _FILE_RUN.match(self._shape, position)):
            return -1, -1
        dot = self._shape.rfind(".", position, run.end())
        while dot > 0:
            end = _FILE_END.match(self._shape, dot)
            if end:
                return end.end(), end.end() - 1
            dot = self._shape.rfind(".", position, dot)
        self._no_file_before = run.end()
        return -1, -1


LINE_END = "\n"

#: Words after which a full stop is not always a separate token.
STOPPED_WORDS = INNER_ABBREVIATIONS | ENDING_ABBREVIATIONS | NUMBER_ABBREVIATIONS | frozenset(ascii_letters)

# A word of ASCII letters in plain surroundings, which no other pattern can begin or continue.
_PLAIN_WORD = re.compile(r" *+([A-Za-z]++)(?=([.,]?)(?:[ \n]|\Z))").match
# Blanks, and what the original drops: both separate tokens.
_GAP = re.compile("[ \t\xa0\u2003\x00-\x08\x0b-\x1f\x7f‐]++").match
_BLANKS = re.compile("[ \t\xa0\u2003]++").match
_ABBREVIATION = re.compile(r"([A-Za-z]{2,6})\.").match
_DEGREE = re.compile(r"((?:ph|ed)\.d)\.", re.IGNORECASE | re.ASCII).match
_CAPITAL_NEXT = re.compile("[ \t\xa0\u2003\n\x85][ \t\xa0\u2003\n\x85A-ZÉ]").match
_TAG_NEXT = re.compile("[ \t\xa0\u2003\n\x85](?=<)").match
_NUMBER_NEXT = re.compile("[ \t\xa0\u2003\n\x85]?[0-9٠]").match
_INITIALS_AND_TAG = re.compile("((?:[A-Za-z]\\.)+)[ \t\xa0\u2003\n\x85]++(?=<)").match
_BLANK = re.compile("[ \t\xa0\u2003\n\x85]").match

_WORD_START = frozenset(ascii_letters + "éÉ˂\xad\ue000")
_DIGITS = frozenset(digits + "٠")
_LIST_START = frozenset(ascii_letters + digits)
_EMAIL_START = _LIST_START | {"<", "&"}
_ONLY_WORD = (WORD,)
# After a word, these characters may extend the token.
_GOES_ON = frozenset(":,") | AFTER_WORD.keys()

#: How far a pattern looked, where its token ends, how it is written out, how many characters are read again.
_Candidate = tuple[int, int, Render | None, int]
_NONE: _Candidate = (-1, -1, None, 0)


def _blanks_bound(token: str) -> str:
    return token.replace(" ", "\xa0")


def _as_it_is(token: str) -> str:
    return token


def _ending_candidates(shape: str, position: int, spans: Spans) -> Iterator[_Candidate]:
    """Abbreviations and initials with their full stop, which at the end of a sentence is read again."""
    for match in (_DEGREE(shape, position), _ABBREVIATION(shape, position)):
        if match is None:
            continue
        spelling, end = match[1], match.end()
        name = spelling.lower()
        if name not in STOPPED_WORDS or (name in CASE_RULES and spelling[CASE_RULES[name][0]] != CASE_RULES[name][1]):
            continue
        if name in INNER_ABBREVIATIONS:
            yield end, end, None, 0
        elif name in NUMBER_ABBREVIATIONS:
            if number := _NUMBER_NEXT(shape, end):
                yield number.end(), end, None, 0
        elif _CAPITAL_NEXT(shape, end):
            yield end + 2, end, None, 1
        elif (blank := _TAG_NEXT(shape, end)) and (tag_end := spans.tag(blank.end())) > 0:
            yield tag_end, end, None, 1
        elif end + 2 <= len(shape):
            yield end + 2, end, None, 0
        else:
            yield end, end, None, 1
    if initials := _INITIALS_AND_TAG(shape, position):
        blank = _BLANK(shape, tag_end) if (tag_end := spans.tag(initials.end())) > 0 else None
        if blank and initials.end(1) - position == 2:
            yield blank.end(), position + 1, None, 0
        elif blank:
            yield blank.end(), initials.end(1), None, 1


def _address_candidates(shape: str, position: int, spans: Spans) -> Iterator[_Candidate]:
    first = shape[position]
    if spans.may_have_email and first in _EMAIL_START:
        end = spans.email(position)
        yield end, end, _as_it_is, 0
    if first in "hH":
        end = spans.link(position)
        yield end, end, _as_it_is, 0
    if first in "wW":
        end = spans.www(position)
        yield end, end, _as_it_is, 0
    if spans.may_have_site:
        end = spans.site(position)
        yield end, end, _as_it_is, 0
    if first == "<":
        end = spans.tag(position)
        yield end, end, _blanks_bound, 0


def _list_candidate(shape: str, position: int, spans: Spans) -> _Candidate:
    end = spans.hyphenated_list(position)
    if end > 0 and shape[end : end + 1] == "." and shape[end + 1 : end + 2] in {",", ";", ":"}:
        return end + 2, end + 1, None, 0
    return end, end, None, 0


def _longest(shape: str, position: int, spans: Spans) -> _Candidate:
    """The token at a position; a reach of -1 where there is none."""
    first = shape[position]
    rules, following = BY_FIRST.get(first, ()), ""
    if first in _WORD_START and (word := WORD.match(shape, position)):
        following = shape[word.end() : word.end() + 1]
        if not (rules or following in _GOES_ON or spans.may_have_email or spans.may_have_site):
            return word.end(), word.end(), None, 0
        rules = (*AFTER_WORD.get(following, _ONLY_WORD), *rules)
    best, reach = _NONE, -1
    for rule in rules:
        match = rule.match(shape, position)
        if match and match.end() > reach:
            reach = match.end()
            best = reach, match.end(1), rule.render, rule.back
    candidates = list(_address_candidates(shape, position, spans))
    if following == ".":
        candidates += _ending_candidates(shape, position, spans)
    if following == "." or first in _DIGITS:
        candidates.append((*spans.file(position), _as_it_is, 0))
    if spans.may_have_list and first in _LIST_START:
        candidates.append(_list_candidate(shape, position, spans))
    for candidate in candidates:
        if candidate[0] > best[0]:
            best = candidate
    return best


def _gap_end(shape: str, position: int, spans: Spans) -> int:
    """Where the next token begins at the earliest; `position` itself where a token begins right here."""
    gap = _GAP(shape, position)
    if gap is None:
        return position
    if not spans.may_have_site:
        return gap.end()
    # Dropped characters may be part of a site's name, after which they are not dropped.
    blanks = _BLANKS(shape, position)
    end = blanks.end() if blanks else position + 1
    return position if spans.site(position) > end else end


def _rendered(token: str, render: Render | None) -> str:
    if render:
        return render(token)
    return token.replace("\xad", "") or "-" if "\xad" in token else token


def lex(text: str, *, first_line_only: bool = False) -> list[str]:
    """All tokens of a text in lower case; a line end is a separate token.

    Any string is taken: characters that the original drops separate words, and a lone surrogate is one of them.

    Args:
        text: line feeds are its line ends.
        first_line_only: stop at the first line end; what follows is only looked at.
    """
    astral = not text.isascii() and max(text) > "\uffff"
    if astral:
        text = to_utf16_units(text)
    shape = shape_of(text)
    spans = Spans(shape)
    tokens: list[str] = []
    position, length = 0, len(shape)
    while position < length:
        if not spans.may_have_site and (plain := _PLAIN_WORD(shape, position)):
            name = plain[1].lower()
            if name not in SPLIT_WORDS and not (plain[2] == "." and name in STOPPED_WORDS):
                tokens.append(name)
                position = plain.end()
                continue
        lone = LONE_BEFORE.get(shape[position])
        if lone and not spans.may_have_site and shape[position + 1 : position + 2] in lone[0]:
            tokens.append(lone[1])
            position += 1
            continue
        end = _gap_end(shape, position, spans)
        if end > position:
            position = end
            continue
        if shape[position] == LINE_END:
            if first_line_only:
                break
            tokens.append(LINE_END)
            position += 1
            continue
        reach, end, render, back = _longest(shape, position, spans)
        if reach < 0:
            position += 1
            continue
        token = text[position:end].lower()
        if reach == end and token in SPLIT_WORDS:
            end = position + SPLIT_WORDS[token]
        if token := _rendered(text[position:end], render):
            tokens.append(token.lower())
        position = end - back
    return [from_utf16_units(token) for token in tokens] if astral else tokens


# Chunks of a caption whose tokens depend on nothing around them: nearly all of them, and the way to be fast.

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
    """The tokens of one chunk of `caption.split()`, or None if they depend on the text around it.

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
