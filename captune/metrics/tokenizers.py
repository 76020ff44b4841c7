"""The tokenizers by name, and a warning for captions that are not English."""

from __future__ import annotations

import functools
import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

from captune.errors import InputError, MetricInputError, MissingExtraError

__all__ = [
    "TOKENIZERS",
    "Tokenizer",
    "language_tokenizer",
    "language_warning",
    "tokenize_13a",
    "tokenize_char",
    "tokenize_zh_char",
    "tokenize_zh_jieba",
    "tokenizer",
    "tokenizer_for",
]

TOKENIZERS = ("ptb", "13a", "intl", "char", "zh-char", "zh-jieba", "ja-mecab", "ko-mecab", "th-newmm", "none")


class Tokenizer(NamedTuple):
    """How captions become tokens.

    Attributes:
        name: its name in the signature, with the version ("ptb3.4.1").
        tokenize: one caption to its tokens.
        chunk_tokens: the tokens of one chunk of `caption.split(separator)` when they are the same in every caption,
            else None; absent where there is no such thing.
        separator: the string between chunks; None is any white space.
        tokenize_call: tokenizes all captions of a call at once, as the original tool does; None if captions do not
            depend on each other.
    """

    name: str
    tokenize: Callable[[str], Sequence[str]]
    chunk_tokens: Callable[[str], tuple[str, ...] | None] | None = None
    separator: str | None = None
    tokenize_call: Callable[[Sequence[str]], list[list[str]]] | None = None


def _split_on_spaces(caption: str) -> list[str]:
    return caption.split(" ")


def _chunk_itself(chunk: str) -> tuple[str]:
    return (chunk,)


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a name.

    Args:
        name: out of `TOKENIZERS`: "ptb" (English, what coco-caption uses), "none" (captions are tokenized already, one
            space between two tokens), or one of `language_tokenizer`.

    Raises:
        MetricInputError: there is no such tokenizer.
        InputError: the package of the tokenizer is not installed.
    """
    if name == "ptb":
        from captune.metrics import ptb

        return Tokenizer("ptb3.4.1", ptb.tokenize, ptb.chunk_tokens, None, ptb.tokenize_call)
    if name == "none":
        return Tokenizer("none", _split_on_spaces, _chunk_itself, " ")
    if name in TOKENIZERS:
        return Tokenizer(*language_tokenizer(name))
    raise MetricInputError(f"the tokenizer {name!r} is not known; choose one of {', '.join(TOKENIZERS)}")


# Tokenizers for captions that are not English, and the check that notices such captions.

# The ranges of sacrebleu's `zh`. Two of them are meant to be the planes beyond U+FFFF but are written with four
# digits there, so that U+2001 to U+2A6D are separate tokens and ideographs from U+20000 on are not. Kept, so that
# scores are comparable.
_CHINESE = re.compile(
    "([\u3400-\u4db5\u4e00-\u9fbb\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\u2001-\u2a6d\uff00-\uffef\u2e80-\u2fdf\u2ff0-\u2fff"
    "\u3000-\u303f\u31c0-\u31ef\u3100-\u312f\u31a0-\u31bf\ufe10-\ufe1f\ufe30-\ufe4f\u3200-\u33ff])"
)
_MARKS = re.compile(r"([ !-&(-+/:-@\[-`{-~])")  # ASCII marks except ' , - .
_POINT_AFTER_NO_DIGIT = re.compile(r"([^0-9])([.,])")
_POINT_BEFORE_NO_DIGIT = re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def tokenize_13a(caption: str) -> list[str]:
    """Tokens as WMT's mteval-v13a counts them.

    Args:
        caption: any text.

    Returns:
        Words and marks, case kept.
    """
    caption = caption.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        caption = caption.replace(entity, character)
    return _split_marks(f" {caption} ")


def tokenize_zh_char(caption: str) -> list[str]:
    """Every Chinese character as a token, and what is not Chinese as `13a` splits it.

    Args:
        caption: any text.

    Returns:
        Characters, words and marks.
    """
    return _split_marks(_CHINESE.sub(r" \1 ", caption.strip()))


def tokenize_char(caption: str) -> list[str]:
    """Every character as a token, white space left out.

    Args:
        caption: any text.

    Returns:
        Code points: a letter and a combining mark, as in Thai, are two tokens.
    """
    return [character for character in caption if not character.isspace()]


def tokenize_zh_jieba(caption: str) -> list[str]:
    """Words as jieba's accurate mode cuts them.

    Args:
        caption: any text.

    Returns:
        Words and marks without blanks.

    Raises:
        InputError: jieba is not installed.
    """
    return [word for word in _jieba().lcut(caption) if not word.isspace()]


def language_tokenizer(name: str) -> tuple[str, Callable[[str], list[str]]]:
    """The tokenizer of a name of this module, with the name that it has in a signature.

    Args:
        name: "13a", "char", "zh-char", "zh-jieba", "th-newmm", or "intl", "ja-mecab" and "ko-mecab" of sacrebleu.

    Raises:
        InputError: the package of the tokenizer is not installed.
        KeyError: there is no such tokenizer here.
    """
    if name == "zh-jieba":
        return f"zh-jieba{_jieba().__version__}", tokenize_zh_jieba
    if name == "th-newmm":
        return _thai()
    if name in _SACREBLEU:
        return _sacrebleu(name)
    return name, {"13a": tokenize_13a, "char": tokenize_char, "zh-char": tokenize_zh_char}[name]


# A tokenizer of sacrebleu -> its class and the extra that installs it.
_SACREBLEU = {
    "intl": ("TokenizerV14International", "intl"),
    "ja-mecab": ("TokenizerJaMecab", "ja"),
    "ko-mecab": ("TokenizerKoMecab", "ko"),
}


@functools.cache
def _sacrebleu(name: str) -> tuple[str, Callable[[str], list[str]]]:
    """A tokenizer of sacrebleu, which checks the version of MeCab's dictionary, with its name there."""
    attribute, extra = _SACREBLEU[name]
    try:
        module = importlib.import_module(f"sacrebleu.tokenizers.tokenizer_{name.replace('-', '_')}")
        tokenize = getattr(module, attribute)()
    except (ImportError, RuntimeError):  # sacrebleu raises RuntimeError where MeCab is absent
        raise MissingExtraError(f"The tokenizer {name}", extra) from None
    return tokenize.signature(), lambda caption: tokenize(caption).split()


