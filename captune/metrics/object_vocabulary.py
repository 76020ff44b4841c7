"""Words for objects: which classes a caption mentions, where, by a vocabulary of classes with synonyms.

    name: street
    classes:
      car: [automobile, police car]     # synonyms, of one or several words
      hot dog: []
    compounds: [toy car, car park]      # contain a word of a class, and mention none
    ignore: [license plate]             # categories of annotations that the vocabulary leaves out on purpose

Captions are compared in lower case. The vocabulary is inflected to plurals; the text of a caption is never stemmed.
The longest phrase wins, so that "teddy bear" is no bear and "toy car" no car. The words of a phrase may be joined by
spaces or hyphens, and a possessive counts as the word.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from captune.common import did_you_mean
from captune.errors import MetricInputError
from captune.metrics.json_files import read_text
from captune.parsing import load_yaml, show_value

__all__ = ["Mention", "ObjectVocabulary", "Word", "coco_vocabulary", "plurals", "split_words"]


class Word(NamedTuple):
    """A word of a text.

    Attributes:
        text: in lower case, without an English possessive.
        start: position of its first character in the text.
        end: position after its last character.
    """

    text: str
    start: int
    end: int


class Mention(NamedTuple):
    """An object that a text mentions.

    Attributes:
        name: the class.
        start: position of its first character in the text.
        end: position after its last character.
    """

    name: str
    start: int
    end: int


# Chinese characters are separate words: Chinese has no spaces, and the longest phrase wins.
_WORD = re.compile("[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])[^\\W_])+(?:['\u2019](?:(?![\u3400-\u9fff])[^\\W_])+)*")
_POSSESSIVE = re.compile("['\u2019]s$")
_JOINT = re.compile("(?:['\u2019]s?)?[\\s\u2010\u2011-]*")


def split_words(text: str) -> Iterator[Word]:
    """The words of a text; hyphens, punctuation and white space separate them.

    Args:
        text: any text.

    Yields:
        Words in their order.
    """
    for match in _WORD.finditer(text):
        bare = _POSSESSIVE.sub("", match[0].lower())
        yield Word(unicodedata.normalize("NFC", bare), match.start(), match.start() + len(bare))


_IRREGULAR: dict[str, tuple[str, ...]] = {
    "child": ("children",), "person": ("people", "persons"), "foot": ("feet",), "tooth": ("teeth",),
    "goose": ("geese",), "mouse": ("mice",), "ox": ("oxen",), "die": ("dice",), "louse": ("lice",),
    "knife": ("knives",), "wife": ("wives",), "life": ("lives",), "midwife": ("midwives",), "half": ("halves",),
    "calf": ("calves",), "wolf": ("wolves",), "shelf": ("shelves",), "leaf": ("leaves",), "loaf": ("loaves",),
    "thief": ("thieves",), "elf": ("elves",), "self": ("selves",), "scarf": ("scarves", "scarfs"),
    "hoof": ("hooves", "hoofs"), "wharf": ("wharves", "wharfs"), "dwarf": ("dwarves", "dwarfs"),
    "cactus": ("cacti", "cactuses"), "fungus": ("fungi",), "quiz": ("quizzes",), "passerby": ("passersby",),
    "sheep": ("sheep",), "deer": ("deer",), "moose": ("moose",), "bison": ("bison",), "fish": ("fish", "fishes"),
    "aircraft": ("aircraft",), "series": ("series",), "species": ("species",),
}  # fmt: skip
_NOT_MAN = ("human", "german", "roman", "talisman", "ottoman", "caiman", "shaman", "cayman")


def plurals(word: str) -> tuple[str, ...]:
    """The English plurals of a noun, more than one where usage differs.

    Args:
        word: in lower case, of one word.
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if re.search("child$", word):
        return (f"{word}ren",)
    if re.search("(?:man|woman)$", word) and not word.endswith(_NOT_MAN):
        return (f"{word[:-2]}en",)
    if re.search("[^aeiou]y$", word):
        return (f"{word[:-1]}ies",)
    if re.search("(?:[sxz]|ch|sh)$", word):
        return (f"{word}es",)
    if re.search("[^aeiou]o$", word):
        return f"{word}s", f"{word}es"
    return (f"{word}s",)


