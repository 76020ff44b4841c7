"""What a command prints besides its data: settings of `--quiet` and `--json`, and the line with the next command."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["OutputSettings", "settings", "show_next"]


@dataclass
class OutputSettings:
    """What the running command prints; the command line sets it before the command starts.

    Attributes:
        quiet: print errors only, besides the command's data.
        as_json: the command prints one JSON object on stdout.
    """

    quiet: bool = False
    as_json: bool = False


settings = OutputSettings()
"""Of this process."""


def show_next(command: Sequence[str | os.PathLike[str]], reason: str = "") -> None:
    """Print the command to run next as one line on stderr, quoted for a shell.

    Nothing is printed under `--quiet` and with `--json`. The line is for the end of a command that succeeded:

        show_next(["train", "my photos.yaml"])                  Next: captune train 'my photos.yaml'
        show_next(["check", "m.jsonl"], "look at the captions") Next, to look at the captions: captune check m.jsonl

    Args:
        command: arguments of `captune`, each unquoted; paths as the user wrote them, so that the line works in the
            same working directory.
        reason: purpose of the command, as it reads after "to".
    """
    if settings.quiet or settings.as_json:
        return
    words = ["captune", *(os.fspath(word) for word in command)]
    purpose = f", to {reason}" if reason else ""
    print(f"Next{purpose}: {shlex.join(words)}", file=sys.stderr, flush=True)
