"""Deletion of a run: the files that it wrote, and nothing else.

Names alone decide: a file that a person added stays, and its folders with it. Features, earlier runs and judgements of
people are kept. The configuration is deleted last, so that an interrupted deletion can be repeated.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from captune.data import RECORDS, folder_lock, is_lock_file
from captune.run_folders.files import CONFIG, IGNORED, RUN_FILES, file_size
from captune.run_folders.listing import require_run

__all__ = ["Deletion", "delete_run", "plan_deletion"]

LOCK_NAME = "captune runs delete"
_KEPT = ("rating", "rating.json")
"""Files of a run that contain judgements of people."""
_EPOCH = (
    r"checkpoint\.json|trained\.safetensors|adapter_model\.safetensors|adapter_config\.json|README\.md|\..*\.partial"
)
_PICTURES = r"thumbnails/([^/]+\.jpg|images\.json)"
_INNER = re.compile(
    rf"checkpoints/best|checkpoints/(epoch-\d+|best)/({_EPOCH})"
    rf"|captions/[^/]+\.json|resume/step-\d+/state\.(json|safetensors)|{_PICTURES}"
    r"|cache/captions/[^/]+\.jsonl|tensorboard/(.*/)?events\.out\.tfevents\.[^/]*"
    rf"|evaluations/[^/]+/((captions/[^/]+|scores|quarantine)\.json|{_PICTURES}|table\.(md|csv|tex)|analysis\.md"
    r"|metrics\.(png|svg|pdf)|report\.html|comparison\.md|matrix\.(json|csv|md|png|svg|pdf)|cache/captions/[^/]+\.jsonl"
    r"|\.captune[^/]*|\.captune/.*)"
)
"""Files in the folders of a run, relative to it."""


@dataclass(frozen=True)
class Deletion:
    """What the deletion of a run removes.

    Attributes:
        run: folder of the run.
        files: that are deleted, the configuration last.
        kept: names of what stays in its folder: features, earlier runs, judgements, files of others.
        size: bytes of `files`.
    """

    run: Path
    files: tuple[Path, ...]
    kept: tuple[str, ...]
    size: int


def plan_deletion(run: Path) -> Deletion:
    """The files of a run that `delete_run` removes.

    Raises:
        InputError: the folder is not that of a run.
    """
    run = Path(os.path.realpath(require_run(run)))
    files: list[Path] = []
    kept: dict[str, None] = {}
    for path in _walk(run):
        relative = path.relative_to(run).as_posix()
        if is_lock_file(path.name):
            continue
        if _is_written(path, relative):
            files.append(path)
        else:
            kept[_shown(relative)] = None
    files.sort(key=lambda path: path == run / CONFIG)
    return Deletion(run, tuple(files), tuple(kept), sum(map(file_size, files)))


def _walk(folder: Path) -> Iterator[Path]:
    """All files and links below a folder; links are not followed."""
    for parent, folders, names in os.walk(folder, followlinks=False):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = sorted(name for name in folders if name not in links)
        yield from (Path(parent, name) for name in sorted([*names, *links]))


def _is_written(path: Path, relative: str) -> bool:
    """Whether a run wrote a file; links to files of others did not come from it, except for `checkpoints/best`."""
    if path.is_symlink():
        return relative == "checkpoints/best"
    top, _, inner = relative.partition("/")
    if not inner:
        is_temporary = IGNORED.fullmatch(top) is not None and top.endswith(".partial")
        return is_temporary or (RUN_FILES.fullmatch(top) is not None and top not in _KEPT)
    return top == RECORDS or _INNER.fullmatch(relative) is not None


def _shown(relative: str) -> str:
    """The name of a kept file: its folder, if all of that is kept."""
    top = relative.partition("/")[0]
    return f"{top}/" if top != relative and (top in _KEPT or not RUN_FILES.fullmatch(top)) else relative


def delete_run(run: Path) -> Deletion:
    """Delete the files that a run wrote, and its folder if nothing else is in it.

    Args:
        run: its folder.

    Returns:
        What was deleted.

    Raises:
        InputError: it is not the folder of a run, or a process writes there.
        OSError: a file cannot be deleted; the configuration then remains.
    """
    root = Path(os.path.realpath(require_run(run)))
    with folder_lock(root, LOCK_NAME):
        deletion = plan_deletion(root)
        for path in deletion.files:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    # Only folders that the run wrote into; empty ones of others stay.
    folders = {parent for path in deletion.files for parent in path.parents if parent.is_relative_to(root)}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        _remove_if_empty(folder)
    return deletion


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that contains nothing, or lock files only."""
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
        if all(map(is_lock_file, names)):
            for name in names:
                (folder / name).unlink()
            folder.rmdir()
