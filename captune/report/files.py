"""Read and write the files of a run: text with one sentence for each fault, versioned JSON, complete writes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import ConfigDict

from captune.data import atomic_file
from captune.errors import InputError, ToolError
from captune.parsing import load_json, show_value, validate

__all__ = ["StrictRecord", "atomic_write", "parse_versioned_json", "read_text"]

T = TypeVar("T")


class StrictRecord:
    """Base of dataclasses that are read from JSON: pydantic refuses fields that they do not have."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def read_text(path: Path, *, missing: str, undecodable: str) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Args:
        path: the file.
        missing: what to do when there is no such file, for the message.
        undecodable: what to do when it is not UTF-8.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {missing}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); {undecodable}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def parse_versioned_json(
    text: str,
    kind: type[T],
    source: str,
    *,
    version: int,
    remedy: str,
    required: Collection[str] = (),
    derived: Collection[str] = (),
) -> T:
    """Parse a JSON object with a field `format` and validate the other fields.

    Args:
        text: the document.
        kind: a pydantic model or dataclass of the other fields.
        source: name of the file in messages.
        version: the only value of `format` that is read.
        remedy: what to do about a file that cannot be read, for messages.
        required: fields that the file must have although `kind` has defaults for them.
        derived: fields that are computed from others and not read.

    Raises:
        InputError: the text is not JSON, repeats a key, has another format, or a field does not match `kind`.
    """
    try:
        tree = load_json(text, unique_keys=True)
    except ValueError as error:
        raise InputError(f"{source} is not JSON ({error}); {remedy}.") from None
    if not isinstance(tree, dict):
        raise InputError(f"{source} holds {show_value(tree)}, expected an object; {remedy}.")
    if type(number := tree.get("format", version)) is not int or number != version:
        raise InputError(
            f"{source} has format {show_value(number)}, but this captune reads format {version}; {remedy}."
        )
    if (missing := next((name for name in ("format", *required) if name not in tree), None)) is not None:
        raise InputError(f"{source} has no field '{missing}'; {remedy}.")
    fields = {name: value for name, value in tree.items() if name != "format" and name not in derived}
    return validate(fields, kind, source, remedy=f"{remedy[0].upper()}{remedy[1:]}.")


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """Write under a temporary name in the same folder, then rename.

    Args:
        path: the final name; its folder is created when absent.
        content: the complete file; text is written as UTF-8, with lone surrogates as `\\udXXX`.

    Returns:
        `path`.

    Raises:
        ToolError: the file cannot be written; a previous file under `path` is unchanged.
    """
    path = Path(path)
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        with atomic_file(path, "wb") as stream:
            stream.write(data)
    except OSError as error:
        raise ToolError(
            f"{path} cannot be written ({error.strerror or error}); remove it or choose another folder."
        ) from None
    return path
