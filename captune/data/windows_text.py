"""Recognize text in Windows-1252 by its bytes, and by the letters and frequent words of the languages written in it.

Text of other languages (Turkish, Hungarian, Romanian, Lithuanian, Vietnamese, ...) can be decoded as Windows-1252 too,
with other letters than it was written in; such text has no language here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from captune.errors import DataError

__all__ = ["is_western", "western_language"]

_HIGH = re.compile(rb"[\x80-\xff]+")
# In Windows-1252 the letters, and the quotation marks (also the low German ones), dashes and dots of word processors.
_WESTERN = re.compile(rb"[\xc0-\xff\x80\x84\x85\x91-\x97\x9c\xa0\xab\xb0\xbb]")
_WESTERN_SHARE = 0.8

_MARKS = frozenset("€‚„…‘’“”•–—™\xa0£§©«\xad®°²³·»¼½¾×")
# Letters of another encoding: marks within words, and ordinals that follow no number.
_MARK_IN_WORD = re.compile(r"[^\W\d_][€‚„“”•™£§©®°¼½¾×][^\W\d_]|(?<![\dn.])[ºª]")
_FILE_ENDING = re.compile(r"(?<=[\w-])\.\w{2,5}\b[,;|]?")
_WORD = re.compile(r"[^\W\d_]+")
# In Portuguese "não" and "põe"; Romanian, Hungarian and Estonian have other neighbors, or other letters there.
_PORTUGUESE_TILDE = re.compile("ã[eo]|õe")
_OTHER_TILDE = re.compile("ã(?![eo])|õ(?!e)")

_LANGUAGES = {
    "English": ("àáâäçèéêëíïñóôöü", 0.2, "a the of in on with and is an at to are"),
    "French": ("àâæçèéêëîïôùûüœ", 0.15, "le la les un une des du de et dans sur avec l d est au aux en"),
    "German": ("äöüßé", 0.15, "der die das ein eine einen einem einer und mit auf im am in ist den dem von"),
    "Spanish": ("áéíóúñü¿¡ºª", 0.15, "el la los las un una de en y con del por sobre que se"),
    "Portuguese": ("áâãàçéêíóôõúºª", 0.15, "o os as um uma de em e com do da no na"),
    "Italian": ("àèéìòù", 0.15, "il lo la gli le un una di e con su che del della nel nella sulla è"),
    "Dutch": ("éëïöüèêáó", 0.15, "de het een van en met op in aan is die zijn"),
    "Swedish": ("åäöé", 0.15, "en ett och i på med som av är den det till"),
    "Danish or Norwegian": ("åæøé", 0.15, "en et og i på med som av af er den det til"),
    "Finnish": ("äö", 0.03, "ja on ei se joka kun kaksi mies nainen koira"),
}
"""Language -> its letters beyond ASCII, a share of frequent words, and these words."""


def is_western(lines: Iterable[bytes | DataError]) -> bool:
    """Whether text can be Windows-1252: nothing beyond ASCII is UTF-8, and what is there are single letters.

    Chinese, Japanese, Cyrillic and Greek encodings have runs of high bytes, or bytes that are no letters here.

    Args:
        lines: of `raw_lines`.
    """
    runs = single = high = western = 0
    for line in lines:
        if isinstance(line, DataError) or line.isascii():
            continue
        if _decodes(line, "utf-8") or not _decodes(line, "cp1252"):
            return False
        high_runs = _HIGH.findall(line)
        runs += len(high_runs)
        single += sum(len(run) == 1 for run in high_runs)
        high += sum(map(len, high_runs))
        western += len(_WESTERN.findall(line))
    return single >= _WESTERN_SHARE * runs and western >= _WESTERN_SHARE * high


def western_language(lines: Iterable[bytes | DataError]) -> str | None:
    """The language of text in Windows-1252; None for another language or encoding.

    Args:
        lines: of `raw_lines`.
    """
    letters: set[str] = set()
    words: Counter[str] = Counter()
    tildes = other_tildes = 0
    for line in lines:
        if isinstance(line, DataError):
            continue
        if not line.isascii() and (_decodes(line, "utf-8") or not _decodes(line, "cp1252")):
            return None
        text = line.decode("cp1252").lower()
        if not line.isascii():
            if _MARK_IN_WORD.search(text):
                return None
            letters.update(character for character in text if not character.isascii())
            tildes += len(_PORTUGUESE_TILDE.findall(text))
            other_tildes += len(_OTHER_TILDE.findall(text))
        words.update(_WORD.findall(" ".join(map(_after_file_name, text.split()))))
    letters -= _MARKS
    total = max(1, words.total())
    shares = {
        language: sum(words[word] for word in frequent.split()) / total
        for language, (known, least, frequent) in _LANGUAGES.items()
        if letters <= set(known) and sum(words[word] for word in frequent.split()) >= least * total
    }
    if other_tildes > tildes:
        shares.pop("Portuguese", None)
    return max(shares, key=shares.__getitem__, default=None)


def _after_file_name(text: str) -> str:
    """What follows the file name that a text without white space begins with; in time linear in its length."""
    end = 0
    for ending in _FILE_ENDING.finditer(text):
        end = ending.end()
    return text[end:]


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
