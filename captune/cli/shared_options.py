"""Options that several commands share: single ones, and dataclasses whose fields are options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from captune.cli.output import print_message

__all__ = [
    "AllowLeaks",
    "AsJson",
    "Base",
    "Overrides",
    "checked_model",
    "in_panel",
    "option_parameters",
    "with_shared_options",
]

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that override the file, as section.key=value.")]
AllowLeaks = Annotated[
    bool,
    typer.Option(
        "--allow-leaks", help="Keep the LEAK mark of results on images that were trained on, but silence the warning."
    ),
]


Base = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub id of the base model of a checkpoint or adapter, if it has moved.",
        show_default="as recorded",
    ),
]


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]


def checked_model(name: str, base: str | None = None) -> str:
    """Refuse a captioner that cannot be read, and print which checkpoint of a run is used.

    Args:
        name: a model, run (`RUN` or `RUN@epoch1`), checkpoint, adapter or hub id.
        base: of its base model, if it is not the recorded one.

    Returns:
        The name, or the folder of the checkpoint.

    Raises:
        WeightsError: there is no such model.
    """
    from captune.preflight import check_named_model

    selected = check_named_model(name, base)
    if selected is None:
        return name
    print_message(f"Using {selected}.")
    return str(selected.folder)


def in_panel(annotation: Any, panel: str | None) -> Any:
    """The annotation of an option, which the help shows in a panel; unchanged without a panel."""
    if panel is None:
        return annotation
    annotated, *metadata = get_args(annotation)
    infos = []
    for info in metadata:
        infos.append(copy(info))
        if isinstance(info, OptionInfo):
            infos[-1].rich_help_panel = panel
    return Annotated[(annotated, *infos)]


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Expand each parameter that is a dataclass into its fields, which typer then reads as options.

    The help shows the options of a dataclass with an attribute PANEL under that heading; an attribute PANELS names the
    fields of several headings. The command receives the dataclass, built from the values of these options. All
    arguments are keywords.
    """
    expansion = functools.cache(functools.partial(_expand, command))

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        groups = expansion()[1]
        built = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group) if field.name in values})
            for name, group in groups.items()
        }
        command(**values, **built)

    expanded.expansion = expansion  # type: ignore[attr-defined]
    return expanded


def option_parameters(command: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a command, those of dataclasses expanded by `with_shared_options`."""
    if (expansion := getattr(command, "expansion", None)) is not None:
        parameters: list[inspect.Parameter] = expansion()[0]
        return parameters
    return list(inspect.signature(command, eval_str=True).parameters.values())


def _expand(command: Callable[..., Any]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """The parameters with the fields of dataclasses, all as keywords, and the dataclasses by their parameters."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        common = getattr(parameter.annotation, "PANEL", None)
        groups_of_fields = getattr(parameter.annotation, "PANELS", {})
        panels = {name: panel for panel, names in groups_of_fields.items() for name in names}
        for field in fields(parameter.annotation):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            annotation = in_panel(hints[field.name], panels.get(field.name, common))
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )
    return parameters, groups
