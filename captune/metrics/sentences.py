"""The sentences of a caption, and what captions of several sentences mean for metrics.

A sentence ends at ".", "!", "?" or "…" before white space, at the marks of other scripts (Chinese, Japanese, danda,
Arabic, Urdu, Khmer, Burmese, Ethiopic, Armenian), and at a line break. Thai and Lao have no mark: a space between two
runs of at least 12 letters ends a sentence. A point ends none after an abbreviation ("Dr. Smith", "approx. 3"), an
initial ("J. R. Smith"), the number of a list ("1. A dog"), or inside a number ("3.5"). In text with capitals, a small
letter continues the sentence ('the word "Stop!" is').

`chair` (`truncate`) and `clipscore-sentences` split by simpler rules, which are part of their numbers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

__all__ = [
    "LENGTH_TOLERANCE",
    "PARAGRAPH_WORDS",
    "count_words",
    "find_sentences",
    "is_paragraph",
    "paragraph_warning",
    "sentence_prefix",
]

PARAGRAPH_WORDS = 40
"""Words from which a caption of several sentences counts as a paragraph; those of COCO and Flickr30k have 10 to 13."""

LENGTH_TOLERANCE = 0.1
"""Share by which the longer of two captions may exceed the shorter one if they are compared at equal length."""

_SAMPLED_IMAGES = 2000
"""Images whose references decide whether a set has paragraphs; drawn at random from more."""

_UNSPACED = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17d3"
"""Letters and marks of Thai, Lao, Burmese and Khmer, which are written without spaces between words."""

_UNSPACED_WORD = 4
"""Letters and marks of a Thai word, about."""

_CLOSING = "\"'\u201d\u2019\u00bb)\\]\u300d\u300f\uff09"
# Matches begin at the start of a run only: otherwise a long run costs time quadratic in its length.
_END = re.compile(
    rf"(?<![.!?\u2026])(?P<mark>[.!?\u2026]+)(?P<closed>[{_CLOSING}]*)(?=\s|$)"
    rf"|[\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4\u17d4\u104b\u1362\u0589]+[{_CLOSING}]*"
    r"|(?<=[\u0e01-\u0eff]{12})[ \t]+(?=[\u0e01-\u0eff]{12})"
    r"|(?<![ \t])[ \t]*[\r\n]+"
)
_WORD_BEFORE = re.compile(r"[^\s(\[\"'\u201c\u2018]+\Z")
_NEXT = re.compile(r"[\"'\u201c\u2018\u00ab(\[]*(\w+)")
_TITLES = """
    mr mrs ms mx dr prof rev hon st mt ft sgt lt col gen capt cpl gov sen rep pres messrs mlle mme
    no nos vs fig figs vol pp p ch sec dept est approx ca cf e.g i.e eg ie al u.s u.k a.k.a dba
    jan feb mar apr jun jul aug sept sep oct nov dec mon tue tues wed thu thurs fri
    ave blvd rd hwy bldg apt
"""
_ENDINGS = "etc inc ltd co corp jr sr bros a.m p.m d.c u.s.a b.c a.d oz lb lbs ft cm mm km kg mph"
_STARTERS = """
    a an the this that these those there it its he she they we i his her their in on at to from behind above below
    next near under over one two three four several some many most all each both another other
"""
_BEFORE_WORDS = frozenset(_TITLES.split())  # abbreviations before a word that belongs to them
_AFTER_WORDS = frozenset(_ENDINGS.split())  # abbreviations that end a sentence before a capital
_FIRST_WORDS = frozenset(_STARTERS.split())  # begin a sentence after an initial or "U.S."; names do not

_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_TOKENS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def find_sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, without the white space around it.

    Args:
        text: a caption.

    Returns:
        Positions in characters, in order; none for a text of white space.
    """
    has_capitals = any(character.isupper() for character in text)
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        is_break = match["mark"] is None and match[0].isspace()
        if match["mark"] is not None and _continues(text, start, match, has_capitals):
            continue
        _add(text, start, match.start() if is_break else match.end(), spans)
        start = match.end()
    _add(text, start, len(text), spans)
    return spans


def _add(text: str, start: int, end: int, spans: list[tuple[int, int]]) -> None:
    """Add a sentence; marks without a letter or digit belong to the sentence before."""
    part = text[start:end]
    if not part.strip():
        return
    begin = start + len(part) - len(part.lstrip())
    stop = end - (len(part) - len(part.rstrip()))
    if spans and not any(character.isalnum() for character in part):
        spans[-1] = (spans[-1][0], stop)
    else:
        spans.append((begin, stop))


