"""The line with the next command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from captune.cli.output import print_message, settings

__all__ = ["show_next"]


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
    if settings.as_json:
        return
    words = ["captune", *(os.fspath(word) for word in command)]
    purpose = f", to {reason}" if reason else ""
    print_message(f"Next{purpose}: {shlex.join(words)}")
