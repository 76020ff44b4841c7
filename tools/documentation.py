"""Hooks of mkdocs: pages that are generated from the code, and links to files outside of docs/.

mkdocs.yml names this file; `make docs` runs it. The generated pages exist in the site only: `commands.md` is made of
the commands and their help, `api/*.md` of the public names of the packages in `PACKAGES`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File

from captune.cli import app
from captune.common import escape_pipes

__all__ = ["PACKAGES", "api_page", "command_page", "on_files", "on_page_markdown", "on_post_page"]

PACKAGES = (
    "captune",
    "captune.metrics",
    "captune.data",
    "captune.captioner",
    "captune.decoding",
    "captune.evaluation",
    "captune.integrations",
    "captune.config",
    "captune.events",
    "captune.errors",
)
"""Packages and modules with a page of the API reference."""
_BOOSTS = {"glossary.md": 8, "troubleshooting.md": 4, "tutorial.md": 2, "commands.md": 0.1, "api": 0.001}
"""Weights in the search, by page or folder: the many names of a reference would precede what explains a term."""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    pages = {"commands.md": command_page(), **{f"api/{name}.md": api_page(name) for name in PACKAGES}}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Name linked pages by their titles, make links out of docs/ absolute, and weight the page in the search."""
    folder, _, name = page.file.src_uri.rpartition("/")
    page.meta["search"] = {"boost": _BOOSTS.get(folder or name, 1)}
    depth = page.file.src_uri.count("/") + 1
    markdown = re.sub(
        r"\[(\w[\w-]*\.md)\]\((\1(?:#[^)]*)?)\)", lambda match: f"[{_title(config, match)}]({match[2]})", markdown
    )
    outside = rf"\]\((?:\.\./){{{depth}}}(?!\.\.)([^)]+)\)"
    return re.sub(outside, rf"]({config.extra['repository']}/blob/main/\1)", markdown)


def _title(config: Any, match: re.Match[str]) -> str:
    """The heading of a linked page: a reader of the site knows pages by their titles and not by their files."""
    first, _, _ = (Path(config["docs_dir"]) / match[1]).read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("# ")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Set the language of Chinese pages, for screen readers, fonts and line breaks."""
    return output.replace('<html lang="en"', '<html lang="zh"', 1) if page.file.src_uri.startswith("zh/") else output


def command_page() -> str:
    """The reference of all commands: description, arguments, options, examples.

    Returns:
        Markdown with one section per command.
    """
    lines = [
        "# Commands",
        "",
        "All commands with their arguments and options, as `captune COMMAND -h` prints them. "
        "[Command line](command-line.md) describes conventions and the options that all commands share.",
        "",
    ]
    for path, command, ctx in _commands():
        lines += [f"## captune {path}", "", _code_spans(command.help or ""), ""]
        records: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in command.get_params(ctx):
            record = parameter.get_help_record(ctx)
            panel = getattr(parameter, "rich_help_panel", None)
            if record is None or panel == "Output" or "--help" in parameter.opts:
                continue
            title = "Arguments" if parameter.param_type_name == "argument" else panel or "Options"
            records.setdefault(title, []).append(record)
        for title, rows in records.items():
            if rows:
                lines += [f"| {title.lower()} | |", "|---|---|"]
                # mkdocs shows a backslash before a bar in a code span.
                lines += [f"| `{name}` | {escape_pipes([_code_spans(text)])[0]} |" for name, text in rows]
                lines.append("")
        if command.examples:
            lines += ["```console", *command.examples, "```", ""]
    return "\n".join(lines)


def _commands() -> Iterator[tuple[str, Any, Any]]:
    """Path, command and context of every command that is no group."""
    program: Any = typer.main.get_command(app)
    pending = [("", program, program.context_class(program, info_name="captune"))]
    while pending:
        path, command, ctx = pending.pop(0)
        if not hasattr(command, "commands"):
            yield path, command, ctx
            continue
        children = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        pending[:0] = [
            (f"{path} {name}".strip(), child, child.context_class(child, info_name=name, parent=ctx))
            for name, child in children
            if not child.hidden
        ]


def _code_spans(text: str) -> str:
    """Escape what Markdown and HTML would read in the help: `<`, `*` and `_`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", part) for part in parts)


def api_page(name: str) -> str:
    """The reference of one package: every public name.

    Args:
        name: of the package, such as `captune.metrics`.

    Returns:
        Markdown with one mkdocstrings directive per name of `__all__`.
    """
    module = import_module(name)
    description = (module.__doc__ or "").strip().partition("\n\n")[0]
    directives, values = [], []
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            directives.append(
                f"::: {value.__module__}.{value.__qualname__}\n"
            )  # lazy names resolve where they are defined
        elif not public.startswith("__"):
            values.append(f"`{public}`")
    lines = [f"# {name}", "", _code_spans(description), "", *directives]
    return "\n".join([*lines, *(["## Constants and types", "", ", ".join(values), ""] if values else [])])
