"""Ids that are unique in the result of a job.

Keys of webdataset tars often start at 0 in each tar. Where an id is in several shards, all ids of the archives
concerned begin with the archive's name (`train-0/000017`); those of image files stay. The ids do not depend on which
archive was finished first.
"""

from __future__ import annotations

from pathlib import Path

from captune.bulk.job import Job
from captune.bulk.output import Row, read_rows
from captune.data.ids import SeenIds
from captune.errors import DataError

__all__ = ["make_ids_unique"]


def make_ids_unique(job: Job) -> list[str]:
    """Put the name of the archive before the ids that are in several finished shards.

    Args:
        job: whose shards are all done.

    Returns:
        Names of the archives whose ids begin with their name now and did not before.

    Raises:
        DataError: an id is in two shards even so.
    """
    files = job.files()
    if len(files) < 2 or not any(job.is_archive(path.stem) for path in files):
        return []
    shared = _sharing(job, files, written=False)
    prefixed = [path for path in files if path.stem in shared and job.is_archive(path.stem)]
    prefixed = [path for path in prefixed if not job.note(path)["prefixed"]]
    for path in prefixed:
        _prefix(job, path)
    if shared and (left := _sharing(job, files, written=True)):
        raise DataError(f"the same ids are in {' and '.join(sorted(left)[:3])} of '{job.folder}'; caption them apart.")
    return [path.stem for path in prefixed]


def _sharing(job: Job, files: list[Path], *, written: bool) -> set[str]:
    """Names of the shards that share an id, as it is written or as it is in the archive."""
    seen = SeenIds()
    found: set[str] = set()
    for number, path in enumerate(files):
        prefix = "" if written or not job.note(path)["prefixed"] else f"{path.stem}/"
        for row in read_rows(path):
            name = str(row["id"]).removeprefix(prefix)
            first = seen.line_of(name)
            if first is None:
                seen.add(name, number)
            elif first != number:
                found |= {files[first].stem, path.stem}
    return found


def _prefix(job: Job, path: Path) -> None:
    note = job.note(path)
    quarantine = job.folder / "quarantine" / f"{path.stem}.jsonl"
    rejected: list[Row] = []
    if note["rejected"]:
        rejected = list(read_rows(quarantine))
        if not job.note(quarantine)["prefixed"]:
            rejected = _prefixed(path.stem, rejected)
    job.write(path.stem, _prefixed(path.stem, list(read_rows(path))), rejected, note["files"], prefixed=True)


def _prefixed(name: str, rows: list[Row]) -> list[Row]:
    return [{**row, "id": f"{name}/{row['id']}"} for row in rows]
