"""The patterns of tokens, and the classes of characters outside ASCII for which they are written (`shape_of`).

At each position the longest match wins, the first of equally long ones; lookahead counts towards the length, and group
1 is the token. This is how the original decides; the patterns were derived from its answers to millions of strings.

No pattern here reads more than a small multiple of the token's length or backtracks over every character, so lexing
takes linear time and little memory. Patterns that could look far ahead (addresses, links, tags, lists) are in `lexer`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

__all__ = [
    "AFTER_WORD",
    "ALNUM",
    "BY_FIRST",
    "CASE_RULES",
    "ENDING_ABBREVIATIONS",
    "FIRST_WORDS",
    "INNER_ABBREVIATIONS",
    "LONE_BEFORE",
    "NUMBER_ABBREVIATIONS",
    "SPLIT_WORDS",
    "WORD",
    "Pattern",
    "Render",
    "Rule",
    "from_utf16_units",
    "shape_of",
    "to_utf16_units",
]


# The class of every character outside ASCII.

_NATIVE_UTF16 = f"utf-16-{sys.byteorder[0]}e"
_DROPPED = 0
_UPPER_CASE = ord("É")
_LETTER = ord("é")
# Of the same width as the character: an accented letter spelt out as an entity continues a word, joins nothing, and
# does not occur in the name of a site.
_SPELT_OUT = "\ue000"
_LETTER_ENTITY = re.compile(r"&[aeiou](?:acute|grave|uml);", re.ASCII | re.IGNORECASE)


class _Classes(dict[int, int]):
    """Code point to the code point of its class; filled from the table for the characters that occur."""

    def __init__(self) -> None:
        from pathlib import Path  # most captions are ASCII and need no table

        super().__init__({code: code for code in range(128)})
        table = Path(__file__).with_name("characters.txt").read_text(encoding="utf-8")
        self._ranges: list[tuple[int, int, int]] = []
        for line in table.splitlines():
            if line.startswith("#"):
                continue
            stands_for, _, ranges = line.split("\t")
            for span in ranges.split():
                first, _, last = span.partition("-")
                self._ranges.append((int(first, 16), int(last or first, 16), int(stands_for, 16)))

    def __missing__(self, code: int) -> int:
        kind = next((name for first, last, name in self._ranges if first <= code <= last), _DROPPED)
        if kind == _LETTER and chr(code).isupper():
            kind = _UPPER_CASE
        self[code] = kind
        return kind


_classes: _Classes | None = None


def shape_of(text: str) -> str:
    """The shape of a text: of the same length, characters outside ASCII replaced by their class."""
    global _classes
    if not text.isascii():
        if _classes is None:
            _classes = _Classes()
        text = text.translate(_classes)
    if "&" in text:
        text = _LETTER_ENTITY.sub(lambda match: _SPELT_OUT * len(match[0]), text)
    return text


def to_utf16_units(text: str) -> str:
    """The text as Java sees it: a character beyond U+FFFF is two surrogates."""
    return "".join(map(chr, memoryview(text.encode(_NATIVE_UTF16, "surrogatepass")).cast("H")))


def from_utf16_units(text: str) -> str:
    """The inverse of `to_utf16_units`; a lone surrogate stays what it is."""
    return text.encode(_NATIVE_UTF16, "surrogatepass").decode(_NATIVE_UTF16, "surrogatepass")


# Words that keep their full stop, that are two tokens, or that begin a sentence, as observed in the original.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Abbreviations whose full stop never ends a sentence.
INNER_ABBREVIATIONS = _words("""
    cf dr ft lt mr ms mt ph st vs wm
    adj adm adv ave cie col cpl det drs ens gen gov hon jos maj mfg mme mrs mtg pfc pvt rep rev sen sfc sgt spc ste
    alex asst atty brig capt cmdr dept elec govs insp invt mlle msgr natl pres prof reps sens supt
    assoc attys comdr lieut profs supts treas messrs
