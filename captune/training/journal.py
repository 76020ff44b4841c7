"""What a run tells while it goes: lines of `log.jsonl`, a tracker's curves, a progress bar."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import IO, Any, Protocol, Self

from captune.data.atomic import atomic_file
from captune.errors import MissingExtraError
from captune.events import Event, Listener
from captune.parsing import load_json

__all__ = ["Journal", "first_event"]

PASSING = frozenset({"features", "captions", "progress"})
"""Events that only say how far something is; they are shown and not kept."""


class _Tracker(Protocol):
    def log(self, figures: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Journal:
    """Writes events to `log.jsonl`, to a tracker and to a listener.

    Args:
        folder: of the run; None keeps no log (every process but the first).
        tracker: "none", "tensorboard", "trackio" or "wandb".
        settings: the resolved configuration, for the tracker.
        listener: is told every event.
        resumed_at: optimiser steps of an earlier part of the run that are kept; what its log says of later ones is
            dropped, for they are taken again.

    Raises:
        MissingExtraError: the tracker is not installed.
    """

    def __init__(
        self,
        folder: Path | None,
        tracker: str = "none",
        settings: Event | None = None,
        listener: Listener | None = None,
        resumed_at: int = 0,
    ) -> None:
        self._listener = listener
        self._started = time.monotonic()
        self._file: IO[str] | None = None
        self._tracker: _Tracker | None = None
        if folder is not None:
            self._tracker = _open_tracker(tracker, folder, settings or {})
            _drop_later(folder / "log.jsonl", resumed_at)
            self._file = (folder / "log.jsonl").open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._tracker is not None:
            self._tracker.close()

    def tell(self, event: str, **figures: Any) -> None:
        """Record that something happened.

        Args:
            event: what.
            figures: its numbers and names, as JSON can hold them.
        """
        entry: Event = {"event": event, **figures}
        if self._listener is not None:
            self._listener(entry)
        if self._file is None or event in PASSING:
            return
        stamped = {"time": round(time.monotonic() - self._started, 3), **entry}
        self._file.write(json.dumps(stamped, ensure_ascii=False) + "\n")
        self._file.flush()
        if self._tracker is not None and "step" in figures:
            numbers = {
                f"{event}/{key}": float(value) for key, value in figures.items() if isinstance(value, int | float)
            }
            self._tracker.log(numbers, int(figures["step"]))


def first_event(log: Path, name: str) -> Event:
    """The first line of a log that tells of this event; empty where there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    for line in lines:
        with contextlib.suppress(ValueError, AttributeError):
            entry: Event = load_json(line)
            if entry.get("event") == name:
                return entry
    return {}


def _drop_later(log: Path, steps: int) -> None:
    """Keep what a log says of the first `steps` optimiser steps; a half-written last line goes as well."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = load_json(line)
        except ValueError:
            break
        if entry.get("event") == "step" and entry["step"] >= steps:
            break
        kept.append(line + "\n")
    with atomic_file(log, "w") as stream:
        stream.writelines(kept)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Hosted:
    """trackio and wandb, which share their interface."""

    def __init__(self, library: Any, folder: Path, settings: Event) -> None:
        self._library = library
        library.init(project="captune", name=folder.name, config=settings)

    def log(self, figures: dict[str, float], step: int) -> None:
        self._library.log(figures, step=step)

    def close(self) -> None:
        self._library.finish()


def _open_tracker(name: str, folder: Path, settings: Event) -> _Tracker | None:
    try:
        if name == "tensorboard":
            return _TensorBoard(folder)
        if name == "trackio":
            import trackio

            return _Hosted(trackio, folder, settings)
        if name == "wandb":
            import wandb

            return _Hosted(wandb, folder, settings)
    except ImportError as error:
        raise MissingExtraError(f"track: {name}", "track") from error
    return None
