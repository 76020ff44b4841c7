"""The `captune` program, also as `python -m captune`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the program; Ctrl-C while the command line is imported is one line and exit code 130."""
    try:
        from captune.cli import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        print("captune: Stopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
