"""A captioning job: what it is, which shards it has, which of them are done, and ids that are unique in its result.

    out/job.json                       which model, prompt and decoding, and the lists of images it was given so far
    out/images-00000.jsonl             captions of a shard; when it exists, the shard is done
    out/quarantine/images-00000.jsonl  its images that could not be captioned, and why; written just before
    out/quarantine.jsonl               all of these in one file, written at the end of a run
    out/.captune/                      hashes of these files, and of the images and archives that they were made of

The files alone show whether a shard is done, so any number of workers, on any machines that share the folder, may be
killed and started again. A file that captune did not write, or that has changed since, does not pass for a finished
shard, and neither do captions of other images under the same names: the job is refused and nothing is replaced. When
the list of images has grown since, images that have a caption are left out and the rest is cut into new shards.

Keys of webdataset tars often start at 0 in each tar. Where an id is in several shards, all ids of these archives begin
with the archive's name (`train-0/000017`); those of image files do not change. The ids do not depend on which archive
was finished first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captune.bulk.caption_template import PLAIN
from captune.bulk.output import COMMAND, Row, as_text, read_rows, write_rows
from captune.bulk.shards import FileState, PathShard, Shard, is_changed
from captune.bulk.sources import Inputs
from captune.data import SeenIds, atomic_file, has_record, output_note
from captune.errors import ConfigError, DataError
from captune.parsing import load_json

__all__ = ["Job", "JobIdentity", "make_ids_unique"]

_FORMAT = 2
_LISTED = re.compile(r"images(?:-(\d+))?-\d{5,}")
"""Names of shards that were cut from a list, with the number of the list from the second on."""


@dataclass(frozen=True)
class JobIdentity:
    """What determines the captions of a job, apart from the images.

    Attributes:
        model: name of the captioner.
        fingerprint: of its weights.
        instruction: the prompt for every image.
        decoding: how captions are decoded.
        template: of the text that is written for a caption.
    """

    model: str
    fingerprint: str
    instruction: str | None
    decoding: str
    template: str = PLAIN


class Job:
    """A folder of captions that is filled shard by shard.

    Args:
        folder: of the output; made when it is not there.
        inputs: what is to be captioned.
        identity: what decides the captions.
        ending: format of the output files, `jsonl` or `parquet`.
        shard_size: images of a shard cut from a list.

    Attributes:
        shards: all shards of this run, done or not.
        skipped: images that were captioned in earlier runs with another list of images.

    Raises:
        ConfigError: the folder holds captions of another model, prompt or decoding.
        DataError: the folder holds something else under a name that the job needs, captions that were changed, or
            captions of other images under the same ids.
    """

    def __init__(
        self,
        folder: str | Path,
        inputs: Inputs,
        identity: JobIdentity,
        *,
        ending: str = "jsonl",
        shard_size: int = 1000,
    ) -> None:
        self.folder = folder = Path(folder)
        self._ending = ending
        self._done: set[str] = set()
        record = self._record(identity, shard_size)
        generation, self.skipped = 0, 0
        entries = list(inputs.paths.items())
        if entries:
            listed = hashlib.sha256("\0".join(inputs.paths).encode()).hexdigest()[:16]
            if not record["lists"] or record["lists"][-1] != listed:
                record["lists"].append(listed)
            generation = len(record["lists"]) - 1
            done = self._captioned_before(generation, inputs.paths)
            self.skipped = sum(name in done for name, _ in entries)
            entries = [entry for entry in entries if entry[0] not in done]
        prefix = "images" if generation == 0 else f"images-{generation}"
        self.shards: list[Shard] = [
            PathShard(f"{prefix}-{start // shard_size:05d}", tuple(entries[start : start + shard_size]))
            for start in range(0, len(entries), shard_size)
        ]
        self.shards += inputs.archives
        for shard in self.shards:
            self.is_done(shard)
        folder.mkdir(parents=True, exist_ok=True)
        if identity.template == PLAIN:
            del record["template"]
        with atomic_file(folder / "job.json") as stream:
            json.dump(record, stream, indent=2, ensure_ascii=False)
            stream.write("\n")

    def captions_of(self, shard: str) -> Path:
        """The output file of a shard, by its name."""
        return self.folder / f"{shard}.{self._ending}"

    def quarantine_of(self, shard: str) -> Path:
        """Where the images of a shard are listed that could not be captioned."""
        return self.folder / "quarantine" / f"{shard}.jsonl"

    def is_archive(self, shard: str) -> bool:
        """Whether a shard is a tar or a parquet file, and no part of a list of images."""
        return _LISTED.fullmatch(shard) is None

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard's captions are there, as captune wrote them and of the images that are there now.

        Raises:
            DataError: there is something else.
        """
        if shard.name in self._done:
            return True
        path, quarantine = self.captions_of(shard.name), self.quarantine_of(shard.name)
        if not path.exists():
            # A worker that was killed just before it wrote the captions has left a quarantine.
            if quarantine.exists():
                self.note(quarantine)
            return False
        note = self.note(path)
        self._refuse_changed(shard.files(), note["files"])
        if note["rejected"]:
            self.note(quarantine)
        self._done.add(shard.name)
        return True

    def open_shards(self, part: int = 0, parts: int = 1) -> list[Shard]:
        """The shards that are not done, of one of several workers.

        Args:
            part: which worker, from 0.
            parts: how many workers share the job.
        """
        return [shard for shard in self.shards[part::parts] if not self.is_done(shard)]

    def write(
        self,
        shard: str,
        captions: Sequence[Row],
        rejected: Sequence[Row],
        files: dict[str, FileState | None] | None = None,
        *,
        prefixed: bool = False,
    ) -> None:
        """Finish a shard: its quarantine first, so that a shard with captions is done for good.

        Args:
            shard: its name.
            captions: rows of captions.
            rejected: rows of images that could not be captioned.
            files: states of the shard's files, from before they were read.
            prefixed: whether ids begin with the name of the shard.
        """
        quarantine = self.quarantine_of(shard)
        if rejected:
            write_rows(quarantine, rejected, {"prefixed": prefixed})
        else:
            quarantine.unlink(missing_ok=True)
        note = {"files": files or {}, "rejected": len(rejected), "prefixed": prefixed}
        write_rows(self.captions_of(shard), captions, note)

    def gather_quarantine(self) -> int:
        """Combine the quarantines of all finished shards in `quarantine.jsonl`.

        Returns:
            How many images it holds; without any there is no such file.
        """
        rows = [row for shard in self.shards if self.is_done(shard) for row in self._quarantined(shard)]
        combined = self.folder / "quarantine.jsonl"
        if rows:
            write_rows(combined, rows)
        else:
            combined.unlink(missing_ok=True)
        return len(rows)

    def rows(self) -> Iterator[Row]:
        """All captions of the finished shards, in the order of the shards."""
        for shard in self.shards:
            if self.is_done(shard):
                yield from read_rows(self.captions_of(shard.name))

    def files(self) -> list[Path]:
        """The files of captions of all finished shards, those of earlier lists of images and other archives included.

        Files of others in the same folder are left out.

        Raises:
            DataError: one was changed.
        """
        paths = []
        for path in sorted(self.folder.glob(f"*.{self._ending}")):
            if path.stem != "quarantine" and has_record(path, COMMAND):
                self.note(path)
                paths.append(path)
        return paths

    def _quarantined(self, shard: Shard) -> Iterator[Row]:
        path = self.quarantine_of(shard.name)
        if path.exists():
            yield from read_rows(path)

    def _record(self, identity: JobIdentity, shard_size: int) -> dict[str, Any]:
        """The record of the job in the folder, or the one to be written."""
        path = self.folder / "job.json"
        expected = as_text({"format": _FORMAT, "shard_size": shard_size, "output": self._ending, **asdict(identity)})
        if not path.exists():
            combined = self.folder / "quarantine.jsonl"
            if combined.exists():
                self.note(combined)
            return expected | {"lists": []}
        try:
            record: dict[str, Any] = load_json(path.read_text(encoding="utf-8"))
            there = {key: record.get(key, PLAIN) if key == "template" else record[key] for key in expected}
            lists = [str(name) for name in record["lists"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"'{path}' is broken ({error!r}); give another folder.") from error
        for key, value in expected.items():
            if there[key] != value:
                if _unturned(there[key]) == _unturned(value):
                    raise ConfigError(
                        f"'{self.folder}' holds captions of images that were turned another way than now; choose "
                        "--exif-rotation or --no-exif-rotation (earlier releases showed MiniGPT-4 images as they are "
                        "stored), or give another name."
                    )
                raise ConfigError(
                    f"'{self.folder}' holds captions with {key} {there[key]!r}, and now it is {value!r}; give another "
                    "name, or move that folder away."
                )
        return expected | {"lists": lists}

    def _captioned_before(self, generation: int, paths: dict[str, str]) -> set[str]:
        """Ids in the shards of earlier lists of images."""
        ids: set[str] = set()
        files = {key: Path(file) for key, file in paths.items()} if generation else {}
        for path in self.folder.glob(f"images-*.{self._ending}"):
            name = _LISTED.fullmatch(path.stem)
            if name is not None and int(name[1] or 0) < generation:
                self._refuse_changed(files, self.note(path)["files"])
                ids.update(str(row["id"]) for row in read_rows(path))
        return ids

    def note(self, path: str | Path) -> dict[str, Any]:
        """What was noted when a file of this job was written.

        Raises:
            DataError: captune did not write the file, or it has changed since.
        """
        note = output_note(path, COMMAND)
        if note is None:
            raise DataError(
                f"'{path}' is not as captune caption wrote it: it is another file, or was changed or damaged. Move it "
                "away to caption its images again, or give --out another name."
            )
        return {"files": {}, "rejected": 0, "prefixed": False, **note}

    def _refuse_changed(self, files: dict[str, Path], states: dict[str, FileState | None]) -> None:
        """Check that captions are of the current files.

        Raises:
            DataError: a file has other bytes than when it was captioned.
        """
        for name, state in states.items():
            if name in files and is_changed(files[name], state):
                raise DataError(
                    f"'{files[name]}' is another file now than the one that was captioned into '{self.folder}'; give "
                    "--out another name."
                )


def _unturned(fingerprint: Any) -> str:
    """A captioner's fingerprint without its mark of how images are turned."""
    return str(fingerprint).removesuffix("-upright").removesuffix("-stored")


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
        raise DataError(
            f"the same ids are in {' and '.join(sorted(left)[:3])} of '{job.folder}'; caption them separately."
        )
    return [path.stem for path in prefixed]


def _sharing(job: Job, files: list[Path], *, written: bool) -> set[str]:
    """Names of the shards that share an id, as it is written or as it is in the archive."""
    seen = SeenIds()
    sharing: set[str] = set()
    for number, path in enumerate(files):
        prefix = "" if written or not job.note(path)["prefixed"] else f"{path.stem}/"
        for row in read_rows(path):
            name = str(row["id"]).removeprefix(prefix)
            first = seen.line_of(name)
            if first is None:
                seen.add(name, number)
            elif first != number:
                sharing |= {files[first].stem, path.stem}
    return sharing


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
