"""Checkpoints of tuned transformers models: peft's own format, with captune's record.

    adapter_config.json, adapter_model.safetensors   LoRA, and the projector if it was trained
    trained.safetensors                              instead of these, if complete parts were trained
    checkpoint.json                                  the model, frozen parts, prompt and data of the training
    README.md                                        a model card

Tensors have the dtype that the model computes with: bfloat16 on a GPU and float32 on a CPU. peft, transformers and
vLLM read the adapter; none of the files is needed by the others.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from captune.captioner import probe_scores, require_effect
from captune.errors import WeightsError
from captune.hub import locate_model
from captune.model import load_tuned, read_trained, save_trained
from captune.run_checkpoints import ADAPTER, CheckpointRecord, tensor_file
from captune.vlm.card import tuned_card
from captune.vlm.model import ImageTextModel
from captune.weights import adapter_tensors, quantized_names

__all__ = ["CheckpointSwapper", "load_adapter", "save_adapter"]

logger = logging.getLogger(__name__)


def save_adapter(folder: Path, model: ImageTextModel, record: CheckpointRecord) -> None:
    """Write a checkpoint into an existing folder.

    Args:
        folder: of the checkpoint.
        model: with its trained parts.
        record: of the checkpoint.
    """
    record = replace(record, kind="transformers", quantized=quantized_names(model.model))
    if model.adapter is None:
        state = {name: parameter.detach().cpu().contiguous() for name, parameter in model.trained_parameters()}
        save_trained(folder, state, record)
    else:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_tensors(model.adapter).items()}
        save_trained(folder, tensors, record, ADAPTER)
        config = copy.copy(model.adapter.peft_config["default"])
        config.inference_mode = True
        config.base_model_name_or_path = _absolute(record.model)
        config.save_pretrained(folder)
    (folder / "README.md").write_text(tuned_card(record), encoding="utf-8")


def _absolute(name: str) -> str:
    """A hub id, or the absolute path of a model's folder, which other libraries read from any directory."""
    try:
        path = Path(locate_model(name))
    except WeightsError:
        return name
    return str(path.absolute()) if path.is_dir() else name


def load_adapter(model: ImageTextModel, folder: Path, *, check_effect: bool = True) -> CheckpointRecord:
    """Load a checkpoint into its base model.

    Args:
        model: with the trained parts of the checkpoint, or without any, which are then set as in the checkpoint.
        folder: `checkpoints/epoch-NNN` of a run.
        check_effect: refuse LoRA that changes no score.

    Returns:
        The record of the checkpoint.

    Raises:
        WeightsError: the checkpoint is broken, or belongs to another base model; its tensors are not those of the
            trained parts; or it changes no score.
    """
    record, model.adapter = load_tuned(model.model, folder, model.adapter)
    if check_effect and model.adapter is not None:
        require_effect(model.adapter, folder, lambda: probe_scores(model.backend))
    return record


class CheckpointSwapper:
    """Loads one checkpoint after the other into a model, whose frozen weights stay in memory.

    Args:
        model: without trained parts.

    Attributes:
        current: the checkpoint that is loaded; None before the first.
    """

    def __init__(self, model: ImageTextModel) -> None:
        self._model = model
        self._initial: dict[str, Tensor] = {}
        self.current: Path | None = None

    def load(self, checkpoint: Path | None) -> None:
        """Load a checkpoint; None restores the model before training.

        Raises:
            WeightsError: the checkpoint is broken, or belongs to another model.
        """
        if checkpoint == self.current:
            return
        # A checkpoint that cannot be loaded leaves a mixture.
        self.current = Path()
        model, adapter = self._model, self._model.adapter
        if adapter is not None:
            # Disabled layers are skipped, so that the scores are the base model's, bit for bit.
            base = adapter.base_model
            base.disable_adapter_layers() if checkpoint is None else base.enable_adapter_layers()
        if checkpoint is not None:
            if not self._initial and tensor_file(checkpoint).name != ADAPTER:
                self._keep_initial(checkpoint)
            load_adapter(model, checkpoint, check_effect=False)
            if adapter is None and model.adapter is not None:
                self._warn_without_effect(checkpoint)
            model.eval()
        elif self._initial:
            model.load_trained_state(self._initial)
        self.current = checkpoint

    def _keep_initial(self, checkpoint: Path) -> None:
        """Keep the tensors that a checkpoint with complete parts replaces."""
        names = read_trained(checkpoint).keys()
        parameters = self._model.model.named_parameters()
        self._initial = {name: p.detach().cpu().clone() for name, p in parameters if name in names}

    def _warn_without_effect(self, checkpoint: Path) -> None:
        try:
            require_effect(self._model.adapter, checkpoint, lambda: probe_scores(self._model.backend))
        except WeightsError:
            logger.warning("%s changes no score; its captions are those of the pretrained model.", checkpoint)
