"""Options that several commands share: single ones, and dataclasses whose fields are options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

__all__ = ["AllowLeaks", "Overrides", "with_shared_options"]

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that override the file: section.key=value ...")]
AllowLeaks = Annotated[
    bool,
    typer.Option(
        "--allow-leaks", help="Mark results on images that were trained on with LEAK only, without the reason."
    ),
]


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Expand each parameter that is a dataclass into its fields, which typer then reads as options.

    The command receives the dataclass, built from the values of these options. All arguments are keywords.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        for field in fields(parameter.annotation):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
                )
            )

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        built = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group) if field.name in values})
            for name, group in groups.items()
        }
        command(**values, **built)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded
