"""Names of the files in the folder of a run."""

from __future__ import annotations

import os
import re

__all__ = ["CONFIG", "IGNORED", "RUN_FILES", "UNTOUCHED", "file_size", "folder_size"]

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
