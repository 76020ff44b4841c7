"""The start of a run: the trained weights of an earlier run's checkpoint (`train.start`), and their training data.

The checkpoint is copied into the new run (`checkpoints/start`), so that the run can be evaluated and resumed without
the earlier one. In it, `origin.json` lists all checkpoints that led to the run, the earliest first; every checkpoint of
the new run has the same list in its record.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.config import LoraConfig, RunConfig, load_run_config
from captune.data import atomic_folder, manifest_hash
from captune.errors import ConfigError, InputError, WeightsError
from captune.hub import locate_checkpoint
from captune.model import load_tuned
from captune.parsing import load_json
from captune.run_checkpoints import CheckpointRecord, read_record, require_kind, trained_hash
from captune.vlm import ImageTextModel

__all__ = ["START", "StartCheckpoint", "find_start", "require_fitting_start", "start_image_text_model", "store_start"]

logger = logging.getLogger(__name__)

START = "start"
"""Name of the copy in the folder of the checkpoints."""
_ORIGIN = "origin.json"


@dataclass(frozen=True)
class StartCheckpoint:
    """A checkpoint from which a run starts.

    Attributes:
        folder: of the checkpoint.
        record: its record.
        ancestors: all checkpoints that led to the run, the earliest first, this one last; see `CheckpointRecord`.
    """

    folder: Path
    record: CheckpointRecord
    ancestors: tuple[dict[str, Any], ...]


def find_start(config: RunConfig, *, resuming: bool) -> StartCheckpoint | None:
    """The checkpoint that `train.start` names.

    Args:
        config: of the run.
        resuming: use the copy in the run's folder.

    Returns:
        The checkpoint; None without `train.start`.

    Raises:
        ConfigError: it is inside of the run's output folder.
        WeightsError: there is none, or it is broken.
    """
    name = config.train.start
    if name is None:
        return None
    copy = config.output / "checkpoints" / START
    if resuming and copy.is_dir():
        try:
            ancestors = tuple(load_json((copy / _ORIGIN).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise WeightsError(f"{copy / _ORIGIN} is missing or broken: {error!r}; restore it from a copy.") from error
        return StartCheckpoint(copy, read_record(copy), ancestors)
    folder = locate_checkpoint(name)
    if folder.resolve().is_relative_to(config.output.resolve()):
        raise ConfigError(
            f"train.start is {name}, which is inside of the output folder {config.output}; give another folder with "
            "output=..., or train this run for more epochs with a higher train.epochs."
        )
    record = read_record(folder)
    return StartCheckpoint(folder, record, (*record.ancestors, _described(folder, record)))


def _described(folder: Path, record: CheckpointRecord) -> dict[str, Any]:
    """What the record of a later checkpoint contains about this one."""
    described: dict[str, Any] = {
        "checkpoint": str(folder.resolve()),
        "trained": trained_hash(folder),
        "epoch": record.epoch,
        "step": record.step,
        "seed": record.seed,
        "instruction": record.instruction,
        "manifest_hash": record.manifest_hash,
    }
    try:
        data = load_run_config(folder.resolve().parent.parent / "config.yaml").data
        if manifest_hash(data.train) == record.manifest_hash:
            described["manifest"] = str(data.train.resolve())
            described["split"], described["train_images"] = data.train_split, data.train_images
    except (InputError, OSError):
        pass  # the leak guard warns that the images are unknown
    return described


def store_start(output: Path, start: StartCheckpoint) -> None:
    """Copy the start checkpoint into the folder of a run."""
    with atomic_folder(output / "checkpoints" / START) as folder:
        for path in start.folder.iterdir():
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        (folder / _ORIGIN).write_text(
            json.dumps(start.ancestors, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def require_fitting_start(start: StartCheckpoint, lora: LoraConfig | None) -> None:
    """Refuse a start checkpoint that a MiniGPT-4 cannot continue, before anything is written.

    A checkpoint without LoRA fits a run with LoRA, whose matrices then keep their initial values.

    Args:
        start: the checkpoint.
        lora: of the run.

    Raises:
        WeightsError: it is a checkpoint of a transformers model.
        ConfigError: it has other LoRA.
    """
    require_kind(start.record, "minigpt4", start.folder)
    if start.record.lora is not None:
        _require_same_lora(start, lora)


def start_image_text_model(
    model: ImageTextModel, start: StartCheckpoint, parts: tuple[str, ...], lora: LoraConfig
) -> None:
    """Load a start checkpoint into a transformers model.

    Args:
        model: with the trained parts of the run.
        start: the checkpoint.
        parts: that the run trains.
        lora: of the run.

    Raises:
        WeightsError: the checkpoint is broken, or was trained on another model.
        ConfigError: it has other trained parts or other LoRA.
    """
    record = start.record
    if record.kind == "transformers":
        if set(record.trained) != set(parts):
            raise ConfigError(
                f"train.parts is [{', '.join(parts)}], and the checkpoint {start.folder} (train.start) has trained "
                f"[{', '.join(record.trained)}]; set train.parts to these."
            )
        if record.lora is not None:
            _require_same_lora(start, lora)
    load_tuned(model.model, start.folder, model.adapter)


def _require_same_lora(start: StartCheckpoint, lora: LoraConfig | None) -> None:
    """Refuse LoRA whose tensors or scale differ from those of the start checkpoint.

    Raises:
        ConfigError: names the settings with both values.
    """
    before = start.record.lora or {}
    targets = list(before["targets"])
    fitting = f"{{rank: {before['r']}, alpha: {before['alpha']:g}, targets: [{', '.join(targets)}]}}"
    if lora is None:
        raise ConfigError(
            f"train.lora is null, and the checkpoint {start.folder} (train.start) has LoRA; set train.lora to "
            f"{fitting}."
        )
    differences = [
        f"{name} is {now}, in the checkpoint {then}"
        for name, now, then in (
            ("rank", lora.rank, before["r"]),
            ("alpha", f"{lora.alpha:g}", f"{before['alpha']:g}"),
            ("targets", sorted(lora.targets), sorted(targets)),
        )
        if now != then
    ]
    if differences:
        raise ConfigError(
            f"train.lora differs from the LoRA of the checkpoint {start.folder} (train.start): "
            f"{'; '.join(differences)}. Set train.lora to {fitting}."
        )