def _inflections(phrase: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """A phrase with its plurals: of its last word, or of the word before "of" ("glasses of wine")."""
    yield phrase
    head = phrase.index("of") - 1 if "of" in phrase[1:] else len(phrase) - 1
    if phrase[head].isascii() and phrase[head].isalpha():
        for plural in plurals(phrase[head]):
            yield (*phrase[:head], plural, *phrase[head + 1 :])


@dataclass(frozen=True, eq=False)
class ObjectVocabulary:
    """Classes of objects with the words for them.

    Args:
        name: of the vocabulary, for signatures.
        classes: from a class to its synonyms; a class is a word for itself.
        compounds: phrases that contain a word of a class and mention no object.
        ignore: categories of annotations that are left out.

    Raises:
        MetricInputError: a word is empty or is of two classes, or there are no classes.
    """

    name: str
    classes: Mapping[str, Sequence[str]]
    compounds: Sequence[str] = ()
    ignore: Sequence[str] = ()
    _phrases: dict[str, list[tuple[tuple[str, ...], str | None]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise MetricInputError(f"the vocabulary's name is {self.name!r}; give letters, digits, '-', '_' and '.'")
        if not self.classes:
            raise MetricInputError(f"the vocabulary {self.name} has no classes; give at least one")
        of_phrase: dict[tuple[str, ...], str | None] = {}
        for name, synonyms in self.classes.items():
            for words in dict.fromkeys((name, *synonyms)):
                self._add(of_phrase, words, name)
        for words in self.compounds:
            self._add(of_phrase, words, None)
        inflected = dict(of_phrase)
        # A word of the vocabulary is not replaced by a plural of another: "glasses" may be a class next to "glass".
        for phrase, owner in of_phrase.items():
            for form in _inflections(phrase):
                if inflected.setdefault(form, owner) != owner and form not in of_phrase:
                    raise MetricInputError(
                        f"in the vocabulary {self.name}, {' '.join(form)!r} is the plural of a word of "
                        f"{_describe(inflected[form])} and of one of {_describe(owner)}; list it in one of them"
                    )
        phrases: dict[str, list[tuple[tuple[str, ...], str | None]]] = {}
        for form in sorted(inflected, key=len, reverse=True):
            phrases.setdefault(form[0], []).append((form, inflected[form]))
        object.__setattr__(self, "_phrases", phrases)

    def _add(self, of_phrase: dict[tuple[str, ...], str | None], text: str, owner: str | None) -> None:
        phrase = tuple(word.text for word in split_words(text))
        if not phrase:
            raise MetricInputError(f"{_describe(owner)} has the entry {text!r}, which has no word; remove it")
        if of_phrase.setdefault(phrase, owner) != owner:
            raise MetricInputError(
                f"in the vocabulary {self.name}, {text!r} belongs to {_describe(of_phrase[phrase])} and to "
                f"{_describe(owner)}; keep it in one of them"
            )

    @cached_property
    def hash(self) -> str:
        """The first 8 hexadecimal digits of a SHA-256 of classes, synonyms and compounds, in any order."""
        content = [{name: sorted(set(words)) for name, words in self.classes.items()}, sorted(set(self.compounds))]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:8]

    def mentions(self, text: str) -> list[Mention]:
        """Every mention of an object, in the order of the text.

        Args:
            text: a caption.

        Returns:
            A mention for each word or phrase; two mentions of one class are two.
        """
        words = list(split_words(text))
        result: list[Mention] = []
        position = 0
        while position < len(words):
            length, owner = self._longest(words, position, text)
            if owner is not None:
                result.append(Mention(owner, words[position].start, words[position + length - 1].end))
            position += length
        return result

    def _longest(self, words: Sequence[Word], position: int, text: str) -> tuple[int, str | None]:
        """The number of words of the longest phrase that begins at a word, 1 where there is none, and its class."""
        for phrase, owner in self._phrases.get(words[position].text, ()):
            part = words[position : position + len(phrase)]
            if tuple(word.text for word in part) == phrase and all(
                _JOINT.fullmatch(text, first.end, second.start) for first, second in pairwise(part)
            ):
                return len(phrase), owner
        return 1, None

    def class_of(self, category: str) -> str | None:
        """The class of a category of annotations, by any of its words; None if it is unknown."""
        phrase = tuple(word.text for word in split_words(category))
        return (
            next((owner for form, owner in self._phrases.get(phrase[0], ()) if form == phrase), None)
            if phrase
            else None
        )

    def classes_of(self, categories: Iterable[str], source: str) -> dict[str, str]:
        """From the categories of annotations to classes, without those to ignore.

        Args:
            categories: their names.
            source: of the annotations, for messages.

        Raises:
            MetricInputError: a category is in neither the classes nor `ignore`.
        """
        ignored = {name.lower() for name in self.ignore}
        result: dict[str, str] = {}
        unknown: list[str] = []
        for category in dict.fromkeys(categories):
            if category.lower() in ignored:
                continue
            owner = self.class_of(category)
            if owner is None:
                unknown.append(category)
            else:
                result[category] = owner
        if unknown:
            shown = ", ".join(map(repr, unknown[:3])) + (f" and {len(unknown) - 3:,} more" if len(unknown) > 3 else "")
            raise MetricInputError(
                f"{source} has objects of the category {shown}, which the vocabulary {self.name} does not have; add "
                "them to its classes, or to 'ignore'."
            )
        return result

    @classmethod
    def read(cls, path: str | Path) -> ObjectVocabulary:
        """Read a vocabulary.

        Args:
            path: a YAML file with `classes`, and optionally `name`, `compounds` and `ignore`.

        Raises:
            MetricInputError: it cannot be read or is no vocabulary; the sentence names the file.
        """
        try:
            tree = load_yaml(read_text(str(path)))
        except ValueError as error:
            if isinstance(error, MetricInputError):
                raise
            raise MetricInputError(f"{path} is not YAML: {error}.") from None
        return _from_tree(tree, str(path), Path(path).name.partition(".")[0])


def _from_tree(tree: Any, source: str, name: str) -> ObjectVocabulary:
    """A vocabulary from parsed YAML."""
    if not isinstance(tree, dict) or not isinstance(tree.get("classes"), dict):
        raise MetricInputError(
            f"{source} is no vocabulary of objects; it needs 'classes', each with a list of synonyms, such as "
            "'car: [automobile]'."
        )
    known = ("name", "classes", "compounds", "ignore")
    for key in tree:
        if key not in known:
            hint = did_you_mean(str(key), known, f"choose one of {', '.join(known)}.")
            raise MetricInputError(f"{source} has the unknown key {key!r}; {hint}")
    classes = {}
    for key, synonyms in tree["classes"].items():
        if not isinstance(key, str):
            raise MetricInputError(f"{source}: the class {show_value(key)} is not text; put it in quotation marks.")
        classes[key] = _words(synonyms, f"the class {key!r}", source)
    lists = {key: _words(tree.get(key, []), f"'{key}'", source) for key in ("compounds", "ignore")}
    try:
        return ObjectVocabulary(str(tree.get("name", name)), classes, **lists)
    except MetricInputError as error:
        raise MetricInputError(f"{source}: {error}.") from None


def _words(value: Any, what: str, source: str) -> list[str]:
    """A list of texts.

    Raises:
        MetricInputError: it is something else; YAML reads an unquoted `no` as False.
    """
    if not isinstance(value, list):
        raise MetricInputError(f"{source}: {what} has {show_value(value)}; give a list of words, or [] for none.")
    if (other := next((word for word in value if not isinstance(word, str)), None)) is not None or None in value:
        raise MetricInputError(
            f"{source}: {what} has the entry {show_value(other)}, which is not text; put it in quotation marks."
        )
    return value


def _describe(owner: str | None) -> str:
    return "'compounds'" if owner is None else f"the class {owner!r}"


@cache
def coco_vocabulary() -> ObjectVocabulary:
    """The default: the 80 classes of COCO with synonyms."""
    text = (files("captune.metrics") / "coco80.yaml").read_text(encoding="utf-8")
    return _from_tree(load_yaml(text), "coco80.yaml", "coco80")
