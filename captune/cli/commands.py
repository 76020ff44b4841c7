"""Commands with the options that all share, and their help: panels, complete sentences and examples.

The help is formatted without rich, whose import would take longer than all else that `captune --help` does.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from captune.cli.output import OutputOptions, settings
from captune.cli.shared_options import in_panel, option_parameters

__all__ = ["CommandGroup", "ListGroup"]

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_EXAMPLES = "Examples:"
"""Heading in a docstring, followed by one command a line."""
_DEFAULT_PANEL = "Options"


class CommandGroup(typer.Typer):
    """Commands of captune: each has the options of `OutputOptions`, and shows the examples of its docstring.

    Args:
        name: of the group.
        completion: add options that install the completion of a shell.
    """

    def __init__(self, name: str | None = None, *, completion: bool = False) -> None:
        super().__init__(
            name=name,
            cls=_Group,
            no_args_is_help=True,
            add_completion=completion,
            context_settings=_CONTEXT,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
        )

    def command(self, name: str | None = None, **details: Any) -> Callable[[Any], Any]:
        """Register a function as `typer.Typer.command` does; returns the function unchanged.

        Its options are read when it is called: reading those of all commands would take longer than `captune --help`.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.cache
            def complete() -> Any:
                single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
                single.command(name, cls=_Command, **details)(_with_output_options(function))
                return typer.main.get_command(single)

            def described() -> None:
                """Replaced by the help of the function."""

            described.__doc__ = function.__doc__
            described.__name__ = function.__name__
            cls: Any = functools.partial(_LazyCommand, complete=complete)
            super(CommandGroup, self).command(name, cls=cls, **details)(described)
            return function

        return decorate

    def callback(self, **details: Any) -> Callable[[Any], Any]:
        """Register the function that runs before each command; returns it unchanged."""
        register = super().callback(**{"cls": _Group, **details})

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            register(_with_output_options(function))
            return function

        return decorate


def _with_output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `OutputOptions` and apply them before the command runs.

    An option that the command declares itself, with a separate help text, is applied too, and passed to the command.
    """
    parameters = {parameter.name: parameter for parameter in option_parameters(function)}
    declared = set(parameters)
    hints = get_type_hints(OutputOptions, include_extras=True)
    for option in fields(OutputOptions):
        parameters.setdefault(
            option.name,
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=in_panel(hints[option.name], OutputOptions.PANEL),
            ),
        )

    @functools.wraps(function)
    def expanded(**values: Any) -> Any:
        OutputOptions(**{option.name: values[option.name] for option in fields(OutputOptions)}).apply()
        settings.as_json |= bool(values.get("as_json"))
        return function(**{name: value for name, value in values.items() if name in declared})

    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters.values()]
    expanded.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return expanded


def _heading(text: str) -> str:
    """A heading, bold where the help is read on a terminal."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[1m{text}\033[0m"


def _write_panels(command: Any, ctx: Any, formatter: Any) -> None:
    """Write arguments, then options by panel; the panel "Output" is last."""
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], _DEFAULT_PANEL: []}
    last: list[tuple[str, str]] = []
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is None:
            continue
        panel = getattr(parameter, "rich_help_panel", None)
        if parameter.param_type_name == "argument":
            panels["Arguments"].append(record)
        elif panel == OutputOptions.PANEL or "--help" in parameter.opts:
            last.append(record)
        else:
            panels.setdefault(panel or _DEFAULT_PANEL, []).append(record)
    panels[OutputOptions.PANEL] = last
    for name, records in panels.items():
        if records:
            with formatter.section(_heading(name)):
                formatter.write_dl(records)


class _Examples:
    """The examples at the end of a docstring, which are shown at the end of the help."""

    examples: tuple[str, ...]
    help: str | None

    def take_examples(self) -> None:
        """Separate the examples from the rest of the help."""
        text, _, examples = (self.help or "").partition(f"\n{_EXAMPLES}\n")
        self.help = text.rstrip()
        self.examples = tuple(line.strip() for line in examples.splitlines() if line.strip())

    def write_examples(self, formatter: Any) -> None:
        """Write one example a line, unwrapped, so that it can be copied."""
        if self.examples:
            with formatter.section(_heading(_EXAMPLES.removesuffix(":"))):
                formatter.write("".join(f"  {line}\n" for line in self.examples))


class _Command(TyperCommand, _Examples):
    """A command with panels and examples in its help."""

    def __init__(self, *arguments: Any, **details: Any) -> None:
        super().__init__(*arguments, **details)
        self.take_examples()
        for parameter in self.params:
            if parameter.opts == ["--out"]:
                parameter.opts.append("-o")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options by panel."""
        _write_panels(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        super().format_epilog(ctx, formatter)
        self.write_examples(formatter)


class _LazyCommand(TyperCommand, _Examples):
    """The name and help of a command in its group; the complete command is made when it is called.

    Args:
        complete: makes the command.
    """

    def __init__(self, *arguments: Any, complete: Callable[[], Any], **details: Any) -> None:
        self._complete = complete
        super().__init__(*arguments, **details)
        self.take_examples()

    @property
    def params(self) -> list[Any]:
        """Arguments and options of the complete command."""
        return list(self._complete().params)

    @params.setter
    def params(self, none: list[Any]) -> None:
        """Ignore the parameters of the function without any."""

    def make_context(self, *arguments: Any, **details: Any) -> Any:
        """The context of the complete command, which parses the arguments and runs."""
        return self._complete().make_context(*arguments, **details)


class _Group(TyperGroup, _Examples):
    """A group of commands, listed by panel with a complete sentence each, and with examples in its help."""

    def __init__(self, *arguments: Any, **details: Any) -> None:
        super().__init__(*arguments, **details)
        self.take_examples()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write commands by panel, then options."""
        self.format_commands(ctx, formatter)
        _write_panels(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each panel with its commands in the order of their registration."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                panels.setdefault(panel, []).append((name, _sentence(command)))
        for panel, rows in panels.items():
            with formatter.section(_heading(panel)):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        super().format_epilog(ctx, formatter)
        self.write_examples(formatter)


class ListGroup(_Group):
    """A group whose command `list` runs where none is named: `captune runs FOLDER` is `captune runs list FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the name of the command, if there is none."""
        named = args[:1] if args and not args[0].startswith("-") else args
        if not set(named) & {*self.commands, *ctx.help_option_names}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _sentence(command: Any) -> str:
    """The description of a command in a list: its short help, or the first sentence of its help."""
    if command.short_help:
        return str(command.short_help)
    paragraph = " ".join((command.help or "").partition("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + stop.strip()
