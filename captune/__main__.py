"""`python -m captune` is the `captune` program."""

from __future__ import annotations

from captune.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
