"""The start of a run: the trained weights of an earlier run's checkpoint (`train.start`), and their training data.

The checkpoint is stored in the new run (`checkpoints/start`), so that the run can be evaluated and resumed without the
earlier one. In it, `origin.json` lists all checkpoints that led to the run, the earliest first; every checkpoint of the
new run has the same list in its record. Needs no torch, so that a checkpoint that does not fit is refused at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from captune.config import DEFAULT_LORA, LoraConfig, RunConfig, load_run_config
from captune.data import atomic_folder, manifest_hash
from captune.errors import ConfigError, InputError, WeightsError
from captune.hub import ResolvedModel, kind_of_model, locate_base, locate_checkpoint
from captune.parsing import load_json
from captune.run_checkpoints import (
    ADAPTER,
    RECORD,
    CheckpointRecord,
    read_record,
    require_kind,
    tensor_file,
    trained_hash,
)
from captune.weights import read_header, weights_differ

__all__ = ["START", "StartCheckpoint", "find_start", "require_fitting_start", "store_start"]

START = "start"
"""Name of the copy in the folder of the checkpoints."""
_ORIGIN = "origin.json"
_COMPLETE = frozenset({"language_model", "vision_tower"})
"""Parts of a transformers model that are trained without LoRA."""


@dataclass(frozen=True)
class StartCheckpoint:
    """A checkpoint from which a run starts.

    Attributes:
        name: as configured, in messages.
        folder: of the checkpoint.
        record: its record; that of an adapter which captune did not train has no fingerprint (`frozen` is empty).
        ancestors: all checkpoints that led to the run, the earliest first, this one last; see `CheckpointRecord`.
    """

    name: str
    folder: Path
    record: CheckpointRecord
    ancestors: tuple[dict[str, Any], ...]

    @property
    def sentence(self) -> str:
        """What the run begins with, for people."""
        what = "adapter" if self.is_adapter else f"checkpoint of epoch{self.record.epoch}"
        parts = f" ({', '.join(self.record.trained)})" if self.record.trained else ""
        return f"Training starts from the {what} {self.name}{parts} and not from the pretrained model."

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter of peft without captune's record."""
        return not self.record.frozen


