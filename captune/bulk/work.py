"""The work on shards: decode ahead in threads, caption in batches, put bad images into quarantine, count progress.

Image files between reading and decoding are bounded in bytes, and released once decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import TYPE_CHECKING, Any

from captune.bulk.caption_template import CaptionTemplate
from captune.bulk.job import Job
from captune.bulk.output import Row
from captune.bulk.shards import Entry, FileState, Item, Rejected, Shard, file_states
from captune.common import duration
from captune.data import SeenIds, prefetch_map
from captune.errors import DataError, RefusedImagesError

__all__ = [
    "MOST_BYTES",
    "Captions",
    "Held",
    "Payloads",
    "Progress",
    "ShardResult",
    "caption_entries",
    "caption_shard",
    "once",
    "run_shards",
]

MOST_BYTES = 512 << 20
"""Of all files that wait to be decoded; a larger one waits until it is the only one."""


@dataclass
class Held:
    """An entry on its way to the decoder.

    Attributes:
        entry: without the bytes of its file once it was decoded.
    """

    entry: Entry


class Payloads:
    """Admits entries as long as their files fit into a limit of memory.

    Args:
        most_bytes: of all files that wait.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._used = 0
        self._changed = Condition()

    def admitted(self, entries: Iterator[Entry]) -> Iterator[Held]:
        """The entries, each one when there is room for its file; they are decoded in other threads meanwhile."""
        for entry in entries:
            size = _size(entry)
            with self._changed:
                self._changed.wait_for(lambda size=size: not self._used or self._used + size <= self._most)  # type: ignore[misc]
                self._used += size
            yield Held(entry)

    def decoded(self, held: Held, decode: Callable[[Entry], Any]) -> Any:
        """What `decode` makes of an entry, whose file is released."""
        size = _size(held.entry)
        try:
            return decode(held.entry)
        finally:
            if isinstance(held.entry, Item) and size:
                held.entry = replace(held.entry, payload=b"")
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def _size(entry: Entry) -> int:
    return len(entry.payload) if isinstance(entry, Item) and isinstance(entry.payload, bytes) else 0


@dataclass
class Progress:
    """Counts images while they are captioned.

    Attributes:
        shards: of the run.
        images: of the run, as far as is known before they are read; None where an archive does not record it.
        shards_done: finished shards, those of earlier runs included.
        captioned: images captioned in this run.
        rejected: images put into quarantine in this run.
        listener: is called after every change.
    """

    shards: int
    images: int | None
    shards_done: int = 0
    captioned: int = 0
    rejected: int = 0
    listener: Callable[[Progress], None] | None = None
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _before: int = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._before = self.shards_done

    def count(self, captioned: int, rejected: int) -> None:
        """Images were captioned, and others put into quarantine."""
        self.captioned += captioned
        self.rejected += rejected
        self._tell()

    def shard_done(self) -> None:
        """A shard's file is written."""
        self.shards_done += 1
        self._tell()

    @property
    def images_per_s(self) -> float:
        """Images captioned a second since the run began."""
        passed = self.clock() - self._began
        return (self.captioned + self.rejected) / passed if passed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated from what is done; None before the first image."""
        done = self.captioned + self.rejected
        passed = self.clock() - self._began
        if not done:
            return None
        if self.images is not None:
            return max(0.0, passed / done * (self.images - done))
        finished = self.shards_done - self._before
        return passed / finished * (self.shards - self.shards_done) if finished else None

    def __str__(self) -> str:
        """Such as `1,234 of 5,000 images, 3 in quarantine, 12/40 shards, 51.2 images/s, 1:13 left`."""
        total = "" if self.images is None else f" of {self.images:,}"
        parts = [f"{self.captioned + self.rejected:,}{total} images"]
        parts += [f"{self.rejected:,} in quarantine"] * (self.rejected > 0)
        parts.append(f"{self.shards_done:,}/{self.shards:,} shards")
        parts.append(f"{self.images_per_s:.1f} images/s")
        left = self.seconds_left
        if left is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def _tell(self) -> None:
        if self.listener is not None:
            self.listener(self)


if TYPE_CHECKING:
    from captune.captioner import Captioner
    from captune.decoding import DecodingOptions


_BATCHES = 4
"""Images that are handed to the captioner at once, in batches: rows that end early make room for others among them."""


@dataclass(frozen=True)
class Captions:
    """A captioner with its settings, as a job uses it.

    Attributes:
        captioner: captions.
        options: how it decodes.
        instruction: the prompt for every image; None is the captioner's default.
        workers: threads that decode images; as many as processors by default, at most eight.
        template: of the text that is written; None is the caption alone.
    """

    captioner: Captioner
    options: DecodingOptions
    instruction: str | None = None
    workers: int | None = None
    template: CaptionTemplate | None = None


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The results of a shard.

    Attributes:
        captions: rows of its output file.
        rejected: rows of its quarantine.
        files: states of its files from before they were read.
    """

    captions: list[Row]
    rejected: list[Row]
    files: dict[str, FileState | None]


