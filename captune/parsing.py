"""Parse JSON and YAML from files and validate the values with pydantic.

Every fault of a text is a `ValueError`. Python's parsers raise `RecursionError` for a text nested a thousand deep, and
YAML's aliases let a few hundred bytes expand to billions of values; callers need not handle either. A value of the
wrong type is one sentence that names its position in the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from captune.common import did_you_mean, one_line, shorten
from captune.errors import CaptuneError, InputError

if TYPE_CHECKING:
    import yaml
    from pydantic import TypeAdapter, ValidationError

__all__ = [
    "DuplicateKeyError",
    "YamlSyntaxError",
    "first_repeated",
    "load_json",
    "load_yaml",
    "nan_to_null",
    "show_value",
    "unique_keys_hook",
    "validate",
]

T = TypeVar("T")

_MAX_DEPTH = 100
_MAX_VALUES = 1_000_000
_TOO_DEEP = "it is nested too deeply"
_MAX_SHOWN = 200
"""Characters of a value or of its position in a message."""
_MAX_PROBLEMS = 5
"""Problems of one file that a message lists."""
_EXPECTED = {
    "dict_type": "an object",
    "mapping_type": "an object",
    "dataclass_type": "an object",
    "model_type": "an object",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "a text",
    "int_type": "an integer",
}
"""pydantic's types of errors in the words of JSON."""


def load_json(text: str | bytes, *, unique_keys: bool = False, **settings: Any) -> Any:
    """Parse JSON.

    Args:
        text: the document.
        unique_keys: refuse an object that has a key twice; by default the last value counts, as in Python.
        settings: of `json.loads`.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or repeats a key.
    """
    if unique_keys:
        settings["object_pairs_hook"] = unique_keys_hook
    try:
        return json.loads(text, **settings)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