def find_start(config: RunConfig, *, resuming: bool) -> StartCheckpoint | None:
    """The checkpoint that `train.start` names, downloaded if it is on the hub.

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
        return StartCheckpoint(str(copy), copy, read_record(copy), ancestors)
    folder = locate_checkpoint(name)
    if folder.resolve().is_relative_to(config.output.resolve()):
        raise ConfigError(
            f"train.start is {name}, which is inside of the output folder {config.output}; give another folder with "
            "output=..., or train this run for more epochs with a higher train.epochs."
        )
    record = read_record(folder) if (folder / RECORD).is_file() else _adapter_record(folder)
    read_header(tensor_file(folder))
    is_local = Path(name).expanduser().exists()
    described = _described(folder, record, str(folder.resolve()) if is_local else name)
    return StartCheckpoint(str(folder) if is_local else name, folder, record, (*record.ancestors, described))


def _adapter_record(folder: Path) -> CheckpointRecord:
    """What is known of an adapter of peft that captune did not train.

    Raises:
        WeightsError: its settings are broken, or are not those of plain LoRA.
    """
    path = folder / "adapter_config.json"
    try:
        settings = dict(load_json(path.read_text(encoding="utf-8")))
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read as the settings of LoRA: {error!r}; give another adapter."
        ) from error
    variants = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform")
    other = [name for name in variants if settings.get(name)]
    if settings.get("peft_type") != "LORA" or other:
        what = other[0] if other else f"peft_type {settings.get('peft_type')}"
        raise WeightsError(
            f"{folder} is an adapter with {what}, and a run starts from plain LoRA only; merge it into its base model "
            "(`merge_and_unload` of peft), and set model.path to the merged model."
        )
    names = read_header(folder / ADAPTER).tensors
    targets = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name})
    lora = {"r": rank, "alpha": alpha, "targets": targets, "dropout": float(settings.get("lora_dropout") or 0.0)}
    return CheckpointRecord(
        model=str(settings.get("base_model_name_or_path") or ""),
        frozen="",
        instruction="",
        conversation="",
        stop_symbol="",
        manifest_hash="",
        epoch=0,
        step=0,
        seed=0,
        captune="",
        lora=lora,
        kind="transformers",
        trained=("lora",),
    )


def _described(folder: Path, record: CheckpointRecord, name: str) -> dict[str, Any]:
    """What the record of a later checkpoint contains about this one."""
    has_record = (folder / RECORD).is_file()
    described: dict[str, Any] = {
        "checkpoint": name,
        "trained": trained_hash(folder)
        if has_record
        else hashlib.sha256(tensor_file(folder).read_bytes()).hexdigest()[:16],
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


def store_start(
    output: Path, start: StartCheckpoint, run: CheckpointRecord, save: Callable[[Path, CheckpointRecord], None]
) -> None:
    """Store the start checkpoint in the folder of a run.

    Args:
        output: folder of the run.
        start: the checkpoint.
        run: record of the checkpoints of the run.
        save: writes the parts that the run trains, which still have their first values, into a folder. This replaces a
            copy if the checkpoint has fewer parts, or is an adapter without a record.
    """
    with atomic_folder(output / "checkpoints" / START) as folder:
        if start.is_adapter or (run.kind == "transformers" and set(start.record.trained) != set(run.trained)):
            record = start.record
            save(folder, replace(run, epoch=record.epoch, step=record.step, ancestors=start.ancestors[:-1]))
        else:
            for path in start.folder.iterdir():
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
        (folder / _ORIGIN).write_text(
            json.dumps(start.ancestors, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def require_fitting_start(start: StartCheckpoint, config: RunConfig, source: ResolvedModel) -> None:
    """Refuse a start checkpoint that a run cannot continue, before anything is written or loaded.

    A run may train more parts than the checkpoint: those that the checkpoint does not have begin with the values of the
    base model, LoRA with its initial values. What the checkpoint has trained is never left out.

    Args:
        start: the checkpoint.
        config: of the run.
        source: the model of the run.

    Raises:
        WeightsError: it is a checkpoint of another model.
        ConfigError: it has other LoRA, or has trained parts that the run does not train.
    """
    record = start.record
    kind = kind_of_model(source)
    if kind is not None:
        require_kind(record, kind, Path(start.name))
    _require_same_base(start, source)
    if record.kind == "minigpt4":
        if record.lora is not None:
            _require_same_lora(start, config.train.lora)
        return
    parts = config.train.parts or ("lora",)
    _require_trained_parts(start, parts)
    if record.lora is not None:
        _require_same_lora(start, config.train.lora or DEFAULT_LORA)


def _require_trained_parts(start: StartCheckpoint, parts: tuple[str, ...]) -> None:
    """Refuse a run that does not train all parts which the start checkpoint has trained."""
    before = start.record.trained
    lost = [part for part in before if part not in parts]
    if not lost:
        return
    sentence = (
        f"train.parts is [{', '.join(parts)}], and the checkpoint {start.name} (train.start) has trained "
        f"[{', '.join(before)}]"
    )
    if bool(_COMPLETE & set(before)) != bool(_COMPLETE & set(parts)):
        raise ConfigError(
            f"{sentence}; set train.parts to these, or merge the checkpoint (captune export {start.name} --merge --out "
            "FOLDER), and set model.path to the merged model and train.start to null."
        )
    raise ConfigError(f"{sentence}; without {', '.join(lost)} its weights would be lost, so set train.parts to these.")


def _require_same_base(start: StartCheckpoint, source: ResolvedModel) -> None:
    """Refuse a model whose weights are known not to be those of the start checkpoint's base model.

    Both must be folders here; in other cases the fingerprint of the loaded model decides.

    Raises:
        WeightsError: they differ.
    """
    record = start.record
    if source.kind not in ("model", "hub") or record.parts is not None:
        return
    try:
        base = Path(locate_base(record.model, start.folder, record.relative_model))
    except WeightsError:
        return  # moved or deleted
    here = Path(source.path)
    if not (base.is_dir() and here.is_dir()) or os.path.realpath(base) == os.path.realpath(here):
        return
    # A MiniGPT-4's projection is always trained; names of other parts depend on the release of transformers.
    if not _COMPLETE & set(record.trained) and weights_differ(base, here, without=("projection.",)):
        raise WeightsError(
            f"{start.name} (train.start) was trained on the model {record.model}, and model.path is {source.name}, "
            f"which has other weights; set model.path to {record.model}, or start from a checkpoint of {source.name}."
        )


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
            f"train.lora is null, and the checkpoint {start.name} (train.start) has LoRA; set train.lora to {fitting}."
        )
    now = sorted(lora.targets)
    if start.is_adapter and now == ["all-linear"]:
        now = sorted(targets)  # compared with the model's layers when the tensors are loaded
    differences = [
        f"{name} is {value}, in the checkpoint {then}"
        for name, value, then in (
            ("rank", lora.rank, before["r"]),
            ("alpha", f"{lora.alpha:g}", f"{before['alpha']:g}"),
            ("targets", now, sorted(targets)),
        )
        if value != then
    ]
    if differences:
        raise ConfigError(
            f"train.lora differs from the LoRA of the checkpoint {start.name} (train.start): "
            f"{'; '.join(differences)}. Set train.lora to {fitting}."
        )
