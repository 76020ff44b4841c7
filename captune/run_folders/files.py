"""Files in the folder of a run: their names, their sizes, and the events of the log."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from captune.events import Event
from captune.parsing import load_json

__all__ = ["CONFIG", "IGNORED", "RUN_FILES", "UNTOUCHED", "file_size", "first_event", "folder_size", "last_event"]

CONFIG = "config.yaml"
UNTOUCHED = re.compile(r"features|cache|replaced-\d+")
"""What a new run leaves as it is: stores that find their content by its hash, and earlier runs."""
IGNORED = re.compile(r"\..*\.(partial|tmp|old)|\.nfs.*|\.DS_Store|Thumbs\.db|desktop\.ini|lost\+found")
"""Files of killed writers and of the system; never in the way, and never removed."""
RUN_FILES = re.compile(
    r"config\.yaml|paths\.json|prompt\.json|images\.json|computation\.json|checkpoints|captions|resume|log\.jsonl"
    r"|scores\.json|quarantine\.json|tensorboard|thumbnails"
    r"|evaluations|rating|rating\.json|table\.(md|csv|tex)|metrics\.(png|svg|pdf)|analysis\.md|report\.html"
    r"|comparison\.md|matrix\.(json|csv|md|png|svg|pdf)"
)
"""Names under which a run, its evaluations, its reports and its study write."""


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file or link; 0 if it has disappeared."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def folder_size(folder: str | os.PathLike[str]) -> int:
    """Bytes of all files below a folder; links are not followed."""
    return sum(
        file_size(os.path.join(parent, name))
        for parent, _, names in os.walk(folder, followlinks=False)
        for name in names
    )


def first_event(log: Path, name: str) -> Event:
    """The first event of this name in a log; empty if there is none."""
    return next(_events(log, (name,)), {})


def last_event(log: Path, names: Sequence[str]) -> Event:
    """The last event with one of these names in a log; empty if there is none."""
    events = list(_events(log, names))
    return events[-1] if events else {}


def _events(log: Path, names: Sequence[str]) -> Iterator[Event]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    for line in lines:
        with contextlib.suppress(ValueError, AttributeError):
            entry: Event = load_json(line)
            if entry.get("event") in names:
                yield entry
