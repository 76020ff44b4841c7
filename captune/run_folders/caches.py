"""Caches of runs: stored features, generated captions, and fingerprints of images.

All are found by hashes of their content, so that a cache that was emptied is computed again when it is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from captune.config import load_stored_config
from captune.data import folder_in_use, folder_lock
from captune.data.leaks import default_store
from captune.errors import ConfigError, InputError
from captune.parsing import load_json
from captune.run_checkpoints import is_run
from captune.run_folders.files import file_size

__all__ = ["Cache", "empty_caches", "find_caches", "record_user"]

Kind = Literal["features", "captions", "fingerprints"]
LOCK_NAME = "captune runs caches"
_FEATURES = "features"
_USERS = ".captune-runs"
"""File in the folder of a feature store that lists the runs which use it."""
_STORE = re.compile(r"[0-9a-f]{8,64}")
_PARTS = {
    "features": re.compile(r"header\.json|shard-[^/]*\.safetensors|contents\.sqlite(-wal|-shm|-journal)?"),
    "captions": re.compile(r"[^/]+\.jsonl"),
    "fingerprints": re.compile(r"fingerprints-\d+\.sqlite(-wal|-shm|-journal)?"),
}
"""Files of each kind."""


@dataclass(frozen=True)
class Cache:
    """One cache.

    Attributes:
        kind: of its content.
        folder: of its files.
        content: description of what it holds.
        size: bytes on disk.
        runs: that use it: those that were searched, and others that were trained with it; every run uses the
            fingerprints.
    """

    kind: Kind
    folder: Path
    content: str
    size: int
    runs: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """The cache as JSON values."""
        return {**asdict(self), "folder": str(self.folder), "runs": [str(run) for run in self.runs]}

    def files(self) -> list[Path]:
        """Its files; links and files of others are not among them."""
        return [path for path in _entries(self.folder) if _PARTS[self.kind].fullmatch(path.name) and _is_file(path)]


def find_caches(runs: Sequence[Path]) -> list[Cache]:
    """The caches that runs use, and the fingerprints of this user.

    Args:
        runs: folders of runs.
    """
    users: dict[Path, list[Path]] = {}
    for run in runs:
        for root in _feature_roots(run):
            users.setdefault(Path(os.path.realpath(root)), []).append(run)
    for root, names in users.items():
        known = {os.path.realpath(run) for run in names}
        names += [run for run in _recorded_users(root) if os.path.realpath(run) not in known and is_run(run)]
    caches = [cache for root, names in users.items() for cache in _feature_caches(root, tuple(names))]
    for run in runs:
        folders = [run / "cache" / "captions", *sorted(run.glob("evaluations/*/cache/captions"))]
        caches += [_measured("captions", folder, _caption_content(folder), (run,)) for folder in folders]
    caches.append(_measured("fingerprints", default_store().parent, "hashes that find equal images", tuple(runs)))
    return [cache for cache in caches if cache.size]


def record_user(root: Path, run: Path) -> None:
    """Add a run to the list of the runs that use a feature store, which `find_caches` reads.

    Args:
        root: folder of the store. A read-only one keeps no list.
        run: folder of the run.
    """
    if run.absolute() not in _recorded_users(root):
        with contextlib.suppress(OSError), (root / _USERS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(str(run.absolute())) + "\n")


def _recorded_users(root: Path) -> list[Path]:
    users = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (root / _USERS).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError):  # a line that another process is writing
                users.append(Path(load_json(line)))
    return users


def _measured(kind: Kind, folder: Path, content: str, runs: tuple[Path, ...]) -> Cache:
    files = Cache(kind, folder, content, 0, runs).files()
    return Cache(kind, folder, content, sum(map(file_size, files)), runs)


def _feature_roots(run: Path) -> list[Path]:
    """The folders in which a run may have stored features."""
    roots = [run / _FEATURES]
    try:
        data = load_stored_config(run).data
    except ConfigError:
        return roots
    return [*roots, data.features if data.features is not None else data.train.parent / _FEATURES]


def _feature_caches(root: Path, runs: tuple[Path, ...]) -> list[Cache]:
    stores = [
        path for path in _entries(root) if _STORE.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    caches = [_measured("features", store, _feature_content(store), runs) for store in stores]
    return [*caches, _measured("features", root, "hashes of image files", runs)]


def _feature_content(store: Path) -> str:
    """What a feature store was computed with, from its header."""
    shards = len(list(store.glob("shard-*.safetensors")))
    try:
        header = load_json((store / "header.json").read_text(encoding="utf-8"))
        parts = [f"{name} {header[name]}" for name in ("tokens", "width", "dtype") if name in header]
    except (OSError, ValueError, TypeError):
        parts = []
    return ", ".join([f"{shards} {'shard' if shards == 1 else 'shards'}", *parts])


def _caption_content(folder: Path) -> str:
    files = [path for path in _entries(folder) if _PARTS["captions"].fullmatch(path.name)]
    count = sum(max(0, _lines(path) - 1) for path in files)
    return f"{count:,} captions of {len(files)} {'checkpoint' if len(files) == 1 else 'checkpoints'}"


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as stream:
            return sum(1 for _ in stream)
    except OSError:
        return 0


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def empty_caches(caches: Iterable[Cache]) -> int:
    """Delete the files of caches; what is not in a cache is kept.

    Args:
        caches: of `find_caches`.

    Returns:
        Bytes that were freed.

    Raises:
        InputError: a run that uses one is running, or a process writes there; nothing is deleted.
    """
    caches = list(caches)
    for run in dict.fromkeys(run for cache in caches for run in cache.runs):
        if (writer := folder_in_use(run)) is not None:
            raise InputError(f"The caches of {run} are in use: {writer} is running there; wait until it ends.")
    for cache in caches:
        if folder_in_use(cache.folder) is not None or (cache.kind == "fingerprints" and _is_open(cache)):
            raise InputError(f"{cache.folder} is in use: a process writes there; wait until it ends.")
    freed = 0
    for cache in caches:
        with folder_lock(cache.folder, LOCK_NAME):
            for path in cache.files():
                size = file_size(path)
                path.unlink(missing_ok=True)
                freed += size
    return freed


def _is_open(cache: Cache) -> bool:
    """Whether another process writes into a database."""
    for path in cache.files():
        if path.suffix != ".sqlite":
            continue
        with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(sqlite3.connect(path, timeout=0)) as opened:
            try:
                opened.execute("BEGIN EXCLUSIVE")
                opened.rollback()
            except sqlite3.OperationalError as error:
                if "locked" in str(error):
                    return True
    return False
