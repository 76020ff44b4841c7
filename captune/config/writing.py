"""Configurations as text: YAML with the help of every field as a comment, and the reference of all keys.

`python -m captune.config --write docs/configuration.md` writes the reference.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from captune.config.sections import RunConfig

__all__ = ["ConfigKey", "commented_yaml", "configuration_keys", "configuration_reference", "configuration_schema"]

_INTRODUCTION = """\
# Configuration

A run is a YAML file with the sections below. Every key has a default, so a file states only what differs, as those in
[train_configs](../train_configs) do. `section.key=value` on the command line overrides the file:

```bash
captune train train_configs/toy.yaml train.epochs=3 data.train_split=train,restval
```

Unknown keys are errors. Relative paths are relative to the working directory; a manifest or protocol of the file that
does not exist there is read next to the file, which a message states. The configuration of a run, with all defaults
filled in, is stored as `config.yaml` in its output folder. This page is generated: `python -m captune.config --write
docs/configuration.md`.
"""
_TYPES = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", Path: "path", type(None): "null"}
_BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}


def _balanced(text: str, width: int) -> list[str]:
    """Lines of a text of about the same length, so that no word is left alone on the last one."""
    lines = textwrap.wrap(text, width)
    while len(narrower := textwrap.wrap(text, width - 1)) == len(lines) > 1:
        lines, width = narrower, width - 1
    return lines


def commented_yaml(config: RunConfig, heading: str = "") -> str:
    """Write a complete configuration as YAML in which every field carries its help as a comment."""
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    lines.extend(_section_lines(config, ""))
    return "\n".join(lines) + "\n"


def _section_lines(section: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield ""
            yield f"{indent}# {_summary(type(value))}"
            yield f"{indent}{name}:"
            yield from _section_lines(value, indent + "  ")
            continue
        for line in _balanced(field.description or "", width=100):
            yield f"{indent}# {line}"
        yield f"{indent}{name}: {_scalar(section, name)}"


@dataclass(frozen=True)
class ConfigKey:
    """A key of a configuration.

    Attributes:
        name: with its sections, such as "train.epochs".
        values: what it takes, such as "integer above 0, or null".
        default: in YAML.
        help: sentences.
    """

    name: str
    values: str
    default: str
    help: str


def configuration_keys() -> list[ConfigKey]:
    """Every key of a configuration, in the order of the reference."""
    return list(_keys(RunConfig(), ""))


def _keys(section: BaseModel, name: str) -> Iterator[ConfigKey]:
    """The keys of a section, then those of the sections in it."""
    subsections: list[tuple[str, BaseModel]] = []
    for key, field in type(section).model_fields.items():
        path, value = f"{name}.{key}".lstrip("."), getattr(section, key)
        if isinstance(value, BaseModel):
            subsections.append((path, value))
            continue
        help_text = " ".join((field.description or "").split())
        yield ConfigKey(path, _type_text(field).replace("`", ""), _scalar(section, key), help_text)
        subsections += [(path, model()) for model in _models(field.annotation)]
    for path, subsection in subsections:
        yield from _keys(subsection, path)


def configuration_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration, by which editors check and complete YAML files."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}


def configuration_reference() -> str:
    """Every section and key of a configuration with its type, default and help, as Markdown."""
    return _INTRODUCTION + "".join(f"\n{text}" for text in _section_tables(RunConfig(), ""))


def _section_tables(section: BaseModel, name: str) -> Iterator[str]:
    """A table for a section, then those of the sections in it."""
    rows, subsections = [], []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            subsections.append((f"{name}.{key}".lstrip("."), value))
            continue
        help_text = " ".join((field.description or "").split()).replace("|", r"\|")
        rows.append(f"| `{key}` | {_type_text(field)} | `{_scalar(section, key)}` | {help_text} |\n")
        subsections += [(f"{name}.{key}", model()) for model in _models(field.annotation)]
    title = f"## `{name}`\n\n{_summary(type(section))}" if name else "## Top level"
    yield f"{title}\n\n| key | type | default | description |\n| --- | --- | --- | --- |\n{''.join(rows)}"
    for subsection, value in subsections:
        yield from _section_tables(value, subsection)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a key may hold."""
    return [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _type_text(field: FieldInfo) -> str:
    """The values that a key takes, such as "integer above 0, or null"."""
    bounds = [
        text.format(f"{getattr(rule, name):g}")
        for rule in field.metadata
        for name, text in _BOUNDS.items()
        if hasattr(rule, name)
    ]
    names = _type_names(field.annotation)
    values = " ".join([", ".join(name for name in names if name != "null"), *bounds])
    return f"{values}, or null" if "null" in names else values


def _type_names(annotation: Any) -> list[str]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_names(args[0])
    if origin is Literal:
        return [f"`{value}`" for value in args]
    if origin in (Union, UnionType):
        return [name for kind in args for name in _type_names(kind)]
    if origin is tuple:
        of = ", ".join(_type_names(args[0]))
        return [f"list of: {of}" if args[-1] is Ellipsis else f"list of {len(args)}: {of}"]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ["section"]
    return [_TYPES[annotation]]


def _summary(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip()


def _scalar(section: BaseModel, name: str) -> str:
    """A value in YAML, on one line."""
    plain = section.model_dump(mode="json")[name]
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
