"""Write the reference of all configuration keys: python -m captune.config [--write docs/configuration.md]."""

from __future__ import annotations

import argparse
from pathlib import Path

from captune.config import configuration_reference

__all__: list[str] = []

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m captune.config", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write to a file instead of standard output")
    target = parser.parse_args().write
    if target is None:
        print(configuration_reference(), end="")
    else:
        target.write_text(configuration_reference(), encoding="utf-8")