def _continues(text: str, start: int, match: re.Match[str], has_capitals: bool) -> bool:
    """Whether the sentence continues after a mark."""
    following = _NEXT.match(text, len(text) - len(text[match.end() :].lstrip()))
    if following is None:
        return False
    word = following[1]
    is_small = has_capitals and word[0].islower()
    if match["mark"] != ".":
        return is_small
    before = _WORD_BEFORE.search(text, start, match.start())
    token = before[0] if before is not None else ""
    lower = token.lower()
    if token.isdigit() and not text[start : match.start() - len(token)].strip():
        return True  # the number of a list
    if lower in _BEFORE_WORDS and not match["closed"]:
        return not (word[0].isupper() and word.lower() in _FIRST_WORDS)
    if lower in _AFTER_WORDS:
        return word[0].islower()
    if len(token) == 1 and token.isupper() and not match["closed"]:
        earlier = text[start : match.start() - 1].rstrip()
        is_name = not earlier or earlier.endswith(".") or earlier.rpartition(" ")[2][:1].isupper()
        is_name = is_name or (len(word) == 1 and text[following.end() : following.end() + 1] == ".")
        return is_name and word[0].isupper() and word.lower() not in _FIRST_WORDS
    return is_small


def count_words(text: str) -> int:
    """Words of a caption. A Chinese or Japanese character counts as a word, and so do four letters of Thai, Lao,
    Burmese or Khmer."""
    tokens: list[str] = _TOKENS.findall(text)
    if not _UNSPACED_RUN.search(text):
        return len(tokens)
    return sum(max(1, round(len("".join(_UNSPACED_RUN.findall(token))) / _UNSPACED_WORD)) for token in tokens)


def is_paragraph(text: str) -> bool:
    """Whether a caption has several sentences and at least `PARAGRAPH_WORDS` words."""
    return count_words(text) >= PARAGRAPH_WORDS and len(find_sentences(text)) > 1


def sentence_prefix(text: str, words: int) -> str:
    """The first sentences of a caption, as many as come closest to a number of words; at least one.

    Args:
        text: a caption.
        words: how many words the part is to have; of two parts that are as close the shorter one is taken.
    """
    spans = find_sentences(text)
    if not spans:
        return text
    lengths = [count_words(text[spans[0][0] : end]) for _, end in spans]
    best = min(range(len(spans)), key=lambda index: (abs(lengths[index] - words), index))
    return text if best == len(spans) - 1 else text[: spans[best][1]]


_AFFECTED = {"cider": "CIDEr", "cider-d": "CIDEr-D", "spider": "SPIDEr", "bleu": "BLEU", "rouge-l": "ROUGE-L"}
_ALTERNATIVES = ("cider-r", "bertscore", "clipscore-sent")


def paragraph_warning(references: Mapping[str, Sequence[str]], metrics: Iterable[str]) -> str:
    """Warn if metrics that were made for captions of one sentence are requested for paragraphs.

    The references are paragraphs if their medians are at least `PARAGRAPH_WORDS` words and two sentences; of more than
    2,000 images those of 2,000 are counted, drawn at random with a fixed seed.

    Args:
        references: image id to references.
        metrics: names of metrics or of their columns.

    Returns:
        A sentence, or "".
    """
    names = {re.sub(r"^bleu-\d$", "bleu", name.lower()) for name in metrics}
    affected = [shown for name, shown in _AFFECTED.items() if name in names]
    if not affected:
        return ""
    groups = list(references.values())
    if len(groups) > _SAMPLED_IMAGES:
        groups = random.Random(0).sample(groups, _SAMPLED_IMAGES)
    texts = [text for group in groups for text in group]
    words = median(map(count_words, texts)) if texts else 0
    if words < PARAGRAPH_WORDS:
        return ""
    sentences = median(len(find_sentences(text)) for text in texts)
    if sentences < 2:
        return ""
    several = len(affected) > 1
    named = f"{', '.join(affected[:-1])} and {affected[-1]}" if several else affected[0]
    penalty = ""
    if any(name in names for name in ("cider", "cider-d", "spider")):
        penalty = " (a difference of 20 words leaves 0.4 % of CIDEr)"
    others = [name for name in _ALTERNATIVES if not any(other.startswith(name) for other in names)]
    others = [name.replace("clipscore-sent", "clipscore-sentences") for name in others]
    advice = f"; report {_either(others)} as well" if others else ""
    return (
        f"{named} {'were' if several else 'was'} made for captions of one sentence, and these references are "
        f"paragraphs ({words:.0f} words in {sentences:.0f} sentences, medians), for which "
        f"{'they agree' if several else 'it agrees'} less with people{penalty}{advice}."
    )


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