""")

#: Abbreviations whose full stop also ends the sentence before a capital letter and at the end of the text.
ENDING_ABBREVIATIONS = _words("""
    al az co ct ga jr ky la md mo pa rd rt sq sr va vt
    ala apr ark aug bhd cos dak dec del esq est etc ext feb fla fri ill inc ind jan jul jun kan ltd mar mon neb nev
    nov oct ore plc pte pty sep seq sys tel tex thu tue wed wis wyo
    ariz assn bldg blvd bros colo conn corp intl kans mass mich minn miss mont okla penn ppte ppty ptes ptys sept
    tenn tues univ wash wisc
    calif pptes pptys thurs ed.d ph.d
""")

#: Abbreviations that keep their full stop before a number.
NUMBER_ABBREVIATIONS = _words("ca no op pp art fig nos figs prop")

#: Abbreviations that are recognized in some spellings only: the required case of each letter.
CASE_RULES = {
    **{name: (0, name[0].upper()) for name in _words("az la pa ark del ill ore tex mass miss wash")},
    **{name: (1, name[1]) for name in _words("mfg mtg")},
    **{name: (2, name[2]) for name in _words("pte pty ptes ptys")},
    **{name: (3, name[3]) for name in _words("ppte ppty pptes pptys")},
}

#: Words that are two tokens: the length of the first.
SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}

#: After "p. " and "U.S. " they begin a new sentence, with a capital and the rest in either case.
FIRST_WORDS = _words("""
    A About According After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms. Now Once One Other
    Our She Since So Some Such That The Their Then There These They This We What When While Yet You
