"""What every character outside ASCII is to the lexer.

A caption is looked at through its *shape*: the same string, letter for letter, in which each character outside ASCII is
replaced by the one that stands for its class (any accented letter by "é", any Arabic or Thai digit by "٠", ...). The
patterns of `rules` are written for shapes, so they stay short; tokens are cut out of the caption itself.
"""

from __future__ import annotations

import re
import sys

__all__ = [
    "CASE_RULES",
    "ENDING_ABBREVIATIONS",
    "FIRST_WORDS",
    "INNER_ABBREVIATIONS",
    "NUMBER_ABBREVIATIONS",
    "SPLIT_WORDS",
    "from_utf16_units",
    "shape_of",
    "to_utf16_units",
]

_NATIVE_UTF16 = f"utf-16-{sys.byteorder[0]}e"
_DROPPED = 0
_UPPER_CASE = ord("É")
_LETTER = ord("é")
# As wide as what it stands for: an accented letter spelt out as an entity continues a word, joins nothing, and is in no
# name of a site.
_SPELT_OUT = "\ue000"
_LETTER_ENTITY = re.compile(r"&[aeiou](?:acute|grave|uml);", re.ASCII | re.IGNORECASE)


class _Classes(dict[int, int]):
    """Code point to the code point of its class; filled from the table for the characters that occur."""

    def __init__(self) -> None:
        from pathlib import Path  # most captions are ASCII and never come here

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


# Which words keep their full stop, which are two tokens, which begin a sentence: all of it observed.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: The full stop is theirs and never ends a sentence.
INNER_ABBREVIATIONS = _words("""
    cf dr ft lt mr ms mt ph st vs wm
    adj adm adv ave cie col cpl det drs ens gen gov hon jos maj mfg mme mrs mtg pfc pvt rep rev sen sfc sgt spc ste
    alex asst atty brig capt cmdr dept elec govs insp invt mlle msgr natl pres prof reps sens supt
    assoc attys comdr lieut profs supts treas messrs
""")

#: Before a capital letter and at the end the full stop is theirs and ends the sentence as well.
ENDING_ABBREVIATIONS = _words("""
    al az co ct ga jr ky la md mo pa rd rt sq sr va vt
    ala apr ark aug bhd cos dak dec del esq est etc ext feb fla fri ill inc ind jan jul jun kan ltd mar mon neb nev
    nov oct ore plc pte pty sep seq sys tel tex thu tue wed wis wyo
    ariz assn bldg blvd bros colo conn corp intl kans mass mich minn miss mont okla penn ppte ppty ptes ptys sept
    tenn tues univ wash wisc
    calif pptes pptys thurs ed.d ph.d
""")

#: They keep their full stop before a number.
NUMBER_ABBREVIATIONS = _words("ca no op pp art fig nos figs prop")

#: Abbreviations that do not count in every spelling: which letter must be what.
CASE_RULES = {
    **{name: (0, name[0].upper()) for name in _words("az la pa ark del ill ore tex mass miss wash")},
    **{name: (1, name[1]) for name in _words("mfg mtg")},
    **{name: (2, name[2]) for name in _words("pte pty ptes ptys")},
    **{name: (3, name[3]) for name in _words("ppte ppty pptes pptys")},
}

#: One word, two tokens: how long the first is.
SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}

#: After "p. " and "U.S. " they begin a new sentence, with a capital and the rest in either case.
FIRST_WORDS = _words("""
    A About According After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms. Now Once One Other
    Our She Since So Some Such That The Their Then There These They This We What When While Yet You
""")
