"""The work on shards: decode ahead in threads, caption in batches, put what is bad aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captune.bulk.contents import FileState
from captune.bulk.job import Job
from captune.bulk.output import Row
from captune.bulk.payloads import Payloads
from captune.bulk.progress import Progress
from captune.bulk.shards import Entry, Rejected, Shard, file_states
from captune.data.ids import SeenIds
from captune.data.prefetch import prefetch_map
from captune.errors import DataError, RefusedImagesError

if TYPE_CHECKING:
    from captune.captioner import Captioner
    from captune.decoding import DecodingOptions

__all__ = ["Captions", "ShardResult", "caption_entries", "caption_shard", "once", "run_shards"]

_BATCHES = 4
"""Images that are handed to the captioner at once, in batches: rows that end early make room for others among them."""


@dataclass(frozen=True)
class Captions:
    """A captioner with its settings, as a job uses it.

    Attributes:
        captioner: captions.
        options: how it decodes.
        instruction: what is asked of every image; None is the captioner's own.
        workers: threads that decode images; as many as processors by default, at most eight.
    """

    captioner: Captioner
    options: DecodingOptions
    instruction: str | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What came of a shard.

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
    # Photographs are large when they are decoded: one batch lies ready while a chunk is captioned.
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
            refused = [(good[place][0], reason) for place, reason in sorted(error.reasons.items())]
            bad = bad + [
                {"id": entry.id, "image": entry.image, "reason": f"the image '{entry.image}': {reason}"}
                for entry, reason in refused
            ]
        rows = [
            {"id": entry.id, "image": entry.image, "caption": caption.text, "stopped": caption.stopped}
            for (entry, _), caption in zip(good, made, strict=True)
            if caption is not None
        ]
    if on_count is not None:
        on_count(len(rows), len(bad))
    return rows, bad


def caption_shard(captions: Captions, shard: Shard, on_count: Callable[[int, int], None] | None = None) -> ShardResult:
    """Caption a shard; an id that stands in it twice is captioned once and noted in the quarantine.

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
    """Caption shards one after the other in this process; each is whole on the disk before the next begins.

    Args:
        captions: the captioner.
        job: whose shards they are.
        shards: those to work on; what another worker finished meanwhile is passed over.
        progress: is told how far it is.
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
