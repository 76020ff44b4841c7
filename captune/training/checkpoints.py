"""Saved training states: all that a killed run needs to resume exactly.

Order, targets and learning rate are pure functions of seed and step, and nothing else is random, so a state is the
trained tensors, the optimizer's moments and the number of steps. It is written to a hidden name, synced and renamed,
and has a hash; a damaged state is skipped and the previous one is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from captune.data import atomic_folder
from captune.errors import ConfigError
from captune.parsing import load_json
from captune.report import CheckpointScores, read_scores
from captune.training.optimizer import MasterAdamW
from captune.training.run_log import first_event

__all__ = [
    "STATES",
    "TrainProgress",
    "TrainState",
    "finished_rows",
    "has_states",
    "require_same_steps",
    "restore_state",
    "save_state",
    "saved_progress",
]

logger = logging.getLogger(__name__)

STATES = "resume"
"""Folder of the states in the output folder of a run."""
STATES_KEPT = 2
"""How many states are kept: the newest, and the previous one in case the newest is damaged."""


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


@dataclass
class TrainState:
    """All that changes in training, and so all that a saved state holds.

    Attributes:
        parameters: the trained tensors by name.
        optimizer: of these.
        progress: how far the run is.
    """

    parameters: dict[str, nn.Parameter]
    optimizer: MasterAdamW
    progress: TrainProgress


def save_state(output: Path, state: TrainState) -> None:
    """Write the state of a run; older ones are removed once it is on the disk.

    Args:
        output: folder of the run.
        state: of the training.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in state.parameters.items():
        master = state.optimizer.master_of(parameter)
        tensors[name] = master.detach().cpu().contiguous()
        for moment, value in state.optimizer.state[master].items():
            tensors[f"{name}//{moment}"] = torch.as_tensor(value).detach().cpu().contiguous()
    with atomic_folder(output / STATES / f"step-{state.progress.step:08d}") as folder:
        # Written by Python, so that a full disk is an OSError like any other.
        data = save(tensors)
        (folder / "state.safetensors").write_bytes(data)
        record = {**asdict(state.progress), "sha256": _hash(state.progress, data)}
        (folder / "state.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    for old in _state_folders(output)[:-STATES_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def restore_state(output: Path, state: TrainState) -> bool:
    """Load the newest intact state of a run.

    Returns:
        Whether there is one; otherwise nothing is changed.
    """
    for progress, tensors in _intact_states(output):
        if all(name in tensors and tensors[name].shape == p.shape for name, p in state.parameters.items()):
            _load_tensors(tensors, state)
            state.progress = progress
            return True
    return False


def has_states(output: Path) -> bool:
    """Whether any state was saved, intact or not."""
    return bool(_state_folders(output))


def saved_progress(output: Path) -> TrainProgress | None:
    """The progress of a run's newest intact state, if there is one."""
    return next((progress for progress, _ in _intact_states(output)), None)


def _intact_states(output: Path) -> Iterator[tuple[TrainProgress, dict[str, Tensor]]]:
    for folder in reversed(_state_folders(output)):
        try:
            record = load_json((folder / "state.json").read_text(encoding="utf-8"))
            sha256 = record.pop("sha256", None)
            progress, data = TrainProgress(**record), (folder / "state.safetensors").read_bytes()
            # States of older versions have no hash.
            if sha256 is not None and sha256 != _hash(progress, data):
                raise ValueError("its hash is another one than when it was written")
            tensors = load(data)
        except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            logger.warning("%s is damaged and is skipped: %s", folder, error)
            continue
        yield progress, tensors


def _hash(progress: TrainProgress, data: bytes) -> str:
    """SHA-256 of progress and tensors."""
    return hashlib.sha256(json.dumps(asdict(progress)).encode() + data).hexdigest()


def _load_tensors(tensors: dict[str, Tensor], state: TrainState) -> None:
    for name, parameter in state.parameters.items():
        state.optimizer.take_over(parameter, tensors[name])
        # The step counter stays where the optimizer keeps it; moments go where the parameter is.
        moments = {key.partition("//")[2]: value for key, value in tensors.items() if key.startswith(f"{name}//")}
        state.optimizer.state[state.optimizer.master_of(parameter)] = {
            moment: value if moment == "step" else value.to(parameter.device) for moment, value in moments.items()
        }


def _state_folders(output: Path) -> list[Path]:
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
