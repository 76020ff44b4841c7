"""Saved training states: all that a killed run needs to resume exactly.

Order, targets and learning rate are pure functions of seed and step, and nothing else is random, so a state is the
trained tensors, the optimizer's moments and the number of steps. It is written to a hidden name, synced and renamed,
and has a hash; a damaged state is skipped and the previous one is used.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from captune.data import atomic_folder
from captune.training.optimizer import MasterAdamW
from captune.training.saved_states import STATES, TrainProgress, intact_states, state_folders, state_hash

__all__ = ["TrainState", "restore_state", "save_state"]

STATES_KEPT = 2
"""How many states are kept: the newest, and the previous one in case the newest is damaged."""


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
        record = {**asdict(state.progress), "sha256": state_hash(state.progress, data)}
        (folder / "state.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    for old in state_folders(output)[:-STATES_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def restore_state(output: Path, state: TrainState) -> bool:
    """Load the newest intact state of a run.

    Returns:
        Whether there is one; otherwise nothing is changed.
    """
    for progress, data in intact_states(output):
        tensors = load(data)
        if all(name in tensors and tensors[name].shape == p.shape for name, p in state.parameters.items()):
            _load_tensors(tensors, state)
            state.progress = progress
            return True
    return False


def _load_tensors(tensors: dict[str, Tensor], state: TrainState) -> None:
    for name, parameter in state.parameters.items():
        state.optimizer.take_over(parameter, tensors[name])
        # The step counter stays where the optimizer keeps it; moments go where the parameter is.
        moments = {key.partition("//")[2]: value for key, value in tensors.items() if key.startswith(f"{name}//")}
        state.optimizer.state[state.optimizer.master_of(parameter)] = {
            moment: value if moment == "step" else value.to(parameter.device) for moment, value in moments.items()
        }
