"""The command line: one module per command, with heavy imports inside the command.

Data goes to stdout or `--out`, progress and messages to stderr. Exit code 0 = done, 1 = captune or the
machine failed, 2 = the input is wrong.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from captune.cli.next_command import settings
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
    """Instruction-tune vision-language captioners, and measure whether they improved."""


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


_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Read by libraries at their import, also by those of worker processes."""

_LOGGERS_WITH_HANDLERS = ("torch.utils._pytree",)
"""Loggers that write to the screen past the root logger."""


class _LibraryFilter(logging.Filter):
    """Lets captune's messages through, and errors of any library."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] == "captune" or record.levelno >= logging.ERROR


def silence_libraries() -> None:
    """Silence warnings, logs and progress bars of libraries in this process and its children.

    Called at the start of a program, before heavy imports. captune's messages stay on the screen; `python -W default -m
    captune ...` or PYTHONWARNINGS=default shows the warnings of libraries again.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        os.environ["PYTHONWARNINGS"] = "ignore"  # of child processes; here warnings become log records
        logging.captureWarnings(True)
    for name in _LOGGERS_WITH_HANDLERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    root = logging.getLogger()
    if not any(isinstance(item, _LibraryFilter) for handler in root.handlers for item in handler.filters):
        handler = logging.StreamHandler()
        handler.addFilter(_LibraryFilter())
        root.addHandler(handler)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()


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
        print("captune: a file is nested too deeply to be read; look at the JSON or YAML input.", file=sys.stderr)
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
            f"captune: {error.strerror}{where}; no incomplete file has a final name.",
            file=sys.stderr,
        )
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
        # typer turns Ctrl-C into this exit code without a message.
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


class Command(TyperCommand):
    """A command whose option `--json` also silences what is printed for people."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command with the output that its options request."""
        settings.as_json = bool(ctx.params.get("as_json"))
        return super().invoke(ctx)


# The modules import nothing heavy until their command is called. Their order is that of the help.
from captune.cli import (  # noqa: E402
    caption,
    check,
    compare,
    convert,
    demo,
    evaluate,
    explain,
    export,
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

for module in (
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
    export,
    fetch,
):
    name = module.__name__.rpartition(".")[2]
    if module is prepare:
        app.add_typer(prepare.app, name=name)
    else:
        app.command(name, cls=Command)(getattr(module, name))
