"""Diagnostics of captions that a score hides: their diversity, and captions that failed.

A captioner that writes "a man riding a wave" for every third image can score well; diversity shows it. It needs no
references and depends on the number of captions: compare it on the same images only.

Captions fail in these ways:

- empty: it has no word after tokenizing.
- run-on: it has more than twice as many words as the longest reference of its image, and at least 20.
- repetition: 2 to 10 words occur three times in a row, or one word four times; or it has 16 words or more, and at
  least half of its four-word sequences occurred before.
- stop symbol: it contains a symbol of a chat template or tokenizer: "###", "</s>", "[INST]", "<|im_end|>", ...
- thinking: the model wrote thinking text that never ends, after "<think>", "[THINK]", ...; what it wrote is no caption.
  Thinking text that ends is removed from captions and is no failure.
- preface: it begins with words to the user before the caption: "Here is a caption:", "Sure!", "Caption:". "The image
  shows" is part of a caption, and no preface.
- markdown: it has bold text, a heading, a list or a code fence, or is complete in quotes.
- unfinished: the model was stopped by the length limit; known only if the predictions file records it.

With these limits, captions by people are hardly ever flagged: of 155,070 captions of Flickr30k seven repeat ("Images
are missing", several times), and none has another failure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from captune.common import split_thinking
from captune.metrics.encoding import Encoder, Rows
from captune.metrics.tokenizers import tokenizer

__all__ = ["FAILURES", "STOP_MARKS", "Diversity", "Failures", "find_failures", "measure_diversity"]


@dataclass(frozen=True, eq=False)
class Diversity:
    """Diversity of N captions.

    Attributes:
        distinct_1: different words over all words, 0 to 1 (Li et al., NAACL 2016); nan where there is no word.
        distinct_2: different word pairs over all word pairs, 0 to 1; nan where no caption has two words.
        vocabulary: how many different words there are.
        mean_length: words a caption.
        unique: different captions over captions, 0 to 1, compared word by word.
        novel: captions that are no training caption, 0 to 1, compared word by word; None without training captions.
        lengths: (N,) int64, words of each caption.
        is_novel: (N,) bool, or None without training captions.
    """

    distinct_1: float
    distinct_2: float
    vocabulary: int
    mean_length: float
    unique: float
    novel: float | None
    lengths: NDArray[np.int64]
    is_novel: NDArray[np.bool_] | None

    def to_dict(self) -> dict[str, float | int | None]:
        """The numbers of the complete set by their printed names; nan becomes None."""
        numbers: dict[str, float | int | None] = {
            "distinct-1": self.distinct_1,
            "distinct-2": self.distinct_2,
            "vocabulary": self.vocabulary,
            "mean length": self.mean_length,
            "unique": self.unique,
        }
        if self.novel is not None:
            numbers["novel"] = self.novel
        return {name: None if value != value else value for name, value in numbers.items()}


def measure_diversity(
    captions: Sequence[str], *, tokenize: str = "ptb", training: Sequence[str] | None = None
) -> Diversity:
    """Measure diversity.

    Args:
        captions: one for an image, N of them.
        tokenize: name of the tokenizer that finds the words.
        training: captions that the system was trained on, in any order.

    Returns:
        Shares, counts, and flags of single captions.
    """
    encoder = Encoder(tokenizer(tokenize))
    words = encoder.words(encoder.encode(captions))
    is_novel = None
    if training is not None:
        known = _keys(encoder.words(encoder.encode(training)))
        is_novel = np.array([key not in known for key in _key_list(words)], np.bool_)
    total, lengths = len(words.values), words.lengths
    pairs = _word_pairs(words)
    vocabulary = len(np.unique(words.values))
    return Diversity(
        distinct_1=vocabulary / total if total else float("nan"),
        distinct_2=len(np.unique(pairs)) / len(pairs) if len(pairs) else float("nan"),
        vocabulary=vocabulary,
        mean_length=float(lengths.mean()) if len(lengths) else float("nan"),
        unique=len(_keys(words)) / len(words) if len(words) else float("nan"),
        novel=None if is_novel is None else float(is_novel.mean()) if len(is_novel) else float("nan"),
        lengths=lengths,
        is_novel=is_novel,
    )


def _word_pairs(words: Rows) -> NDArray[np.int64]:
    """A number for each pair of neighbouring words of a caption, equal for equal pairs."""
    values = words.values.astype(np.int64)
    if len(values) < 2:
        return np.zeros(0, np.int64)
    inside = np.ones(len(values) - 1, np.bool_)
    ends = words.offsets[1:-1]
    inside[ends[(ends > 0) & (ends < len(values))] - 1] = False
    pairs: NDArray[np.int64] = (values[:-1] << 32 | values[1:])[inside]
    return pairs


def _key_list(words: Rows) -> list[bytes]:
    """The words of each caption as bytes, which are quick to compare."""
    raw, bounds = words.values.tobytes(), (words.offsets * words.values.itemsize).tolist()
    return [raw[start:stop] for start, stop in pairwise(bounds)]


def _keys(words: Rows) -> set[bytes]:
    return set(_key_list(words))


FAILURES = ("empty", "run-on", "repetition", "stop symbol", "thinking", "preface", "markdown", "unfinished")

STOP_MARKS = (
    "###",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
    "[SEP]",
    "[CLS]",
    "[EOS]",
    "<image>",
    "<Img>",
    "</Img>",
    "<ImageHere>",
    "ASSISTANT:",
    "Assistant:",
    "USER:",
    "Human:",
)
_MARKS = re.compile("|".join(map(re.escape, STOP_MARKS)))

_PREFACE = re.compile(
    r"\s*[\W_]*(?:"
    r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok)\s*[!,.:]"
    r"|here(?:['’]s| is| are)\b[^.:\n]{0,60}\b(?:captions?|descriptions?|summary|sentences?)\b[^.:\n]{0,60}:"
    r"|(?:the |an? |image |short |brief |one-sentence |possible |suggested )*(?:caption|description)\s*[*_]*:"
    r"|(?:好的|当然(?:可以)?)[，,！!。：:]"
    r"|以下是[^。\n]{0,30}[：:]"
    r"|(?:图片|图像)?(?:描述|说明|标题)[：:]"
    r")",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(
    r"\*\*[^*\n]+\*\*|(?<!\w)__[^_\n]+__(?!\w)|```"
    r"|^[ \t]*(?:#{1,6}[ \t]+[^\W\d]|(?:[-*+•]|\d{1,2}[.)])[ \t]+\w)"
    r"|\A\s*(?:\"[^\"]+\"|“[^“”]+”|‘[^‘’]+’|'[^']+'|«[^«»]+»|「[^「」]+」)\s*\Z",
    re.MULTILINE,
)

RUN_ON_FACTOR, RUN_ON_WORDS = 2, 20
LONGEST_PERIOD = 10
LOOP_TIMES, LOOP_TIMES_OF_ONE_WORD = 3, 4
NEW_FOUR_GRAM_SHARE, NEW_FOUR_GRAM_WORDS = 0.5, 16


@dataclass(frozen=True, eq=False)
class Failures:
    """Which of N captions failed, and how.

    Attributes:
        flags: for each failure that could be checked, (N,) bool.
    """

    flags: Mapping[str, NDArray[np.bool_]]

    @property
    def rates(self) -> dict[str, float]:
        """The share of captions with each failure, and with any of them, 0 to 1."""
        any_failure = np.logical_or.reduce(list(self.flags.values()))
        columns = {**self.flags, "any": any_failure}
        return {name: float(flags.mean()) if len(flags) else 0.0 for name, flags in columns.items()}

    def of(self, image: int) -> list[str]:
        """The failures of the caption with index `image`."""
        return [name for name, flags in self.flags.items() if flags[image]]


def find_failures(
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    *,
    finished: Sequence[bool] | None = None,
    unclosed: Sequence[bool] | None = None,
    tokenize: str = "ptb",
) -> Failures:
    """Flag failed captions, in linear time.

    Args:
        captions: one for an image, N of them.
        references: the references of each image; without them run-on captions are not flagged.
        finished: for each caption whether the model ended it with the stop symbol; without it unfinished
            captions are not flagged.
        unclosed: for each caption whether thinking text that never ends was removed from it; captions with such text
            are flagged anyway.
        tokenize: name of the tokenizer that finds the words.
    """
    encoder = Encoder(tokenizer(tokenize))
    words = encoder.words(encoder.encode(captions))
    lengths = words.lengths
    flags = {"empty": lengths == 0}
    if references is not None:
        longest = _longest(encoder, references)
        flags["run-on"] = (lengths > RUN_ON_FACTOR * longest) & (lengths >= RUN_ON_WORDS)
    flags["repetition"] = _repeats_blocks(words) | _repeats_four_grams(words)
    flags["stop symbol"] = np.array([_MARKS.search(caption) is not None for caption in captions], np.bool_)
    endless = [split_thinking(caption).thinking == "unclosed" for caption in captions]
    flags["thinking"] = np.array(endless, np.bool_) | np.array(unclosed or [False] * len(captions), np.bool_)
    for name, find in (("preface", _PREFACE.match), ("markdown", _MARKDOWN.search)):
        flags[name] = np.array([find(caption) is not None for caption in captions], np.bool_)
    if finished is not None:
        flags["unfinished"] = ~np.array(finished, np.bool_)
    return Failures(flags)


def _longest(encoder: Encoder, references: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """(N,) words of each image's longest reference, 0 where it has none."""
    counts = np.array([len(group) for group in references], np.int64)
    lengths = encoder.words(encoder.encode([caption for group in references for caption in group])).lengths
    longest = np.zeros(len(counts), np.int64)
    np.maximum.at(longest, np.repeat(np.arange(len(counts)), counts), lengths)
    return longest


