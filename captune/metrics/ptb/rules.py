"""The patterns of tokens, written for shapes (see `characters`).

At every place the longest pattern wins, of equal ones the first; what a pattern must see behind the token counts as
length, and its group 1 is the token. So the original decides; the patterns were found by giving it millions of strings.

No pattern here reads more than a small multiple of what the winning token takes, and none keeps a choice open for every
character it has read, so a text is read in linear time and little memory. What could look far ahead of a short token
(addresses, links, tags, lists) stands in `spans`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from captune.metrics.ptb.words import FIRST_WORDS

__all__ = ["AFTER_WORD", "ALNUM", "BY_FIRST", "LONE_BEFORE", "WORD", "Render", "Rule", "pattern"]


# Written «…» in the sources of patterns, letter by letter; every other character there stands for itself.
_CLASSES = {
    "L": "A-Za-zéÉ˂\xad\ue000",  # what a word is made of
    "A": "A-Za-zéÉ",  # letters that join things
    "N": "0-9٠",
    "B": " \t\xa0\u2003\n\x85",  # blanks and line ends, to what looks ahead
}


#: How a token is written out.
Render = Callable[[str], str]


class Rule(NamedTuple):
    """One kind of token.

    Attributes:
        match: finds it in a shape from a position on; group 1 is the token, what follows is only looked at.
        render: the token as it is written out; None where it only loses its soft hyphens.
        back: how many characters of the token are read again.
    """

    match: Callable[[str, int], re.Match[str] | None]
    render: Render | None = None
    back: int = 0


def pattern(source: str) -> Callable[[str, int], re.Match[str] | None]:
    """The `match` of a pattern in whose source «LN-» is any character of the classes L and N, or a hyphen."""

    def characters(match: re.Match[str]) -> str:
        return "[" + "".join(_CLASSES.get(name, name) for name in match[1]) + "]"

    return re.compile(re.sub("«([^»]*)»", characters, source)).match


def _rule(source: str, render: Render | None = None, back: int = 0) -> Rule:
    return Rule(pattern(source), render, back)


def _constant(token: str) -> Render:
    return lambda _: token


def _as_it_is(token: str) -> str:
    return token


def _brackets_named(token: str) -> str:
    return token.replace("(", "-LRB-").replace(")", "-RRB-")


def _blanks_bound(token: str) -> str:
    return _brackets_named(token.replace(" ", "\xa0"))


def _plain_ampersands(token: str) -> str:
    return re.sub("&[aA][mM][pP];", "&", token)


_QUOTES = {
    **dict.fromkeys("‘‛‹\x91", "`"),
    **dict.fromkeys("’›\x92", "'"),
    **dict.fromkeys("“«\x93", "``"),
    **dict.fromkeys("”»\x94", "''"),
}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}


def _quotes_straightened(token: str) -> str:
    return "".join([_QUOTES.get(character, character) for character in token.replace("&apos;", "'")])


# An apostrophe inside words, and what else counts as one there.
_APOS = "(?:['’]|&[aA][pP][oO][sS];)"
_ANY_APOS = "(?:['’‘`]|&[aA][pP][oO][sS];)"
_CLITIC = "(?:[sSmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_WORD = "(?:«L»«LN»*+|«N»«AN»*+)"
_PART = f"(?:[dDoOlL]{_ANY_APOS}«AN»)?«AN»++"
_HYPHENATED = f"{_PART}(?:[-_‐]{_PART})++"
_COMPOUND = f"(?:[dDoOlL]{_ANY_APOS}«AN»{{2,}}|{_PART}[-_‐]{_PART})(?:[-_‐]{_PART})*+"
_DOTTED = "«L»«LN»*+(?:[.!?]«L»«LN»*+)++"
_STARTER = "«B»++(?:" + "|".join(f"{word[0]}(?i:{re.escape(word[1:])})" for word in sorted(FIRST_WORDS)) + ")«B»"
_NUMBER = r"(?:«N»++|[.,:٫\xad]«N»++)(?:[.,:٫\xad]«N»++)*+"
_SLASH = r"\\?/"
_SLASHED = f"[A-Za-z0-9]++(?:-[A-Za-z]++)*+(?:{_SLASH}[A-Za-z0-9]++(?:-[A-Za-z]++)*+){{1,2}}+"

ALNUM = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
#: A word and nothing more.
WORD = pattern(f"({_WORD})")

_CONTRACTIONS = (
    _rule(f"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*)[nN]{_ANY_APOS}[tT]"),  # ca|n't
    _rule(f"(«LN»++){_APOS}{_CLITIC}"),  # they|'ll
    _rule(f"([nN]{_ANY_APOS}[tT])", _quotes_straightened),
    Rule(WORD),
    _rule(f"({_HYPHENATED})"),
    _rule(f"([A-HJ-XZdlno]{_ANY_APOS}«A»{{2,}})"),  # D'Angelo
    _rule(f"(«A»«A»++(?<=[aeiouyAEIOUY]){_ANY_APOS}[aeiouA-Z]«A»*)"),  # ma'am
    _rule(f"([dDoOlL]{_ANY_APOS}«AN»{{2,}})"),
    _rule(f"([oO]{_ANY_APOS}[oO])"),
    _rule(f"([dDjJlL]{_APOS})"),
    _rule(f"([yY]{_APOS})«A»"),
    _rule(f"((?i:(?:ol|dunkin|somethin){_APOS}|c{_APOS}est|cap{_APOS}n|c'mon|e'er|li'l|ev'ry|nat'l))"),
    _rule(f"(({_WORD}|{_COMPOUND})\\.)[,;:]"),
)
_STOPPED = (
    _rule(rf"([A-Za-z])\.{_STARTER}"),  # p|. The
    _rule(rf"((?:[A-Za-z]\.){{2,}}+){_STARTER}", back=1),
    _rule(f"({_DOTTED}){_APOS}{_CLITIC}"),
    Rule(WORD),
    _rule(f"({_DOTTED})"),
    _rule(r"((?:[A-Za-z]\.)++)"),
    _rule(rf"({_WORD}\.)[,;:]"),
    _rule(rf"({_DOTTED}\.)[,;:]"),
)
_JOINED = (
    Rule(WORD),
    _rule(f"({_HYPHENATED})"),
    _rule(f"({_SLASHED})"),
    _rule(rf"({_HYPHENATED}\.)[,;:]"),
)
_CAPITALS = _rule(r"([A-Z]++(?:(?:\+|&(?:[aA][mM][pP];)?)[A-Z]++)++)", _plain_ampersands)
_CAPITALS_STOPPED = _rule(r"([A-Z]++(?:(?:\+|&(?:[aA][mM][pP];)?)[A-Z]++)++\.)[,;:]", _plain_ampersands)
_FACE = _rule(r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\))", _brackets_named)

#: The rules for what begins as a word, by the character after the word.
AFTER_WORD: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys("'’‘`", _CONTRACTIONS),
    "&": (*_CONTRACTIONS, _CAPITALS, _CAPITALS_STOPPED),
    ".": _STOPPED,
    **dict.fromkeys("!?", _STOPPED),
    **dict.fromkeys("-‐/\\", _JOINED),
    "_": (*_JOINED, _FACE),
    "+": (_CAPITALS, _CAPITALS_STOPPED, _rule(r"([cC]\+\+)"), Rule(WORD)),
    "#": (_rule("([cCfF]#)"), Rule(WORD)),
    "$": (_rule(r"([A-Z]++\$)"), Rule(WORD)),
}

_SIGNED = _rule(f"([-+]?{_NUMBER})")
_PHONE = _rule(
    r"((?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
    r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})",
    _blanks_bound,
)
_DIGITS = (
    _SIGNED,
    Rule(WORD),
    _rule(f"(«N»{{1,2}}(?:-|{_SLASH})«N»{{1,2}}(?:-|{_SLASH})«N»{{2,4}})"),
    _rule(f"((?:«N»{{1,4}}[- \xa0])?«N»{{1,4}}(?:{_SLASH}|⁄)«N»{{1,4}})", _blanks_bound),
    _rule(f"({_HYPHENATED})"),
    _rule(f"({_SLASHED})"),
    _rule(rf"(({_WORD}|{_COMPOUND})\.)[,;:]"),
    _PHONE,
)
_SMILEY = _rule(r"([<>]?[:;=][-o*']?[()DPdpO@\[\]\\{|])[^A-Za-z0-9]", _brackets_named)
_APOSTROPHES = (
    _rule(f"({_APOS}{_CLITIC})[^A-Za-z]", _quotes_straightened),
    _rule(f"({_APOS}(?:[eE][mM]|[tT][iI][lL][lL]?|[cC][aA][uU][sS][eE]|[2-9]0[sS]|[nN]{_APOS}?))"),
    _rule(f"({_APOS}[0-9][0-9])«B»"),
    _rule("(')[A-Za-z][^ \t\xa0\n]", _constant("`")),
    _rule(f"({_APOS}{_CLITIC})", _quotes_straightened),
)
_CURLY = _rule("([`‘’“‚‹›]{1,2}+)", _quotes_straightened)
_STARS = _rule(r"(\*++|(?:\\\*)++)")

_SINGLE = {
    **{character: _rule("(.)") for character in "%/\\|$⁄+.:;=<>^~,"},
    "(": _rule("(.)", _constant("-LRB-")),
    ")": _rule("(.)", _constant("-RRB-")),
    "[": _rule("(.)", _constant("-LSB-")),
    "]": _rule("(.)", _constant("-RSB-")),
    "{": _rule("(.)", _constant("-LCB-")),
    "}": _rule("(.)", _constant("-RCB-")),
    "–": _rule("(.)", _constant("--")),
    "…": _rule("(.)", _constant("...")),
    "\x85": _rule("(.)", _constant("...")),
    "¤": _rule("(.)", _constant("$")),
    "£": _rule("(.)", _constant("#")),
    "¢": _rule("(.)", _constant("cents")),
    "½": _rule("(.)", lambda fraction: _FRACTIONS[fraction]),
}
_SPECIAL: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys("0123456789٠", _DIGITS),
    "\xad": (_SIGNED,),
    "٫": (_SIGNED,),
    "+": (_SIGNED, _PHONE),
    "-": (_SIGNED, _FACE, _rule("(-{2,4}+)(?!-)", _constant("--")), _rule("(-++)")),
    ".": (_SIGNED, _rule(r"(\.{3,5}+|\.(?:[ \xa0]\.){2,4}+)", _constant("..."))),
    ":": (_SMILEY, _SIGNED),
    ",": (_SIGNED,),
    ";": (_SMILEY,),
    "=": (_SMILEY, _FACE),
    "<": (_SMILEY, _FACE, _rule("(<<)")),
    ">": (_SMILEY, _FACE, _rule("(>>)")),
    "^": (_FACE,),
    "~": (_FACE,),
    "(": (_FACE, _PHONE),
    "'": (*_APOSTROPHES, _rule("('[tT])(?:[iI][sS]|[wW][aA][sS])"), _FACE, _rule("(''?)")),
    "’": (*_APOSTROPHES, _CURLY),
    **dict.fromkeys("`‘“‚‹›", (_CURLY,)),
    '"': (_rule('(")[A-Za-z0-9$]', _constant("``")), _rule('(")', _constant("''"))),
    "!": (_rule("([!?]++)"),),
    "?": (_rule("([!?]++)"),),
    "#": (_rule("(#«L»++)", _as_it_is), _rule("(#++)")),
    "@": (_rule("(@[A-Za-z_][A-Za-z0-9_]*+)"), _rule("(@++)")),
    "*": (_STARS,),
    "\\": (_STARS,),
    "²": (_rule("(²++)"),),
    "_": (_rule("(_++)"),),
    "&": (
        *_APOSTROPHES,
        _rule("(&quot;)[A-Za-z0-9$]", _constant("``")),
        _rule("(&quot;)", _constant("''")),
        _rule("(&(?i:apos|quot);)", _quotes_straightened),
        _rule("(&[lL][tT];)", _constant("<")),
        _rule("(&[gG][tT];)", _constant(">")),
        _rule("(&[aA][mM][pP];)", _constant("&")),
        _rule("(&[nN][bB][sS][pP];)", _constant("")),
        _rule("(&(?i:[mn]dash|md);)", _constant("--")),
        _rule("(&(?i:ur|lr|qc|ql|qr|odq|cdq|#[0-9]++);)"),
        _rule("(&)"),
    ),
}
#: The rules for everything that does not begin as a word, by first character.
BY_FIRST: dict[str, tuple[Rule, ...]] = {
    first: _SPECIAL.get(first, ()) + ((_SINGLE[first],) if first in _SINGLE else ())
    for first in {**_SPECIAL, **_SINGLE}
}

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#: Marks that are a token of their own before certain characters, or at the end of the text: those, and the token.
LONE_BEFORE: dict[str, tuple[frozenset[str], str]] = {
    ".": (frozenset(["", "\n", *_LETTERS, *'"!?,;:)]-']), "."),
    ",": (frozenset(["", "\n", " ", *_LETTERS, *'"!?;)]-']), ","),
    "'": (frozenset(["", "\n", " ", *'.,"!?;:)]']), "'"),
    '"': (frozenset(["", "\n", " ", *".,!?;:)]'"]), "''"),
    "(": (frozenset(_LETTERS) - {"x"} | {" "}, "-lrb-"),
    ")": (frozenset(["", "\n", " ", *_LETTERS, *".,"]), "-rrb-"),
}
