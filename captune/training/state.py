"""Everything that a run needs to go on exactly where it was.

Order, targets and learning rate are pure functions of seed and step, and nothing else is random, so the state is the
trained tensors, the optimiser's moments and the number of steps. It is written to a hidden name, synced and renamed,
and carries a hash; a state that is not what was written is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from captune.data.atomic import atomic_folder
from captune.model.masters import MasterAdamW
from captune.parsing import load_json

__all__ = ["FOLDER", "Position", "has_states", "load_newest", "newest_position", "save_state"]

logger = logging.getLogger(__name__)

FOLDER = "resume"
KEPT = 2
"""How many states are kept: the newest, and the one before it for the case that the disk lies."""


@dataclass(frozen=True)
class Position:
    """Where a run is.

    Attributes:
        step: optimiser steps taken.
        skipped: how many of them were skipped for an infinite or undefined loss.
        manifest_hash: of the training manifest.
    """

    step: int
    skipped: int
    manifest_hash: str


def save_state(
    output: Path,
    names: Sequence[str],
    parameters: Sequence[nn.Parameter],
    optimizer: MasterAdamW,
    at: Position,
) -> None:
    """Write the state of a run; older ones are removed once it is on the disk.

    Args:
        output: folder of the run.
        names: of the trained tensors.
        parameters: the trained tensors.
        optimizer: whose moments belong to them.
        at: where the run is.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in zip(names, parameters, strict=True):
        master = optimizer.master_of(parameter)
        tensors[name] = master.detach().cpu().contiguous()
        for moment, value in optimizer.state[master].items():
            tensors[f"{name}//{moment}"] = torch.as_tensor(value).detach().cpu().contiguous()
    with atomic_folder(output / FOLDER / f"step-{at.step:08d}") as folder:
        # Written by Python, so that a full disk is an OSError like any other.
        data = save(tensors)
        (folder / "state.safetensors").write_bytes(data)
        record = {**asdict(at), "sha256": _hash(at, data)}
        (folder / "state.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    for old in _folders(output)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(
    output: Path, names: Sequence[str], parameters: Sequence[nn.Parameter], optimizer: MasterAdamW
) -> Position | None:
    """Put the newest whole state of a run back.

    Returns:
        Where the run is, or None if there is no whole state and nothing was changed.
    """
    for at, tensors in _whole_states(output):
        if all(name in tensors and tensors[name].shape == p.shape for name, p in zip(names, parameters, strict=True)):
            _restore(tensors, names, parameters, optimizer)
            return at
    return None


def has_states(output: Path) -> bool:
    """Whether any state was saved, intact or not."""
    return bool(_folders(output))


def newest_position(output: Path) -> Position | None:
    """Where the newest whole state of a run is, if there is one."""
    return next((at for at, _ in _whole_states(output)), None)


def _whole_states(output: Path) -> Iterator[tuple[Position, dict[str, Tensor]]]:
    for folder in reversed(_folders(output)):
        try:
            record = load_json((folder / "state.json").read_text(encoding="utf-8"))
            written = record.pop("sha256", None)
            at, data = Position(**record), (folder / "state.safetensors").read_bytes()
            # States of older versions have no hash.
            if written is not None and written != _hash(at, data):
                raise ValueError("its hash is another one than when it was written")
            tensors = load(data)
        except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            logger.warning("%s is damaged and is passed over: %s", folder, error)
            continue
        yield at, tensors


def _hash(at: Position, data: bytes) -> str:
    """SHA-256 of position and tensors."""
    return hashlib.sha256(json.dumps(asdict(at)).encode() + data).hexdigest()


def _restore(
    tensors: dict[str, Tensor],
    names: Sequence[str],
    parameters: Sequence[nn.Parameter],
    optimizer: MasterAdamW,
) -> None:
    for name, parameter in zip(names, parameters, strict=True):
        optimizer.take_over(parameter, tensors[name])
        # The counter of steps stays where the optimiser keeps it; moments go where the parameter is.
        moments = {key.partition("//")[2]: value for key, value in tensors.items() if key.startswith(f"{name}//")}
        optimizer.state[optimizer.master_of(parameter)] = {
            moment: value if moment == "step" else value.to(parameter.device) for moment, value in moments.items()
        }


def _folders(output: Path) -> list[Path]:
    """The states of a run, oldest first."""
    found = [path for path in (output / FOLDER).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