class DuplicateKeyError(ValueError):
    """An object has a key twice; Python's parser would silently keep the last value.

    Attributes:
        key: the key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} is given twice")
        self.key = key


def nan_to_null(tree: Any) -> Any:
    """The same values with None for every float that is not finite, since JSON has no NaN."""
    if isinstance(tree, dict):
        return {name: nan_to_null(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [nan_to_null(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def unique_keys_hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of a JSON document, for `object_pairs_hook`.

    Raises:
        DuplicateKeyError: a key is given twice.
    """
    built = dict(pairs)
    if len(built) != len(pairs):
        raise DuplicateKeyError(str(first_repeated(key for key, _ in pairs)))
    return built


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that occurred before, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def validate(
    value: object, kind: type[T], source: str, error: type[CaptuneError] = InputError, *, remedy: str = ""
) -> T:
    """Build a pydantic model or a dataclass from the values of a JSON or YAML document.

    Args:
        value: the parsed document.
        kind: what to build; an annotation of its fields may carry pydantic's constraints and validators.
        source: name of the file in messages.
        error: class of the error.
        remedy: a sentence that ends the message, about what to do.

    Raises:
        CaptuneError: of the class `error`; a key is unknown or missing, or a value is not as its field requires.
    """
    from pydantic import ValidationError

    try:
        built: T = _adapter(kind).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as problems:
        raise error(f"{source}: {_describe(problems, kind)} {remedy}".rstrip()) from None
    return built


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _describe(error: ValidationError, kind: Any) -> str:
    """The problems that pydantic reports, a sentence each."""
    problems = error.errors(include_url=False)
    sentences = [_sentence(dict(problem), kind) for problem in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        sentences.append(f"There are {len(problems) - _MAX_PROBLEMS:,} more problems.")
    return " ".join(sentences)


def _sentence(problem: dict[str, Any], kind: Any) -> str:
    path = tuple(key for key in problem["loc"] if key != "[key]")
    name = _position(path)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _field_names(kind, path[:-1])
        hint = did_you_mean(str(path[-1]), known, f"known keys are: {', '.join(known)}.", cutoff=0.5)
        return f"there is no key '{name}'; {hint}"
    if problem["type"] == "missing":
        return f"the key '{name}' is missing."
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not path and problem["type"] == "value_error":
        return f"{message}."
    if problem["type"] == "too_short":
        message = f"expected at least {problem['ctx']['min_length']}"
    expected = _EXPECTED.get(problem["type"]) or re.sub(r"^(Input should be|expected) ", "", message)
    if expected.startswith(("greater than", "less than")):
        expected = f"a number {expected}"
    value = problem.get("input")
    if expected != message:
        return f"{name or 'the file'} is {show_value(value)}, expected {expected}."
    shown = "" if isinstance(value, (dict, list)) else f" is {show_value(value)}"
    return f"{name}{shown}: {message[0].lower()}{message[1:]}."


def _position(path: Iterable[str | int]) -> str:
    """A position in a document, such as `checkpoints[0].captions['12']`."""
    text = "".join(f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]" for key in path)
    return shorten(text.removeprefix("."), _MAX_SHOWN, "...")


def _field_names(kind: Any, path: Iterable[str | int]) -> list[str]:
    """Names of the fields of the model or dataclass at a position in `kind`."""
    fields = _fields(kind)
    for key in path:
        # An index or a key of a mapping leads to the same annotation, which names the type of the values.
        fields = _fields(fields[str(key)]) if key in fields else fields
    return list(fields)


def _fields(annotation: Any) -> dict[str, Any]:
    """Name and annotation of each field of the first model or dataclass in an annotation."""
    if hasattr(annotation, "model_fields"):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    if is_dataclass(annotation):
        return dict(get_type_hints(annotation))
    return next(filter(None, map(_fields, get_args(annotation))), {})


def show_value(value: object) -> str:
    """A value of a document in few enough characters for a sentence."""
    if isinstance(value, (dict, list)):
        kind, article = ("object", "an") if isinstance(value, dict) else ("list", "a")
        return f"{article} {kind} of {len(value)}" if value else f"an empty {kind}"
    return "null" if value is None else shorten(repr(value), _MAX_SHOWN, "...")


class YamlSyntaxError(ValueError):
    """A text is not YAML; the message is the line, the column and the problem.

    Attributes:
        excerpt: the line of the text and below it a caret under the column; empty if the position is unknown.
    """

    def __init__(self, error: yaml.YAMLError) -> None:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        self.excerpt = ""
        if mark is None or problem is None:
            super().__init__(" ".join(str(error).split()))
            return
        super().__init__(f"line {mark.line + 1}, column {mark.column + 1}: {problem}")
        snippet = mark.get_snippet(indent=4, max_length=80)
        if snippet is not None:
            self.excerpt = "\n".join(map(one_line, snippet.split("\n")))


def load_yaml(text: str) -> Any:
    """Parse a YAML document with the safe loader.

    Raises:
        ValueError: it is not YAML, nested too deeply, its aliases expand to too many values, or a mapping has a key
            twice, of which YAML's loader would silently keep the last.
    """
    import yaml

    try:
        reader = yaml.SafeLoader(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _check(node, {}, 1)
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise YamlSyntaxError(error) from error


def _check(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Number of values of a node with every alias expanded; refuses keys that are given twice."""
    if depth > _MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    if id(node) in known:
        return known[id(node)]
    children = node.value if isinstance(node.value, list) else []
    pairs = [child for child in children if isinstance(child, tuple)]
    keys = [key for key, _ in pairs if isinstance(key.value, str) and key.tag != "tag:yaml.org,2002:merge"]
    if (twice := first_repeated(key.value for key in keys)) is not None:
        line = [key for key in keys if key.value == twice][1].start_mark.line + 1
        raise ValueError(f"the key {twice!r} is given twice, again in line {line}")
    nodes = [node for child in children for node in (child if isinstance(child, tuple) else (child,))]
    count = 1 + sum(_check(child, known, depth + 1) for child in nodes)
    if count > _MAX_VALUES:
        raise ValueError(f"its aliases expand to more than {_MAX_VALUES:,} values")
    known[id(node)] = count
    return count
