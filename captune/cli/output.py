"""What a command prints besides its data: messages, errors and log, as `--quiet`, `--verbose` and the like request."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

__all__ = [
    "PROGRESS_SECONDS",
    "OutputOptions",
    "OutputSettings",
    "log_line",
    "print_error",
    "print_message",
    "print_summary",
    "settings",
    "silence_libraries",
]

PROGRESS_SECONDS = 30.0
"""Seconds between two lines of progress where stderr is not a terminal."""

_LIBRARY_SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment that libraries read at their import, also those of worker processes."""

_VERBOSE_SETTINGS = {
    "HF_HUB_VERBOSITY": "warning",
    "PYTHONWARNINGS": "default",
    "TORCH_CPP_LOG_LEVEL": "WARNING",
    "TRANSFORMERS_VERBOSITY": "warning",
}
"""The same under `--verbose`."""

_LOGGERS_WITH_HANDLERS = ("torch.utils._pytree",)
"""Loggers that write to the screen past the root logger."""


_SENTENCE_STARTS = {"a", "all", "an", "each", "no", "one", "only", "several", "stopped", "that", "the", "there", "this"}
"""Words that begin a sentence with a capital letter; others may be names of files, keys or images."""


@dataclass
class OutputSettings:
    """What the running command prints; set from the options of the command line before the command starts.

    Attributes:
        quiet: print errors only, besides the command's data.
        verbose: also print debug messages and the warnings of libraries.
        as_json: the command prints one JSON object on stdout, for a program.
        resumes: the same command resumes after an interruption; a command sets it once that is so.
        progress_seconds: seconds between two lines of progress where stderr is not a terminal.
        log: receives a copy of all messages, with times.
    """

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False
    resumes: bool = False
    progress_seconds: float = PROGRESS_SECONDS
    log: logging.FileHandler | None = field(default=None, repr=False)

    def reset(self) -> None:
        """Restore the defaults, before a command line is parsed."""
        if self.log is not None:
            logging.getLogger().removeHandler(self.log)
            self.log.close()
        self.__init__()  # type: ignore[misc]


settings = OutputSettings()
"""Of this process."""


@dataclass(frozen=True)
class OutputOptions:
    """The options that every command has; they may also precede its name."""

    PANEL: ClassVar[str] = "Output"

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, besides the command's data.")] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print debug messages and the warnings of libraries.")
    ] = False
    no_color: Annotated[
        bool, typer.Option("--no-color", help="Print without colors, as NO_COLOR=1 in the environment does.")
    ] = False
    progress_every: Annotated[
        float | None,
        typer.Option(
            help="Interval of progress lines in a log file or pipe.",
            metavar="SECONDS",
            min=0,
            envvar="CAPTUNE_PROGRESS_EVERY",
            show_default="30",
        ),
    ] = None
    log_file: Annotated[
        Path | None,
        typer.Option(help="Also append all messages to this file, with times.", metavar="FILE", show_default=False),
    ] = None

    def apply(self) -> None:
        """Change the settings of this process; options that are not given change nothing."""
        settings.quiet |= self.quiet
        if self.progress_every is not None:
            settings.progress_seconds = self.progress_every
        if self.no_color:
            os.environ["NO_COLOR"] = "1"
        if self.verbose and not settings.verbose:
            settings.verbose = True
            _show_libraries()
        if self.log_file is not None and settings.log is None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            settings.log = logging.FileHandler(self.log_file, encoding="utf-8")
            settings.log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            settings.log.addFilter(_LibraryFilter())
            logging.getLogger().addHandler(settings.log)


class _LibraryFilter(logging.Filter):
    """Passes captune's messages and errors of any library; errors only under `--quiet`, all under `--verbose`."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR or settings.verbose:
            return True
        return not settings.quiet and record.name.partition(".")[0] == "captune"


def silence_libraries() -> None:
    """Silence warnings, logs and progress bars of libraries in this process and its children.

    Called at the start of a program, before heavy imports. captune's messages stay on the screen; `--verbose`,
    `python -W default -m captune ...` or PYTHONWARNINGS=default show the warnings of libraries again.
    """
    for name, value in _LIBRARY_SETTINGS.items():
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


def _show_libraries() -> None:
    """Undo `silence_libraries`, but for progress bars, and print captune's debug messages."""
    os.environ.update(_VERBOSE_SETTINGS)
    warnings.simplefilter("default")
    for name in _LOGGERS_WITH_HANDLERS:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger("captune").setLevel(logging.DEBUG)


def log_line(text: str, level: int = logging.INFO) -> None:
    """Append a message to the file of `--log-file` only."""
    if settings.log is not None:
        settings.log.emit(logging.LogRecord("captune", level, "", 0, "%s", (text,), None))


def print_message(text: object) -> None:
    """Print a message for a person on stderr; nothing under `--quiet`."""
    log_line(str(text))
    if not settings.quiet:
        # In a file that receives both streams, results stay before the messages that follow them.
        sys.stdout.flush()
        typer.echo(text, err=True)


def print_error(sentence: str) -> None:
    """Print an error on stderr, preceded by the program's name unless the sentence begins with it."""
    first, space, rest = sentence.partition(" ")
    if first in _SENTENCE_STARTS:
        sentence = f"{first.capitalize()}{space}{rest}"
    log_line(sentence, logging.ERROR)
    program = "" if sentence.startswith("captune ") else "captune: "
    print(f"{program}{sentence}", file=sys.stderr)


def print_summary(summary: dict[str, Any]) -> None:
    """Print the result of a command as one JSON object on one line of stdout.

    Args:
        summary: paths, numbers, texts, lists and dictionaries; numbers that JSON does not have become null.
    """
    from captune.parsing import nan_to_null

    text = json.dumps(nan_to_null(summary), ensure_ascii=False, allow_nan=False, default=os.fspath)
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    sys.stdout.flush()