def caption_entries(
    captions: Captions, entries: Iterator[Entry], on_count: Callable[[int, int], None] | None = None
) -> Iterator[tuple[list[Row], list[Row]]]:
    """Caption images as they come.

    Args:
        captions: the captioner.
        entries: images, read as they are needed.
        on_count: called with the numbers of images captioned and rejected since the last call.

    Yields:
        Rows of captions and rows of rejected images, both in the order of the entries, chunk by chunk.
    """

    def prepare(entry: Entry) -> Any:
        if isinstance(entry, Rejected):
            return DataError(entry.reason)
        try:
            return captions.captioner.prepare(entry.payload, entry.image)
        except (DataError, OSError) as error:
            # Whatever one file does must not stop the others; the message names it.
            return error

    good: list[tuple[Entry, Any]] = []
    bad: list[Row] = []
    size = captions.options.batch_size * _BATCHES
    # Photographs are large when they are decoded: one batch is ready while a chunk is captioned.
    payloads = Payloads()
    looked = prefetch_map(
        payloads.admitted(entries),
        lambda held: payloads.decoded(held, prepare),
        captions.workers,
        ahead=captions.options.batch_size,
    )
    for held, made in looked:
        entry = held.entry
        if isinstance(made, Exception):
            bad.append({"id": entry.id, "image": entry.image, "reason": " ".join(str(made).split())})
        else:
            good.append((entry, made))
        if len(good) >= size:
            yield _caption(captions, good, bad, on_count)
            good, bad = [], []
    if good or bad:
        yield _caption(captions, good, bad, on_count)


def _caption(
    captions: Captions,
    good: list[tuple[Entry, Any]],
    bad: list[Row],
    on_count: Callable[[int, int], None] | None,
) -> tuple[list[Row], list[Row]]:
    rows: list[Row] = []
    if good:
        made: Sequence[Any]
        try:
            made = captions.captioner.generate(
                [prepared for _, prepared in good],
                captions.instruction,
                captions.options,
                keys=[entry.id for entry, _ in good],
            )
        except RefusedImagesError as error:
            made = error.captions
            refused = [(good[index][0], reason) for index, reason in sorted(error.reasons.items())]
            bad = bad + [
                {"id": entry.id, "image": entry.image, "reason": f"the image '{entry.image}': {reason}"}
                for entry, reason in refused
            ]
        template = captions.template
        for (entry, _), caption in zip(good, made, strict=True):
            if caption is None:
                continue
            try:
                text = caption.text if template is None else template.text(caption.text, entry)
            except (DataError, OSError) as error:
                bad = [*bad, {"id": entry.id, "image": entry.image, "reason": str(error)}]
                continue
            row = {"id": entry.id, "image": entry.image, "caption": text, "stopped": caption.stopped}
            # Only where there was some: files of models without thinking text stay as they are.
            rows.append(row if caption.thinking == "none" else row | {"thinking": caption.thinking})
    if on_count is not None:
        on_count(len(rows), len(bad))
    return rows, bad


def caption_shard(captions: Captions, shard: Shard, on_count: Callable[[int, int], None] | None = None) -> ShardResult:
    """Caption a shard; an id that is in it twice is captioned once and noted in the quarantine.

    Args:
        captions: the captioner.
        shard: what to caption.
        on_count: called with the numbers of images captioned and rejected since the last call.
    """
    result = ShardResult([], [], file_states(shard))
    for rows, bad in caption_entries(captions, once(shard.items(), "this shard"), on_count):
        result.captions.extend(rows)
        result.rejected.extend(bad)
    return result


def run_shards(captions: Captions, job: Job, shards: Sequence[Shard], progress: Progress | None = None) -> None:
    """Caption shards one after the other in this process; each is complete on the disk before the next begins.

    Args:
        captions: the captioner.
        job: whose shards they are.
        shards: those to work on; what another worker finished meanwhile is passed over.
        progress: is updated after each chunk.
    """
    for shard in shards:
        if not job.is_done(shard):
            result = caption_shard(captions, shard, None if progress is None else progress.count)
            job.write(shard.name, result.captions, result.rejected, result.files)
        if progress is not None:
            progress.shard_done()


def once(entries: Iterator[Entry], where: str) -> Iterator[Entry]:
    """Entries, a second one of the same id rejected.

    Args:
        entries: images.
        where: what ids are unique in, for the reason.
    """
    seen = SeenIds()
    for entry in entries:
        if seen.line_of(entry.id) is not None:
            yield Rejected(entry.id, entry.image, f"the id '{entry.id}' is in {where} already.")
        else:
            seen.add(entry.id, 0)
            yield entry
