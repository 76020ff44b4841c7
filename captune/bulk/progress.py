"""How far a job is, how fast it goes, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Progress"]


@dataclass
class Progress:
    """Counts images while they are captioned.

    Attributes:
        shards: of the run.
        images: of the run, as far as is known before they are read; None where an archive does not say.
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
        """A shard's file is there."""
        self.shards_done += 1
        self._tell()

    @property
    def images_per_s(self) -> float:
        """Images captioned a second since the run began."""
        passed = self.clock() - self._began
        return (self.captioned + self.rejected) / passed if passed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated from what is done; None before there is anything to tell it from."""
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
            minutes, seconds = divmod(round(left), 60)
            hours, minutes = divmod(minutes, 60)
            parts.append(f"{hours}:{minutes:02d}:{seconds:02d} left" if hours else f"{minutes}:{seconds:02d} left")
        return ", ".join(parts)

    def _tell(self) -> None:
        if self.listener is not None:
            self.listener(self)
