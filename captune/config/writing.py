"""A configuration as YAML for people: every field with its help as a comment."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import yaml
from pydantic import BaseModel

from captune.config.sections import RunConfig

__all__ = ["commented_yaml"]


def commented_yaml(config: RunConfig, heading: str = "") -> str:
    """Write a configuration as YAML in which every field carries its help as a comment."""
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    lines.extend(_section_lines(config, ""))
    return "\n".join(lines) + "\n"


def _section_lines(section: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield ""
            yield f"{indent}# {(type(value).__doc__ or '').strip()}"
            yield f"{indent}{name}:"
            yield from _section_lines(value, indent + "  ")
            continue
        for line in textwrap.wrap(field.description or "", width=100):
            yield f"{indent}# {line}"
        plain = section.model_dump(mode="json")[name]
        scalar = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        yield f"{indent}{name}: {scalar}"
