"""The command line: one small module a command, heavy imports inside the command.

Data goes to stdout or `--out`, progress and messages to stderr. Exit code 0 = done, 1 = captune or the
machine failed, 2 = the input is wrong.
"""

from __future__ import annotations

import errno
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from captune.cli.quiet import silence_libraries
from captune.common import shorten
from captune.errors import CaptuneError

__all__ = ["app", "main", "run", "run_program"]

app = typer.Typer(
    name="captune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        from captune import __version__

        typer.echo(f"captune {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Instruction-tune vision-language captioners, and know whether they got better."""


WRONG_PATHS = {
    errno.EEXIST: "is a file, and a folder is needed there",
    errno.ENOTDIR: "lies below a file, and a folder is needed there",
    errno.EISDIR: "is a folder, and a file is needed there",
    errno.ENAMETOOLONG: "is too long for a name of a file",
    errno.ENOENT: "is not there and cannot be made",
    errno.EPERM: "may not be made or changed",
    errno.ELOOP: "is a link that leads to itself",
}
"""What a path is that the system refuses, whatever is in it."""
LONGEST_SHOWN = 120
"""Characters of a path in a message."""


def run(command: Callable[[], Any]) -> int:
    """Call `command` and turn what it raises into one sentence on stderr and an exit code.

    Args:
        command: what to do; an integer that it returns is the exit code.

    Returns:
        0 when done, 1 when captune or the machine failed, 2 when the input is wrong, 130 after Ctrl-C.
    """
    # Pillow warns of EXIF data, palettes and sizes; what is wrong with a picture is said with its name.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        result = command()
    except CaptuneError as error:
        print(f"captune: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("captune: stopped by Ctrl-C; what was finished is kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except MemoryError:
        print("captune: the machine ran out of memory; use a smaller batch or fewer images.", file=sys.stderr)
        return 1
    except RecursionError:
        print(
            "captune: a file is nested too deeply to be read; look at the JSON or YAML that was given.", file=sys.stderr
        )
        return 2
    except OSError as error:
        if error.errno in WRONG_PATHS and error.filename:
            shown = shorten(str(error.filename), LONGEST_SHOWN, "...")
            print(f"captune: {shown} {WRONG_PATHS[error.errno]}; give another path.", file=sys.stderr)
            return 2
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        print(
            f"captune: {error.strerror}{where}; nothing half-written was left under a final name.",
            file=sys.stderr,
        )
        return 1
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the `captune` program."""
    run_program(lambda: call(app))


def run_program(command: Callable[[], Any]) -> NoReturn:
    """Run `command` as the whole program: libraries stay quiet, the exit code is that of `run`."""
    silence_libraries()
    sys.exit(run(command))


def call(program: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and call the command they name.

    Args:
        program: the commands.
        arguments: by default those of this process.

    Returns:
        The exit code; 2 when the arguments are wrong, which is said on stderr.
    """
    try:
        result = program(args=arguments, standalone_mode=False)
    except TyperException as error:
        message = error.format_message()
        # Called without a command, the message is the help itself.
        is_help = message.startswith("Usage:")
        sentence = message if message.endswith((".", "?")) else f"{message}."
        print(message if is_help else f"captune: {sentence} See captune --help.", file=sys.stderr)
        return error.exit_code
    if result == 128 + signal.SIGINT:
        # typer turns Ctrl-C into this exit code without a word.
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


# The modules import nothing heavy until their command is called. Their order is that of the help.
from captune.cli import (  # noqa: E402
    caption,
    check,
    compare,
    convert,
    demo,
    evaluate,
    explain,
    features,
    fetch,
    plan,
    prepare,
    rate,
    report,
    score,
    serve,
    train,
)

for command in (
    demo,
    prepare,
    check,
    explain,
    plan,
    features,
    train,
    evaluate,
    report,
    score,
    compare,
    caption,
    rate,
    serve,
    convert,
    fetch,
):
    command.register(app)