""")


# Written «…» in the sources of patterns, letter by letter; every other character matches itself.
_CLASSES = {
    "L": "A-Za-zéÉ˂\xad\ue000",  # characters of words
    "A": "A-Za-zéÉ",  # letters that join tokens
    "N": "0-9٠",
    "B": " \t\xa0\u2003\n\x85",  # blanks and line ends, for lookahead
}


#: How a token is written out.
Render = Callable[[str], str]


class Pattern:
    """A pattern in whose source «LN-» is any character of the classes L and N, or a hyphen.

    It is compiled when it is first tried: most captions need few of the patterns, and compiling all takes longer than
    scoring a thousand captions.

    Attributes:
        match: finds it in a shape from a position on; group 1 is the token, what follows is only looked at.
    """

    __slots__ = ("_source", "match")

    def __init__(self, source: str) -> None:
        self._source = source
        self.match: Callable[[str, int], re.Match[str] | None] = self._compile

    def _compile(self, shape: str, position: int) -> re.Match[str] | None:
        def characters(match: re.Match[str]) -> str:
            return "[" + "".join(_CLASSES.get(name, name) for name in match[1]) + "]"

        self.match = re.compile(re.sub("«([^»]*)»", characters, self._source)).match
        return self.match(shape, position)


class Rule(Pattern):
    """One kind of token.

    Attributes:
        render: the token as it is written out; None where it only loses its soft hyphens.
        back: how many characters of the token are read again.
    """

    __slots__ = ("back", "render")

    def __init__(self, source: str, render: Render | None = None, back: int = 0) -> None:
        super().__init__(source)
        self.render, self.back = render, back


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
_HYPHENATED = f"{_PART}(?:[-_‐]{_PART})+"
_COMPOUND = f"(?:[dDoOlL]{_ANY_APOS}«AN»{{2,}}|{_PART}[-_‐]{_PART})(?:[-_‐]{_PART})*"
_DOTTED = "«L»«LN»*+(?:[.!?]«L»«LN»*+)+"
_STARTER = "«B»++(?:" + "|".join(f"{word[0]}(?i:{re.escape(word[1:])})" for word in sorted(FIRST_WORDS)) + ")«B»"
_NUMBER = r"(?:«N»++|[.,:٫\xad]«N»++)(?:[.,:٫\xad]«N»++)*"
_SLASH = r"\\?/"
_SLASHED = f"[A-Za-z0-9]++(?:-[A-Za-z]++)*(?:{_SLASH}[A-Za-z0-9]++(?:-[A-Za-z]++)*){{1,2}}"

ALNUM = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
#: A word and nothing more.
WORD = Rule(f"({_WORD})")

_CONTRACTIONS = (
    Rule(f"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*)[nN]{_ANY_APOS}[tT]"),  # ca|n't
    Rule(f"(«LN»++){_APOS}{_CLITIC}"),  # they|'ll
    Rule(f"([nN]{_ANY_APOS}[tT])", _quotes_straightened),
    WORD,
    Rule(f"({_HYPHENATED})"),
    Rule(f"([A-HJ-XZdlno]{_ANY_APOS}«A»{{2,}})"),  # D'Angelo
    Rule(f"(«A»«A»++(?<=[aeiouyAEIOUY]){_ANY_APOS}[aeiouA-Z]«A»*)"),  # ma'am
    Rule(f"([dDoOlL]{_ANY_APOS}«AN»{{2,}})"),
    Rule(f"([oO]{_ANY_APOS}[oO])"),
    Rule(f"([dDjJlL]{_APOS})"),
    Rule(f"([yY]{_APOS})«A»"),
    Rule(f"((?i:(?:ol|dunkin|somethin){_APOS}|c{_APOS}est|cap{_APOS}n|c'mon|e'er|li'l|ev'ry|nat'l))"),
    Rule(f"(({_WORD}|{_COMPOUND})\\.)[,;:]"),
)
_STOPPED = (
    Rule(rf"([A-Za-z])\.{_STARTER}"),  # p|. The
    Rule(rf"((?:[A-Za-z]\.){{2,}}){_STARTER}", back=1),
    Rule(f"({_DOTTED}){_APOS}{_CLITIC}"),
    WORD,
    Rule(f"({_DOTTED})"),
    Rule(r"((?:[A-Za-z]\.)+)"),
    Rule(rf"({_WORD}\.)[,;:]"),
    Rule(rf"({_DOTTED}\.)[,;:]"),
)
_JOINED = (
    WORD,
    Rule(f"({_HYPHENATED})"),
    Rule(f"({_SLASHED})"),
    Rule(rf"({_HYPHENATED}\.)[,;:]"),
)
_CAPITALS = Rule(r"([A-Z]++(?:(?:\+|&(?:[aA][mM][pP];)?)[A-Z]++)+)", _plain_ampersands)
_CAPITALS_STOPPED = Rule(r"([A-Z]++(?:(?:\+|&(?:[aA][mM][pP];)?)[A-Z]++)+\.)[,;:]", _plain_ampersands)
_FACE = Rule(r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\))", _brackets_named)

#: The rules for what begins as a word, by the character after the word.
AFTER_WORD: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys("'’‘`", _CONTRACTIONS),
    "&": (*_CONTRACTIONS, _CAPITALS, _CAPITALS_STOPPED),
    ".": _STOPPED,
    **dict.fromkeys("!?", _STOPPED),
    **dict.fromkeys("-‐/\\", _JOINED),
    "_": (*_JOINED, _FACE),
    "+": (_CAPITALS, _CAPITALS_STOPPED, Rule(r"([cC]\+\+)"), WORD),
    "#": (Rule("([cCfF]#)"), WORD),
    "$": (Rule(r"([A-Z]++\$)"), WORD),
}

_SIGNED = Rule(f"([-+]?{_NUMBER})")
_PHONE = Rule(
    r"((?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
    r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})",
    _blanks_bound,
)
_DIGITS = (
    _SIGNED,
    WORD,
    Rule(f"(«N»{{1,2}}(?:-|{_SLASH})«N»{{1,2}}(?:-|{_SLASH})«N»{{2,4}})"),
    Rule(f"((?:«N»{{1,4}}[- \xa0])?«N»{{1,4}}(?:{_SLASH}|⁄)«N»{{1,4}})", _blanks_bound),
    Rule(f"({_HYPHENATED})"),
    Rule(f"({_SLASHED})"),
    Rule(rf"(({_WORD}|{_COMPOUND})\.)[,;:]"),
    _PHONE,
)
_SMILEY = Rule(r"([<>]?[:;=][-o*']?[()DPdpO@\[\]\\{|])[^A-Za-z0-9]", _brackets_named)
_APOSTROPHES = (
    Rule(f"({_APOS}{_CLITIC})[^A-Za-z]", _quotes_straightened),
    Rule(f"({_APOS}(?:[eE][mM]|[tT][iI][lL][lL]?|[cC][aA][uU][sS][eE]|[2-9]0[sS]|[nN]{_APOS}?))"),
    Rule(f"({_APOS}[0-9][0-9])«B»"),
    Rule("(')[A-Za-z][^ \t\xa0\n]", _constant("`")),
    Rule(f"({_APOS}{_CLITIC})", _quotes_straightened),
)
_CURLY = Rule("([`‘’“‚‹›]{1,2}+)", _quotes_straightened)
_STARS = Rule(r"(\*++|(?:\\\*)+)")

_SINGLE = {
    **{character: Rule("(.)") for character in "%/\\|$⁄+.:;=<>^~,"},
    "(": Rule("(.)", _constant("-LRB-")),
    ")": Rule("(.)", _constant("-RRB-")),
    "[": Rule("(.)", _constant("-LSB-")),
    "]": Rule("(.)", _constant("-RSB-")),
    "{": Rule("(.)", _constant("-LCB-")),
    "}": Rule("(.)", _constant("-RCB-")),
    "–": Rule("(.)", _constant("--")),
    "…": Rule("(.)", _constant("...")),
    "\x85": Rule("(.)", _constant("...")),
    "¤": Rule("(.)", _constant("$")),
    "£": Rule("(.)", _constant("#")),
    "¢": Rule("(.)", _constant("cents")),
    "½": Rule("(.)", lambda fraction: _FRACTIONS[fraction]),
}
_SPECIAL: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys("0123456789٠", _DIGITS),
    "\xad": (_SIGNED,),
    "٫": (_SIGNED,),
    "+": (_SIGNED, _PHONE),
    "-": (_SIGNED, _FACE, Rule("(-{2,4}+)(?!-)", _constant("--")), Rule("(-++)")),
    ".": (_SIGNED, Rule(r"(\.{3,5}+|\.(?:[ \xa0]\.){2,4})", _constant("..."))),
    ":": (_SMILEY, _SIGNED),
    ",": (_SIGNED,),
    ";": (_SMILEY,),
    "=": (_SMILEY, _FACE),
    "<": (_SMILEY, _FACE, Rule("(<<)")),
    ">": (_SMILEY, _FACE, Rule("(>>)")),
    "^": (_FACE,),
    "~": (_FACE,),
    "(": (_FACE, _PHONE),
    "'": (*_APOSTROPHES, Rule("('[tT])(?:[iI][sS]|[wW][aA][sS])"), _FACE, Rule("(''?)")),
    "’": (*_APOSTROPHES, _CURLY),
    **dict.fromkeys("`‘“‚‹›", (_CURLY,)),
    '"': (Rule('(")[A-Za-z0-9$]', _constant("``")), Rule('(")', _constant("''"))),
    "!": (Rule("([!?]++)"),),
    "?": (Rule("([!?]++)"),),
    "#": (Rule("(#«L»++)", _as_it_is), Rule("(#++)")),
    "@": (Rule("(@[A-Za-z_][A-Za-z0-9_]*+)"), Rule("(@++)")),
    "*": (_STARS,),
    "\\": (_STARS,),
    "²": (Rule("(²++)"),),
    "_": (Rule("(_++)"),),
    "&": (
        *_APOSTROPHES,
        Rule("(&quot;)[A-Za-z0-9$]", _constant("``")),
        Rule("(&quot;)", _constant("''")),
        Rule("(&(?i:apos|quot);)", _quotes_straightened),
        Rule("(&[lL][tT];)", _constant("<")),
        Rule("(&[gG][tT];)", _constant(">")),
        Rule("(&[aA][mM][pP];)", _constant("&")),
        Rule("(&[nN][bB][sS][pP];)", _constant("")),
        Rule("(&(?i:[mn]dash|md);)", _constant("--")),
        Rule("(&(?i:ur|lr|qc|ql|qr|odq|cdq|#[0-9]++);)"),
        Rule("(&)"),
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
