"""Rows with named columns from JSON, and captions from conversations.

JSON Lines, an array of objects, or one object that holds such an array are read; the content decides, not the name of
the file. An object may hold its rows under any key; under keys that are names of splits (`{"train": [...],
"val": [...]}`) they are of these splits. Read as well are captions by image (`{"a.jpg": "A dog ."}`), objects under
separate keys (`{"7": {"image": "a.jpg", ...}}`), and the columns that pandas writes (`{"image": {"0": "a.jpg"},
"caption": {"0": "A dog ."}}`).

Conversations about an image are read as LLaVA, ShareGPT, LLaMA-Factory, ms-swift and TRL write them:

    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nDescribe it."},
                                         {"from": "gpt", "value": "A dog."}]}
    {"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>Describe it."},
                                       {"role": "assistant", "content": "A dog."}]}
    {"images": ["a.jpg"], "query": "<image>Describe it.", "response": "A dog.", "history": []}
    {"images": ["a.jpg"], "instruction": "<image>Describe it.", "output": "A dog."}

The first answer is the image's caption. Further turns are questions about the image and no descriptions; they are
captions only where that is requested. A manifest has no field for instructions, so they are counted.
Source: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from captune.data.image_formats import is_image_name
from captune.data.issues import Issue, printable
from captune.data.json_stream import BadItem, json_parts, parse_json
from captune.data.splits import SPLIT_NAMES
from captune.data.text_files import SourceFile, checked_lines
from captune.errors import DataError

__all__ = ["Conversations", "Entry", "Turns", "is_conversation", "json_entries", "json_layout"]

Layout: TypeAlias = Literal["lines", "array", "object"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a file.

    Attributes:
        line: its line; 0 where the format has none.
        location: what messages begin with where there is no line ("entry 3: ").
        record: its keys and values.
        split: that of the list it is in, where the list is called like one.
    """

    line: int
    location: str
    record: dict[str, Any]
    split: str | None = None


def json_layout(reading: SourceFile, image: str) -> Layout:
    """How a JSON file holds its rows; nothing is read from `reading`.

    Args:
        reading: the open file.
        image: key of the image.

    Raises:
        DataError: the gzip data are broken.
    """
    lines = (line for line in checked_lines(SourceFile(reading.path)) if isinstance(line, DataError) or line.strip())
    first = next(lines, "")
    if isinstance(first, DataError):
        return "lines"
    if first.lstrip().startswith("["):
        return "array"
    if any(ending in (".jsonl", ".jsonlines", ".ndjson") for ending in reading.path.suffixes):
        return "lines"
    is_last = next(lines, None) is None
    try:
        record = parse_json(first)
    except ValueError:
        return "object" if is_last or first.rstrip()[-1:] in ("{", "[", ",", ":") else "lines"
    is_row = isinstance(record, dict) and (isinstance(record.get(image), str) or is_conversation(record))
    return "lines" if is_row or not is_last else "object"


def json_entries(
    reading: SourceFile, layout: Layout, image: str, captions: tuple[str, ...], passed: Counter[str]
) -> Iterator[Entry | Issue]:
    """The objects of a file, and what is wrong with others.

    Args:
        reading: the open file.
        layout: from `json_layout`.
        image: key of the image.
        captions: keys of the captions.
        passed: counts the entries of the lists that hold no rows.

    Raises:
        DataError: an array or object that is not JSON.
    """
    if layout == "lines":
        yield from _of_lines(reading)
        return
    columns: dict[str, dict[str, Any]] = {}
    number, current, is_mapping = 0, "", None
    for key, item, in_list in json_parts(reading):
        if is_mapping is None:
            is_mapping = layout == "object" and is_image_name(key)
        if is_mapping:
            record = {image: key, **item} if isinstance(item, dict) else {image: key, captions[0]: item}
            yield Entry(0, f"key '{key}': ", record)
        elif not in_list:
            if isinstance(item, dict) and key in (image, *captions):
                columns[key] = item
            elif _is_row(item, image):
                yield Entry(0, f"key '{key}': ", item)
        elif layout == "object" and key in passed:
            passed[key] += 1
        elif layout == "object" and key != current and not _is_row(item, image):
            passed[key] = 1
        else:
            number, current = (number if key == current else 0) + 1, key
            location = f"entry {number} of {key}: " if key else f"entry {number}: "
            if isinstance(item, dict):
                yield Entry(0, location, item, SPLIT_NAMES.get(key.lower()))
            else:
                fault = str(item) if isinstance(item, BadItem) else "a JSON object is expected"
                yield Issue(reading.name, 0, "malformed", f"{location}{fault}.")
    for index in dict.fromkeys(index for column in columns.values() for index in column):
        record = {key: column[index] for key, column in columns.items() if index in column}
        yield Entry(0, f"row '{index}': ", record)


def _is_row(item: Any, image: str) -> bool:
    return isinstance(item, dict) and (image in item or is_conversation(item))


