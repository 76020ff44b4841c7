"""One model in memory, and the tensors of every checkpoint that can be put into it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captune.apps.serving.captioners import ServedCaptioner
from captune.apps.serving.questions import Dialogue, Prompt, layout_prompt
from captune.captioner import Captioner, MiniGPT4Captioner
from captune.config import load_config
from captune.errors import WeightsError
from captune.model.adapter import load_trained
from captune.model.loading import load_model, pick_device

if TYPE_CHECKING:
    from captune.model import MiniGPT4, MiniGPT4Processor

__all__ = ["PRETRAINED", "ServedModel", "load_served"]

PRETRAINED = "pretrained"


class ServedModel:
    """A MiniGPT-4 whose trained tensors are swapped from one checkpoint to another.

    Args:
        captioner: the model, holding the tensors of the last checkpoint.
        checkpoints: name -> its trained tensors; all have the same names and shapes.
        instructions: name -> what it was tuned to be asked.

    Attributes:
        names: of the checkpoints, in the order of training.
    """

    def __init__(
        self,
        captioner: MiniGPT4Captioner,
        checkpoints: dict[str, dict[str, Tensor]],
        instructions: dict[str, str],
    ) -> None:
        self.captioner = captioner
        self.names = tuple(checkpoints)
        self.instructions = instructions
        self._checkpoints = checkpoints
        self._current = ""
        self.select(self.names[-1])

    @property
    def model(self) -> MiniGPT4:
        """The model, holding the checkpoint that was selected last."""
        return self.captioner.model

    @property
    def processor(self) -> MiniGPT4Processor:
        """Transform, vocabulary and prompt layout."""
        return self.captioner.processor

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        config = self.model.llm.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or 2048)

    def lay_out(self, dialogue: Dialogue, max_tokens: int) -> Prompt:
        """The prompt of a dialogue.

        Raises:
            APIError: 400 when prompt and answer together are longer than the model's context.
        """
        ids = layout_prompt(self.processor.layout, dialogue, self.context, max_tokens)
        return Prompt(ids, tokens=len(ids))

    def select(self, name: str) -> None:
        """Put a checkpoint's tensors into the model; nothing is done when they are there."""
        if name == self._current:
            return
        parameters = dict(self.model.trained_parameters())
        with torch.no_grad():
            for key, value in self._checkpoints[name].items():
                parameters[key].copy_(value)
        self._current = name

    def encode(self, pixels: Sequence[NDArray[np.float32]]) -> Tensor:
        """(N, Q, F) features of images from `captioner.prepare`; they are the same for every checkpoint."""
        return self.captioner.encode(pixels, len(pixels))


def load_served(path: str) -> ServedModel | ServedCaptioner:
    """Load what `captune serve` was given.

    Args:
        path: a run (its pretrained model and every epoch are served), a checkpoint of one, a captune model, any other
            captioner, a hub id, or `toy`.

    Raises:
        InputError: it is none of these, or broken.
    """
    folder = Path(path).expanduser()
    if (folder / "config.yaml").is_file():
        return _load_run(folder)
    captioner = Captioner.from_pretrained(path)
    name = re.sub(r"[^\w.-]+", "-", folder.resolve().name if folder.exists() else path.split("/")[-1])
    if not isinstance(captioner, MiniGPT4Captioner):
        return ServedCaptioner(captioner, name)
    return ServedModel(captioner, {name: _trained(captioner.model)}, {name: str(captioner.instruction)})


def _load_run(folder: Path) -> ServedModel:
    config = load_config(folder / "config.yaml")
    model = load_model(config.model, pick_device())
    found = [path for path in (folder / "checkpoints").glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name)]
    pretrained = _trained(model)
    checkpoints, instructions = {PRETRAINED: pretrained}, {PRETRAINED: config.model.instruction}
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("epoch-"))):
        record = load_trained(model, path)
        name = f"epoch{record.epoch}"
        checkpoints[name], instructions[name] = _trained(model), record.instruction
    for name, shape in {name: p.shape for name, p in model.trained_parameters()}.items():
        # LoRA came with a checkpoint; nought adds nothing, which is what the pretrained model has.
        pretrained.setdefault(name, torch.zeros(shape))
    if any(state.keys() != pretrained.keys() for state in checkpoints.values()):
        raise WeightsError(f"The checkpoints in {folder} trained other tensors than each other; serve them one by one.")
    captioner = MiniGPT4Captioner(model, name=str(folder), exif_rotation=config.exif_rotation)
    return ServedModel(captioner, checkpoints, instructions)


def _trained(model: MiniGPT4) -> dict[str, Tensor]:
    """A copy of the trained tensors, where they are."""
    return {name: parameter.detach().clone() for name, parameter in model.trained_parameters()}
