"""`captune config`: the keys of a configuration, a resolved configuration, and the schema for editors."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captune.cli.commands import CommandGroup
from captune.cli.output import print_summary
from captune.cli.shared_options import AsJson, Overrides
from captune.errors import InputError

if TYPE_CHECKING:
    from captune.config import ConfigKey, RunConfig

__all__ = ["app"]

app = CommandGroup()


@app.callback()
def config() -> None:
    """Show what a YAML configuration may contain, and what a file amounts to.

    A run is a YAML file; every key has a default, so that a file states only what differs. `section.key=value` on the
    command line overrides the file.

    Examples:
        captune config keys train
        captune config show photos.yaml train.epochs=5
        captune config schema --out captune.schema.json
    """


def _complete_keys(incomplete: str) -> list[str]:
    """Sections and keys for the completion of a shell."""
    from captune.config import configuration_keys

    names = [key.name for key in configuration_keys()]
    sections = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return [name for name in (*filter(None, sections), *names) if name.startswith(incomplete)]


@app.command("keys")
def keys(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A section or key, such as train or train.epochs; all by default.", autocompletion=_complete_keys
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the keys with the values that they take, their defaults and what they do.

    Examples:
        captune config keys
        captune config keys train.lora
        captune config keys train.epochs --json
    """
    from captune.common import did_you_mean
    from captune.config import configuration_keys

    known = configuration_keys()
    shown = [key for key in known if name is None or key.name == name or key.name.startswith(f"{name}.")]
    if not shown:
        names = [key.name for key in known]
        sections = {key.rpartition(".")[0] for key in names} - {""}
        hint = did_you_mean(str(name), [*names, *sections], "captune config keys lists all.")
        raise InputError(f"There is no section or key '{name}'; {hint}")
    if as_json:
        print_summary({"keys": [asdict(key) for key in shown]})
        return
    width = min(shutil.get_terminal_size().columns, 100)
    print("\n".join(line for key in shown for line in _lines(key, width)))


def _lines(key: ConfigKey, width: int) -> list[str]:
    """A key with its default, then its values and help."""
    text = f"{key.help} Takes: {key.values}."
    indent = "    "
    wrapped = textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return [f"{key.name}: {key.default}", *wrapped]


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="YAML configuration, or the folder of a run.")],
    overrides: Overrides = None,
    changed: Annotated[bool, typer.Option("--changed", help="Show only keys that differ from the default.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the complete configuration of a file: its keys, overrides and all defaults, checked.

    Examples:
        captune config show photos.yaml
        captune config show photos.yaml train.epochs=5 --changed
        captune config show runs/photos --json
    """
    from captune.cli.evaluate import run_settings
    from captune.config import commented_yaml

    settings = run_settings(file, overrides or [])
    if as_json:
        print_summary(json.loads(settings.model_dump_json()))
    elif changed:
        print("\n".join(f"{name}={_inline(value)}" for name, value in _changed(settings).items()))
    else:
        print(commented_yaml(settings), end="")


def _inline(value: object) -> str:
    """A value as an override on the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _changed(settings: RunConfig) -> dict[str, object]:
    """The keys whose values differ from the defaults."""
    from captune.config import RunConfig

    default = _flat(RunConfig().model_dump(mode="json"))
    values = _flat(settings.model_dump(mode="json"))
    return {name: value for name, value in values.items() if name not in default or default[name] != value}


def _flat(section: dict[str, object], prefix: str = "") -> dict[str, object]:
    """The values of nested sections by their complete names."""
    values: dict[str, object] = {}
    for key, value in section.items():
        values |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


@app.command("schema")
def schema(
    out: Annotated[
        Path | None, typer.Option(help="File to write, instead of standard output.", show_default=False)
    ] = None,
) -> None:
    """Write the JSON Schema of configurations, by which editors check and complete a YAML file.

    Editors with the YAML language server (VS Code, Neovim, Emacs, ...) use it for a file that begins with the line
    "# yaml-language-server: $schema=captune.schema.json".

    Examples:
        captune config schema
        captune config schema --out .vscode/captune.schema.json
    """
    from captune.config import configuration_schema

    text = json.dumps(configuration_schema(), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return
    from captune.data import check_output, output_file

    check_output(out, command="config schema", reads=[])
    with output_file(out, "w", command="config schema") as stream:
        stream.write(text)