def _caption_of(words: Rows) -> NDArray[np.int64]:
    """(T,) the index of the caption of each word."""
    return np.repeat(np.arange(len(words)), words.lengths)


def _repeats_blocks(words: Rows) -> NDArray[np.bool_]:
    """(N,) whether a block of words is repeated often enough without a break."""
    flags = np.zeros(len(words), np.bool_)
    caption_of = _caption_of(words)
    for period in range(1, min(LONGEST_PERIOD, len(caption_of) - 1) + 1):
        times = LOOP_TIMES_OF_ONE_WORD if period == 1 else LOOP_TIMES
        same = words.values[period:] == words.values[:-period]
        same &= caption_of[period:] == caption_of[:-period]
        places = np.arange(1, len(same) + 1)
        run = places - np.maximum.accumulate(np.where(same, 0, places))  # how many words in a row repeat
        flags[caption_of[period:][run >= (times - 1) * period]] = True
    return flags


def _repeats_four_grams(words: Rows) -> NDArray[np.bool_]:
    """(N,) whether at most half of the four-word sequences of a long caption are new."""
    values, caption_of = words.values.astype(np.int64), _caption_of(words)
    flags = np.zeros(len(words), np.bool_)
    if len(values) < NEW_FOUR_GRAM_WORDS:
        return flags
    pairs = np.unique(values[:-1] << 32 | values[1:], return_inverse=True)[1].astype(np.int64)
    fours = np.unique(pairs[:-2] << 32 | pairs[2:], return_inverse=True)[1].astype(np.int64)
    inside = caption_of[:-3] == caption_of[3:]
    owner = caption_of[:-3][inside]
    different = np.unique(owner << 32 | fours[inside]) >> 32
    new = np.bincount(different, minlength=len(words))
    total = np.bincount(owner, minlength=len(words))
    flags |= (words.lengths >= NEW_FOUR_GRAM_WORDS) & (new <= NEW_FOUR_GRAM_SHARE * total)
    return flags
