"""The states from which a killed run resumes, as files: which are intact, and how far each is. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, deserialize

from captune.errors import ConfigError
from captune.parsing import load_json
from captune.report import CheckpointScores, read_scores
from captune.run_folders import first_event

__all__ = [
    "STATES",
    "TrainProgress",
    "finished_rows",
    "has_states",
    "intact_states",
    "require_same_steps",
    "saved_progress",
    "state_folders",
    "state_hash",
]

logger = logging.getLogger(__name__)

STATES = "resume"
"""Folder of the states in the output folder of a run."""


@dataclass
class TrainProgress:
    """How far a run is.

    Attributes:
        step: optimizer steps taken.
        skipped: how many of them were skipped for an infinite or undefined loss.
        manifest_hash: of the training manifest.
    """

    step: int = 0
    skipped: int = 0
    manifest_hash: str = ""


def has_states(output: Path) -> bool:
    """Whether any state was saved, intact or not."""
    return bool(state_folders(output))


def saved_progress(output: Path) -> TrainProgress | None:
    """The progress of a run's newest intact state, if there is one."""
    return next((progress for progress, _ in intact_states(output)), None)


def intact_states(output: Path) -> Iterator[tuple[TrainProgress, bytes]]:
    """The progress and the content of the tensor file of every intact state, the newest first."""
    for folder in reversed(state_folders(output)):
        try:
            record = load_json((folder / "state.json").read_text(encoding="utf-8"))
            sha256 = record.pop("sha256", None)
            progress, data = TrainProgress(**record), (folder / "state.safetensors").read_bytes()
            if sha256 is None:
                deserialize(data)  # type: ignore[no-untyped-call]  # a state of an older version
            elif sha256 != state_hash(progress, data):
                raise ValueError("its hash is another one than when it was written")
        except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            logger.warning("%s is damaged and is skipped: %s", folder, error)
            continue
        yield progress, data


def state_hash(progress: TrainProgress, data: bytes) -> str:
    """SHA-256 of progress and tensors."""
    return hashlib.sha256(json.dumps(asdict(progress)).encode() + data).hexdigest()


def state_folders(output: Path) -> list[Path]:
    """The states of a run, oldest first."""
    folders = [path for path in (output / STATES).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def finished_rows(output: Path, step: int, steps_per_epoch: int) -> list[CheckpointScores]:
    """The rows of a run's `scores.json` that were scored before step `step`."""
    rows = read_scores(output).checkpoints
    return [row for row in rows if row.epoch is None or (row.epoch + 1) * steps_per_epoch <= step]


def require_same_steps(output: Path, steps_per_epoch: int) -> None:
    """Check that a run which resumes has the steps per epoch that it started with.

    Raises:
        ConfigError: an older captune divided the captions into other steps.
    """
    before = first_event(output / "log.jsonl", "run").get("steps_per_epoch", steps_per_epoch)
    if before != steps_per_epoch:
        raise ConfigError(
            f"The run in {output} was begun with {before} steps per epoch by an older captune, and this one divides "
            f"the same captions into {steps_per_epoch}; finish it with that version, or start over with --resume never."
        )
