"""Checkpoints of a run: their folders and records, and the selection of one by its name or by its score.

    runs/photos                             the best checkpoint of a run
    runs/photos@epoch1                      that of an epoch; also @1, @epoch-001, @best and @last
    runs/photos/checkpoints/epoch-001       the same folder

Needs no torch, so that a command refuses a wrong name before its heavy imports.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from captune.errors import ConfigError, WeightsError
from captune.parsing import load_json

__all__ = [
    "ADAPTER",
    "BEST",
    "RECORD",
    "RUN_CONFIG",
    "TENSORS_HASH",
    "TRAINED",
    "BeforeTraining",
    "CheckpointRecord",
    "SelectedCheckpoint",
    "checkpoint_folder",
    "checkpoint_folders",
    "is_run",
    "read_record",
    "require_kind",
    "run_of",
    "score_before_training",
    "select_checkpoint",
    "selected_checkpoint",
    "tensor_file",
    "trained_hash",
]

RUN_CONFIG = "config.yaml"
BEST = "best"
"""Name of the link to the best checkpoint."""
_LAST = "last"
RECORD = "checkpoint.json"
"""Name of the file with the record of a checkpoint."""
TRAINED, ADAPTER = "trained.safetensors", "adapter_model.safetensors"
"""Names of the file with the trained tensors: captune's, and peft's."""
TENSORS_HASH = "sha256"
"""Key in the file of the record, of the hash of the trained tensors."""
_FORMAT = 1
_MODEL_FILES = ("config.json", "adapter_config.json", RECORD)
"""A folder with one of these is a model, adapter or checkpoint, also next to the config.yaml of another trainer."""
_OUTPUTS = ("checkpoints", "log.jsonl", "scores.json")
_BEFORE = ("pretrained", "start")
"""Names of the row before training."""
_METRIC = "CIDEr"
"""Selects the best epoch without `train.select`."""


@dataclass(frozen=True)
class SelectedCheckpoint:
    """A checkpoint of a run.

    Attributes:
        folder: `checkpoints/epoch-NNN` of the run.
        reason: why this one, for a message: "the best of 5 by CIDEr (0.912)".
    """

    folder: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.folder}, {self.reason}"


@dataclass(frozen=True)
class CheckpointRecord:
    """The content of `checkpoint.json`.

    Attributes:
        model: hub id or absolute folder of the frozen parts, or `toy` or `toy-vlm`.
        frozen: fingerprint of the frozen parts.
        instruction: the instruction in training.
        conversation: name of the chat template.
        stop_symbol: the text that ends an answer.
        manifest_hash: hash of the training manifest.
        epoch: finished epochs minus one; the first checkpoint is epoch 0.
        step: number of optimizer steps.
        seed: of the run.
        captune: version of captune that wrote it.
        format: version of this record.
        lora: `r`, `alpha`, `targets` and `dropout` of LoRA, if it was trained.
        wrapping: the fields of a `ChatTemplate` that is not in `CHAT_TEMPLATES`.
        parts: folders or hub ids of `llm` and `vision`, if the run joined these instead of loading a complete model.
        kind: of the model, "minigpt4" or "transformers".
        trained: parts of a transformers model that were trained, as `train.parts` names them.
        quantized: names of the parameters that were quantized in training, as in `quantized_names`; `frozen` leaves
            them out, so that the checkpoint also fits the model without quantization.
        max_pixels: largest number of pixels of an image; None is the processor's.
        min_pixels: smallest number of pixels of an image; None is the processor's.
        ancestors: the checkpoints that the run started from, the earliest first: `checkpoint` (folder), `trained` (hash
            of its tensors), `epoch`, `step`, `seed`, `instruction`, `manifest_hash`, and `manifest`, `split` and
            `train_images` if they are known.
        train_split: split of the training manifest, or several as "train,restval"; None in older records.
        relative_model: the folder of the frozen parts relative to the checkpoint's, for both to be moved.
    """

    model: str
    frozen: str
    instruction: str
    conversation: str
    stop_symbol: str
    manifest_hash: str
    epoch: int
    step: int
    seed: int
    captune: str
    format: int = _FORMAT
    lora: dict[str, Any] | None = None
    parts: dict[str, str] | None = None
    wrapping: dict[str, Any] | None = None
    kind: Literal["minigpt4", "transformers"] = "minigpt4"
    trained: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    max_pixels: int | None = None
    min_pixels: int | None = None
    ancestors: tuple[dict[str, Any], ...] = ()
    relative_model: str | None = None
    train_split: str | None = None

    def at(self, epoch: int, step: int) -> CheckpointRecord:
        """The same record at another point of the run."""
        return replace(self, epoch=epoch, step=step)


def read_record(folder: Path) -> CheckpointRecord:
    """Read the record of a checkpoint.

    Raises:
        WeightsError: the folder holds no checkpoint, or one that cannot be read.
    """
    path = folder / RECORD
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        if content.get("format") != _FORMAT:
            raise WeightsError(f"{path} has format {content.get('format')!r}; this captune reads format {_FORMAT}.")
        known = {field.name for field in fields(CheckpointRecord)}
        record = CheckpointRecord(**{name: value for name, value in content.items() if name in known})
        return replace(
            record,
            trained=tuple(record.trained),
            quantized=tuple(record.quantized),
            ancestors=tuple(record.ancestors),
        )
    except FileNotFoundError:
        siblings = sorted(other.parent.name for other in folder.parent.glob("epoch-*/checkpoint.json"))
        expected = f"there are {', '.join(siblings)}" if siblings else "expected a folder such as checkpoints/epoch-000"
        raise WeightsError(f"{folder} holds no checkpoint.json; {expected}.") from None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise WeightsError(f"{path} is broken: {error!r}; train this epoch again.") from error


def tensor_file(folder: Path) -> Path:
    """The file of a checkpoint's trained tensors."""
    return folder / (ADAPTER if (folder / ADAPTER).is_file() else TRAINED)


