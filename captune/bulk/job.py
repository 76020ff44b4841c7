"""A captioning job: what it is, which shards it has, and which of them are done.

    out/job.json                       which model, prompt and decoding, and the lists of images it was given so far
    out/images-00000.jsonl             captions of a shard; when it is there, the shard is done
    out/quarantine/images-00000.jsonl  its images that could not be captioned, and why; written just before
    out/quarantine.jsonl               all of these together, written at the end of a run

Nobody has to be asked whether a shard is done, so any number of workers, on any machines that share the folder, may be
killed and started again. When the list of images has grown since, what is captioned already is left out and the rest is
cut into new shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captune.bulk.output import Row, read_rows, write_rows
from captune.bulk.shards import PathShard, Shard
from captune.bulk.sources import Inputs
from captune.data.atomic import atomic_file
from captune.errors import ConfigError, DataError

__all__ = ["Job", "JobIdentity"]

_FORMAT = 1


@dataclass(frozen=True)
class JobIdentity:
    """What decides the captions of a job beside the images.

    Attributes:
        model: name of the captioner.
        fingerprint: of its weights.
        instruction: what is asked of every image.
        decoding: how captions are decoded.
    """

    model: str
    fingerprint: str
    instruction: str | None
    decoding: str


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
        DataError: the folder holds something else.
    """

    def __init__(
        self, folder: Path, inputs: Inputs, identity: JobIdentity, *, ending: str = "jsonl", shard_size: int = 1000
    ) -> None:
        self.folder = folder
        self._ending = ending
        record = self._record(identity, shard_size)
        generation, self.skipped = 0, 0
        entries = list(inputs.paths.items())
        if entries:
            listed = hashlib.sha256("\0".join(inputs.paths).encode("utf-8", "surrogateescape")).hexdigest()[:16]
            if not record["lists"] or record["lists"][-1] != listed:
                record["lists"].append(listed)
            generation = len(record["lists"]) - 1
            done = self._captioned_before(generation)
            self.skipped = sum(name in done for name, _ in entries)
            entries = [entry for entry in entries if entry[0] not in done]
        prefix = "images" if generation == 0 else f"images-{generation}"
        self.shards: list[Shard] = [
            PathShard(f"{prefix}-{start // shard_size:05d}", tuple(entries[start : start + shard_size]))
            for start in range(0, len(entries), shard_size)
        ]
        self.shards += inputs.archives
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / "job.json") as stream:
            json.dump(record, stream, indent=2, ensure_ascii=False)
            stream.write("\n")

    def captions_of(self, shard: Shard) -> Path:
        """The output file of a shard."""
        return self.folder / f"{shard.name}.{self._ending}"

    def quarantine_of(self, shard: Shard) -> Path:
        """Where the images of a shard stand that could not be captioned."""
        return self.folder / "quarantine" / f"{shard.name}.jsonl"

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard's captions are there."""
        return self.captions_of(shard).exists()

    def open_shards(self, part: int = 0, parts: int = 1) -> list[Shard]:
        """The shards that are not done, of one of several workers.

        Args:
            part: which worker, from 0.
            parts: how many workers share the job.
        """
        return [shard for shard in self.shards[part::parts] if not self.is_done(shard)]

    def write(self, shard: Shard, captions: Sequence[Row], rejected: Sequence[Row]) -> None:
        """Finish a shard: its quarantine first, so that a shard with captions is done for good."""
        quarantine = self.quarantine_of(shard)
        if rejected:
            write_rows(quarantine, rejected)
        else:
            quarantine.unlink(missing_ok=True)
        write_rows(self.captions_of(shard), captions)

    def gather_quarantine(self) -> int:
        """Bring the quarantines of all finished shards together in `quarantine.jsonl`.

        Returns:
            How many images it holds; without any there is no such file.
        """
        rows = [row for shard in self.shards if self.is_done(shard) for row in self._quarantined(shard)]
        together = self.folder / "quarantine.jsonl"
        if rows:
            write_rows(together, rows)
        else:
            together.unlink(missing_ok=True)
        return len(rows)

    def rows(self) -> Iterator[Row]:
        """All captions of the finished shards, in the order of the shards."""
        for shard in self.shards:
            if self.is_done(shard):
                yield from read_rows(self.captions_of(shard))

    def _quarantined(self, shard: Shard) -> Iterator[Row]:
        path = self.quarantine_of(shard)
        if path.exists():
            yield from read_rows(path)

    def _record(self, identity: JobIdentity, shard_size: int) -> dict[str, Any]:
        """What the folder says of itself, or what it will say."""
        path = self.folder / "job.json"
        wanted = {"format": _FORMAT, "shard_size": shard_size, "output": self._ending, **asdict(identity)}
        if not path.exists():
            return wanted | {"lists": []}
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            there = {key: record[key] for key in wanted}
            lists = [str(name) for name in record["lists"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"'{path}' is broken ({error!r}); give another folder.") from error
        for key, value in wanted.items():
            if there[key] != value:
                raise ConfigError(
                    f"'{self.folder}' holds captions with {key} {there[key]!r}, and now it is {value!r}; give another "
                    "name, or move that folder away."
                )
        return wanted | {"lists": lists}

    def _captioned_before(self, generation: int) -> set[str]:
        """Ids in the shards of earlier lists of images."""
        found: set[str] = set()
        for earlier in range(generation):
            prefix = "images" if earlier == 0 else f"images-{earlier}"
            for path in self.folder.glob(f"{prefix}-[0-9][0-9][0-9][0-9][0-9]*.{self._ending}"):
                # `images-1-00000` is of list 1, `images-10000` of list 0.
                if path.stem.count("-") == prefix.count("-") + 1:
                    found.update(str(row["id"]) for row in read_rows(path))
        return found