def _of_lines(reading: SourceFile) -> Iterator[Entry | Issue]:
    for line, text in enumerate(checked_lines(reading), 1):
        if isinstance(text, DataError):
            yield Issue(reading.name, line, "encoding", str(text))
        elif text.strip():
            try:
                record = parse_json(text)
                if not isinstance(record, dict):
                    raise ValueError("a JSON object is expected")
            except ValueError as error:
                yield Issue(reading.name, line, "malformed", f"{error}.")
            else:
                yield Entry(line, "", record)


Turns: TypeAlias = Literal["first", "all"]
"""Which answers of a conversation are captions."""

_MARKS = re.compile(r"\s*(?:<image>|<ImageHere>|<img>.*?</img>|<\|image\|>|<image_placeholder>)\s*")
_LISTS = ("conversations", "messages", "conversation")
_PAIRS = (("query", "response"), ("instruction", "output"))
_ANSWERS = frozenset({"gpt", "assistant", "model", "bot", "chatgpt"})
_QUESTIONS = frozenset({"human", "user"})
_MOST_INSTRUCTIONS = 1000  # that are counted separately


def is_conversation(record: dict[str, Any]) -> bool:
    """Whether an object holds turns and not a caption."""
    has_turns = any(isinstance(record.get(key), list) for key in _LISTS)
    return has_turns or any(question in record and answer in record for question, answer in _PAIRS)


class Conversations:
    """Takes captions out of conversations, and counts their instructions.

    Args:
        turns: which answers are captions.
    """

    def __init__(self, turns: Turns = "first") -> None:
        self._turns = turns
        self._instructions: Counter[str] = Counter()

    def parts(self, record: dict[str, Any], image_column: str) -> tuple[Any, list[str], int]:
        """What an object holds.

        Args:
            record: for which `is_conversation` is true.
            image_column: key of the image; by default also "images", a list of one.

        Returns:
            the cell of the image, the captions, and how many further answers were left out.

        Raises:
            ValueError: no image, several images, or turns that cannot be read.
        """
        images = record.get(image_column, record.get("images", record.get("image")))
        if isinstance(images, list):
            if len(images) > 1:
                raise ValueError(f"the conversation has {len(images)} images, and one is expected")
            images = images[0] if images else None
        if images is None or images == "":
            raise ValueError("the conversation has no image")
        answers: list[tuple[str, str]] = []
        question = ""
        for role, text in _turns_of(record):
            if role in _QUESTIONS:
                question = text
            elif role in _ANSWERS:
                answers.append((question, text))
        if not answers:
            raise ValueError("the conversation has no answer")
        taken = answers if self._turns == "all" else answers[:1]
        for instruction, _ in taken:
            if instruction in self._instructions or len(self._instructions) < _MOST_INSTRUCTIONS:
                self._instructions[instruction] += 1
        return images, [text for _, text in taken], len(answers) - len(taken)

    def notes(self) -> list[str]:
        """The instructions in one sentence; none where there was no conversation."""
        if not self._instructions:
            return []
        (text, count), *_ = self._instructions.most_common(1)
        shown = printable(" ".join(text.split()))[:80]
        more = "" if len(self._instructions) < _MOST_INSTRUCTIONS else " or more"
        kinds = f"{len(self._instructions):,}{more}" if len(self._instructions) > 1 else "one"
        return [
            f"the instructions of conversations are not kept ({kinds}; '{shown}' {count:,} times): a manifest holds "
            "none, so set model.instruction, and train.instructions for several"
        ]


def _turns_of(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Role and text of each turn, without the marks of images."""
    turns = next((record[key] for key in _LISTS if key in record), None)
    if turns is None:
        question_key, answer_key = next(
            (question, answer) for question, answer in _PAIRS if question in record and answer in record
        )
        history = record.get("history") or []
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise ValueError("'history' must be a list of pairs")
        pairs = [*history, [record[question_key], record[answer_key]]]
        turns = [turn for question, answer in pairs for turn in ({"user": question}, {"assistant": answer})]
        turns = [{"role": role, "content": text} for turn in turns for role, text in turn.items()]
    if not isinstance(turns, list):
        raise ValueError("the turns must be a list")
    parsed = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number} is no object")
        role = turn.get("from", turn.get("role"))
        text = _text(turn.get("value", turn.get("content")))
        if not isinstance(role, str) or text is None:
            raise ValueError(f"turn {number} must have a role ('from' or 'role') and text ('value' or 'content')")
        parsed.append((role.lower(), _MARKS.sub(" ", text).strip()))
    return parsed


def _text(content: Any) -> str | None:
    """The text of a turn: a string, or the text parts of a list as chat templates take it."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part["text"] for part in content if part.get("type") == "text" or set(part) == {"text"}]
        return "\n".join(texts) if all(isinstance(text, str) for text in texts) else None
    return None