def trained_hash(folder: Path) -> str:
    """Hash of a checkpoint's trained tensors, 16 hexadecimal digits, from its record."""
    described = load_json((folder / RECORD).read_text(encoding="utf-8"))
    return str(described.get(TENSORS_HASH, ""))[:16]


def require_kind(record: CheckpointRecord, kind: str, folder: Path) -> None:
    """Refuse the checkpoint of another kind of model.

    Raises:
        WeightsError: the record is of another kind.
    """
    if record.kind != kind:
        names = {"minigpt4": "a MiniGPT-4", "transformers": "a transformers model"}
        raise WeightsError(
            f"{folder} is a checkpoint of {names.get(record.kind, record.kind)}, {record.model}, and not of "
            f"{names[kind]}; give a checkpoint of this model."
        )


def checkpoint_folder(output: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch is saved in a run."""
    return output / "checkpoints" / f"epoch-{epoch:03d}"


def checkpoint_folders(output: Path) -> list[Path]:
    """The checkpoints of a run in the order of training."""
    folders = [path for path in (output / "checkpoints").glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("epoch-")))


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run, and not of a model, an adapter, an evaluation or another program.

    It has a configuration that a run stored, or the outputs of a run next to any configuration, or checkpoints.
    """
    path = Path(folder).expanduser()
    if any((path / name).is_file() for name in _MODEL_FILES):
        return False
    return _has_config(path) or any((folder / RECORD).is_file() for folder in checkpoint_folders(path))


def _has_config(folder: Path) -> bool:
    from captune.config import STORED_HEADING

    try:
        with (folder / RUN_CONFIG).open(encoding="utf-8", errors="replace") as stream:
            is_stored = stream.readline(200).startswith(f"# {STORED_HEADING}")
    except OSError:
        return False
    # Runs of older versions have no heading.
    return is_stored or any((folder / name).exists() for name in _OUTPUTS)


def run_of(name: str | Path) -> tuple[Path, str | None] | None:
    """The folder of a run and the name of a checkpoint in `RUN` or `RUN@CHECKPOINT`; None if it names no run."""
    if is_run(name):
        return Path(name).expanduser(), None
    run, at, checkpoint = str(name).rpartition("@")
    return (Path(run).expanduser(), checkpoint) if at and run and is_run(run) else None


def selected_checkpoint(name: str | Path) -> SelectedCheckpoint | None:
    """The checkpoint that `RUN` or `RUN@CHECKPOINT` names; None if it is not the name of a run.

    Raises:
        WeightsError: the run has no such checkpoint.
    """
    named = run_of(name)
    return None if named is None else select_checkpoint(*named)


def select_checkpoint(run: Path, checkpoint: str | int | None = None) -> SelectedCheckpoint:
    """Select a checkpoint of a run.

    Args:
        run: its folder.
        checkpoint: number of an epoch, its name (`epoch1`, `epoch-001`), `best` or `last`; None is the best.

    Raises:
        WeightsError: the run has no such checkpoint.
    """
    folders = {int(folder.name.removeprefix("epoch-")): folder for folder in checkpoint_folders(run)}
    if not folders:
        raise WeightsError(f"{run} is a run without checkpoints; train it, or give a model.")
    name = BEST if checkpoint is None else str(checkpoint)
    if name == BEST:
        return _best(run, folders)
    if name == _LAST:
        return SelectedCheckpoint(folders[max(folders)], "the last one")
    number = re.fullmatch(r"(?:epoch-?)?(\d+)", name)
    if number is None or int(number.group(1)) not in folders:
        saved = ", ".join(f"epoch{epoch}" for epoch in folders)
        raise WeightsError(f"{run} has no checkpoint {name}; it has {saved}, best and last.")
    return SelectedCheckpoint(folders[int(number.group(1))], "as named")


def _best(run: Path, folders: dict[int, Path]) -> SelectedCheckpoint:
    """The checkpoint that the link names; without a link, the best row of the scores, or the last checkpoint."""
    count = f"{len(folders)} checkpoint" + "s" * (len(folders) > 1)
    metric, rows = _decisive_scores(run)
    before = score_before_training(run)
    note = "" if before is None else f"; {before.name} is better by {before.metric} ({before.score:.3f})"
    try:
        linked = run / "checkpoints" / os.path.basename(os.readlink(run / "checkpoints" / BEST))
    except OSError:
        linked = None
    if linked is not None and linked in folders.values():
        return SelectedCheckpoint(linked, f"the best of {count}{note}")
    scored = {row.epoch: row.score for row in rows if row.epoch in folders}
    if not scored:
        return SelectedCheckpoint(folders[max(folders)], f"the last of {count}, which have no scores")
    sign = _sign(metric)
    best = max((epoch for epoch in scored if epoch is not None), key=lambda epoch: (sign * scored[epoch], -epoch))
    return SelectedCheckpoint(folders[best], f"the best of {count} by {metric} ({scored[best]:.3f}){note}")


class BeforeTraining(NamedTuple):
    """The row before training, `pretrained` or `start`.

    Attributes:
        name: of the row.
        metric: by which epochs are selected.
        score: of the row.
    """

    name: str
    metric: str
    score: float


def score_before_training(run: Path) -> BeforeTraining | None:
    """The row before training where it is better than every epoch.

    Args:
        run: its folder. The metric is that of `train.select`, by default CIDEr or the first one.

    Returns:
        The row; None where an epoch is as good, scores are marked LEAK, or there are none.
    """
    metric, rows = _decisive_scores(run)
    sign = _sign(metric)
    first = next((row for row in rows if row.epoch is None and row.name in _BEFORE), None)
    epochs = [row.score for row in rows if row.epoch is not None]
    if first is None or not epochs or sign * first.score <= max(sign * score for score in epochs):
        return None
    return BeforeTraining(first.name, metric, first.score)


class _Scored(NamedTuple):
    name: str
    epoch: int | None
    score: float


def _decisive_scores(run: Path) -> tuple[str, list[_Scored]]:
    """The metric that selects the best epoch of a run, and the rows that have it, without those marked LEAK."""
    from captune.config import load_run_config

    try:
        rows = [dict(row) for row in load_json((run / "scores.json").read_text(encoding="utf-8"))["checkpoints"]]
        names = list(dict.fromkeys(name for row in rows for name in row["corpus"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _METRIC, []
    metric = _METRIC if _METRIC in names or not names else names[0]
    try:
        selected = load_run_config(run / RUN_CONFIG).train.select
    except ConfigError:
        selected = None
    if selected is not None:
        metric = next((name for name in names if name.lower() == selected.lower()), metric)
    scored = []
    for row in rows:
        score = row["corpus"].get(metric)
        if isinstance(score, float | int) and not row.get("leak"):
            scored.append(_Scored(str(row.get("name", "")), row.get("epoch"), float(score)))
    return metric, scored


def _sign(metric: str) -> int:
    """1 where a higher score is better, otherwise -1."""
    from captune.metrics import find_column

    column = find_column(metric)
    return 1 if column is None or column.higher_is_better else -1