@functools.cache
def _thai() -> tuple[str, Callable[[str], list[str]]]:
    """PyThaiNLP's dictionary-based maximal matching, with its version."""
    try:
        version = importlib.import_module("pythainlp").__version__
        word_tokenize = importlib.import_module("pythainlp.tokenize").word_tokenize
    except ImportError:
        raise MissingExtraError("The tokenizer th-newmm", "th") from None
    return f"th-newmm{version}", lambda caption: [
        word.strip() for word in word_tokenize(caption, engine="newmm") if not word.isspace() and word
    ]


def _split_marks(text: str) -> list[str]:
    text = _MARKS.sub(r" \1 ", text)
    text = _POINT_AFTER_NO_DIGIT.sub(r"\1 \2 ", text)
    text = _POINT_BEFORE_NO_DIGIT.sub(r" \1 \2", text)
    return _DASH_AFTER_DIGIT.sub(r"\1 \2 ", text).split()


@functools.cache
def _jieba() -> ModuleType:
    """jieba with its dictionary loaded, without what it prints while loading."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of invalid escapes and of pkg_resources
            jieba = importlib.import_module("jieba")
    except ImportError:
        raise InputError("The tokenizer zh-jieba needs jieba; install it with: pip install jieba") from None
    jieba.setLogLevel("ERROR")
    jieba.initialize()
    return jieba


SAMPLE = 500
FOREIGN_LETTERS = 0.2
FOREIGN_WORDS = 0.1
FEWEST_WORDS = 3
_LETTERS = re.compile(r"[^\W\d_]")
# The first letters beyond those of the Latin script; U+1E00 to U+1EFF are Latin again.
_LATIN = re.compile("[a-zA-Z\u00aa-\u02af\u1e00-\u1eff]")
# Japanese is written in Chinese characters too, so that a part of kana suffices.
_SCRIPTS = {
    "ja-mecab": re.compile("[\u3041-\u30ff]"),
    "ko-mecab": re.compile("[\uac00-\ud7a3]"),
    "th-newmm": re.compile("[\u0e01-\u0e5b]"),
}
_SMALL_WORDS = """
English     a an and are at dog for from girl boy his her is it man men of people the their to two while with woman
Czech       dva jsou muž na ona pes po při s se u v za ze žena
Dutch       aan bij de een het met naar op te twee uit van voor zijn
French      au aux avec dans de des du en est et la le les sont sur un une
German      auf aus bei das dem den der die ein eine einem einen einer eines mit und von zu
Italian     che con della delle di due e gli il la le mentre nel sono su un una uno
Portuguese  ao com da de dois do duas e em enquanto na no os um uma umas
Spanish     con de del dos el en hay la las los por que su sobre un una y
Turkish     adam bir bu doğru iki ile kadın ve üzerinde yanında içinde var
"""
_WORDS_OF = {line.split()[0]: frozenset(line.split()[1:]) for line in _SMALL_WORDS.strip().splitlines()}


def tokenizer_for(captions: Sequence[str]) -> str | None:
    """The tokenizer for captions that are not written in Latin letters; it needs no further package.

    Args:
        captions: references or predictions; about 500 of them are examined.

    Returns:
        "zh-char" for Chinese, "char" for Japanese and Thai, "13a" for other scripts; None for Latin letters.
    """
    text = "\n".join(caption[:1000] for caption in captions[:: max(1, len(captions) // SAMPLE)])
    letters = [] if text.isascii() else _LETTERS.findall(text)
    foreign = sum(1 for letter in letters if not _LATIN.match(letter))
    if not letters or foreign / len(letters) <= FOREIGN_LETTERS:
        return None
    for name in ("ja-mecab", "th-newmm"):
        if len(_SCRIPTS[name].findall(text)) > foreign / 8:
            return "char"
    return "zh-char" if sum(1 for letter in letters if _CHINESE.match(letter)) > foreign / 2 else "13a"


def language_warning(captions: Sequence[str]) -> str | None:
    """Notice captions for which the English tokenizer `ptb` is the wrong one.

    Letters of other scripts are counted first; among Latin letters, the commonest small words decide. The test
    examines about 500 captions from all over the data, and does not warn if it is undecided.

    Args:
        captions: references or predictions.

    Returns:
        One sentence, or None if the captions look English or are too few to decide.
    """
    sample = captions[:: max(1, len(captions) // SAMPLE)]
    text = "\n".join(caption[:1000] for caption in sample)
    letters = [] if text.isascii() else _LETTERS.findall(text)
    foreign = sum(1 for letter in letters if not _LATIN.match(letter))
    if letters and foreign / len(letters) > FOREIGN_LETTERS:
        chinese = sum(1 for letter in letters if _CHINESE.match(letter))
        tokenizer_of = (name for name, script in _SCRIPTS.items() if len(script.findall(text)) > foreign / 8)
        name = next(tokenizer_of, "zh-char or zh-jieba" if chinese > foreign / 2 else "13a")
        advice = f"--tokenize {name}"
        return (
            f"{foreign / len(letters):.0%} of the captions' letters are not Latin, and the tokenizer ptb is made for "
            f"English; use {advice}."
        )
    words = re.findall(r"[^\W\d_]+", text.lower())
    often = Counter(words)
    counts = {language: sum(often[word] for word in small) for language, small in _WORDS_OF.items()}
    english = counts.pop("English")
    language, count = max(counts.items(), key=lambda item: item[1])
    if count >= FEWEST_WORDS and count > 2 * english and count / len(words) > FOREIGN_WORDS:
        return (
            f"The captions do not look English (most like {language}), and the tokenizer ptb is made for English; "
            "use --tokenize 13a unless this is on purpose."
        )
    return None
