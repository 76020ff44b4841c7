"""The command line: one module per command, with heavy imports inside the command.

Data goes to stdout or `--out`, progress and messages to stderr. Exit code 0 = done, 1 = captune or the
machine failed, 2 = the input is wrong.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from captune.cli.commands import CommandGroup
from captune.cli.output import print_error, settings, silence_libraries
from captune.common import shorten
from captune.errors import CaptuneError

__all__ = ["app", "main", "run", "run_program"]

app = CommandGroup("captune", completion=True)


def _show_version(requested: bool) -> None:
    if requested:
        from captune import __version__

        typer.echo(f"captune {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Instruction-tune vision-language captioners, and measure whether they improved.

    Data goes to stdout or --out, messages and progress to stderr. Exit code 0 is success, 1 an error of captune or the
    machine, 2 wrong input, 130 Ctrl-C.

    Examples:
        captune demo
        captune init photos
        captune train photos.yaml
        captune score --references test.jsonl --predictions captions.json
    """


WRONG_PATHS = {
    errno.EEXIST: "is a file, and a folder is needed there",
    errno.ENOTDIR: "is below a file, and a folder is needed there",
    errno.EISDIR: "is a folder, and a file is needed there",
    errno.ENAMETOOLONG: "is too long for a file name",
    errno.ENOENT: "does not exist and cannot be created",
    errno.EPERM: "cannot be created or changed: permission denied",
    errno.ELOOP: "is a symbolic link to itself",
}
"""Descriptions of paths that the system refuses, by error number."""
LONGEST_SHOWN = 120
"""Characters of a path in a message."""


def run(command: Callable[[], Any]) -> int:
    """Call `command` and turn what it raises into one sentence on stderr and an exit code.

    Args:
        command: the work; an integer that it returns is the exit code.

    Returns:
        0 when done, 1 when captune or the machine failed, 2 when the input is wrong, 130 after Ctrl-C.
    """
    # Pillow warns about EXIF data, palettes and sizes; captune reports faulty images by name.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        result = command()
    except CaptuneError as error:
        print_error(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        resumes = "; the same command resumes" if settings.resumes else ""
        print_error(f"Stopped by Ctrl-C; what was finished is kept{resumes}.")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except MemoryError:
        print_error("the machine ran out of memory; use a smaller batch or fewer images.")
        return 1
    except RecursionError:
        print_error("a file is nested too deeply to be read; look at the JSON or YAML input.")
        return 2
    except OSError as error:
        if error.errno in WRONG_PATHS and error.filename:
            shown = shorten(str(error.filename), LONGEST_SHOWN, "...")
            print_error(f"{shown} {WRONG_PATHS[error.errno]}; give another path.")
            return 2
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        print_error(f"{error.strerror}{where}; no incomplete file has a final name.")
        return 1
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the `captune` program."""
    run_program(lambda: call(app))


def run_program(command: Callable[[], Any]) -> NoReturn:
    """Run `command` as the program: libraries are silent, the exit code is that of `run`."""
    silence_libraries()
    sys.exit(run(command))


def call(program: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and call the command they name.

    Args:
        program: the commands.
        arguments: by default those of this process.

    Returns:
        The exit code; 2 for wrong arguments, which are reported on stderr.
    """
    settings.reset()
    try:
        name = "captune" if program is app else None
        result = program(args=arguments, prog_name=name, standalone_mode=False)
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # called without a command, the message is the help itself
            print(message, file=sys.stderr)
        else:
            print_error(_other_command(arguments or sys.argv[1:]) or _usage_error(error))
        return error.exit_code
    if result == 128 + signal.SIGINT:
        # typer turns Ctrl-C into this exit code without a message.
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _other_command(arguments: Sequence[str]) -> str:
    """One sentence on wrong arguments that another command takes; empty if there is no such command."""
    command, *words = arguments or [""]
    if command == "compare" and len(words) > 1 and all(os.path.isdir(word) for word in words):
        other = ["runs", "compare"] if len(words) == 2 else ["report"]
        return (
            "captune compare takes files of captions as --predictions; to compare runs, use: "
            f"{shlex.join(['captune', *other, *words])}"
        )
    if command == "caption" and len(words) == 1 and os.path.exists(words[0]):
        return (
            "captune caption takes a model and images; give both, such as: "
            f"{shlex.join(['captune', 'caption', 'runs/photos', *words])}"
        )
    return ""


def _usage_error(error: TyperException) -> str:
    """One sentence on arguments that cannot be parsed, and the help to read."""
    message = error.format_message()
    if (known := getattr(error, "possibilities", None)) is not None:
        # An unknown option: typer also lists options that only share a few letters with it.
        message = str(getattr(error, "message", message))
        close = get_close_matches(str(getattr(error, "option_name", "")), known, n=1, cutoff=0.75)
        message = f"{message.rstrip('.')}; did you mean {close[0]}?" if close else message
    sentence = " ".join(message.removeprefix("Invalid value: ").split())
    context = getattr(error, "ctx", None)
    path = "captune" if context is None else context.command_path
    return f"{sentence if sentence.endswith(('.', '?')) else sentence + '.'} See {path} --help."


# The modules import nothing heavy until their command is called.
from captune.cli import (  # noqa: E402
    caption,
    check,
    compare,
    config,
    convert,
    demo,
    evaluate,
    explain,
    export,
    features,
    fetch,
    init,
    meta,
    plan,
    prepare,
    push,
    rate,
    report,
    review,
    runs,
    score,
    serve,
    train,
)

PANELS = {
    "Data": (init, prepare, check),
    "Train": (demo, plan, explain, features, train, runs, config),
    "Measure": (evaluate, report, score, compare, meta),
    "Use": (caption, serve, export, push, convert, fetch),
    "People": (rate, review),
}
"""Modules of the commands by panel of `captune --help`, in its order."""

for panel, modules in PANELS.items():
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(getattr(module, name))
