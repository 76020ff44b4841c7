"""Models that are served: a MiniGPT-4 with the tensors of its checkpoints, or any captioner; and their images."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captune.apps.serving.jobs import Pixels
from captune.apps.serving.messages import Dialogue, Prompt, layout_prompt
from captune.apps.serving.schema import APIError
from captune.captioner import Captioner, MiniGPT4Backend, TransformersBackend
from captune.config import load_stored_config
from captune.errors import DataError, WeightsError
from captune.hub import resolve_model
from captune.model import IMAGE_PLACEHOLDER, default_device, load_model, load_trained
from captune.run_checkpoints import checkpoint_folders, is_run, read_record
from captune.vlm import CheckpointSwapper, ImageTextModel, is_image_text_model, load_image_text_model

if TYPE_CHECKING:
    from captune.model import MiniGPT4, MiniGPT4Processor

__all__ = ["PRETRAINED", "ImagePool", "ServedCaptioner", "ServedModel", "load_served"]

_CONTEXT = 4096
"""Most tokens of prompt and answer; how many the prompt takes is known to the model's processor only."""


class ServedCaptioner:
    """Any captioner, served under one name.

    Args:
        captioner: the captioner.
        name: the model name in requests.

    Attributes:
        names: that name.
        instructions: name -> the instruction for requests without a text; empty for a model without prompts.
    """

    def __init__(self, captioner: Captioner, name: str) -> None:
        self.captioner = captioner
        self.names: tuple[str, ...] = (name,)
        self.instructions = {name: captioner.instruction or ""}
        self.context = _CONTEXT

    @property
    def described(self) -> str:
        """Name and size of the model, for people."""
        return _described(self.captioner.name, getattr(self.captioner.backend, "model", None))

    def select(self, name: str) -> None:
        """Use the model with this name; there is one."""

    def lay_out(self, dialogue: Dialogue, max_tokens: int) -> Prompt:
        """The question of a dialogue; only the tokens of its words are counted, since those of an image depend on it.

        Raises:
            APIError: 400 for more than one question or image.
        """
        if dialogue.turns:
            raise APIError(400, "This model answers one question and continues no dialogue.", param="messages")
        if len(dialogue.images) != 1:
            raise APIError(
                400, f"This model captions one image, and the messages hold {len(dialogue.images)}.", param="messages"
            )
        question = dialogue.question.replace(f"<Img>{IMAGE_PLACEHOLDER}</Img>", "").strip()
        tokenizer = getattr(getattr(self.captioner, "processor", None), "tokenizer", None)
        return Prompt((), question, len(tokenizer(question).input_ids) if question and tokenizer is not None else 0)


PRETRAINED = "pretrained"


class ServedRun(ServedCaptioner):
    """The run of a transformers model: the pretrained model and every epoch, each under its name.

    Args:
        model: without trained parts.
        checkpoints: name -> folder.
        exif_rotation: apply the EXIF rotation of images.
    """

    def __init__(self, model: ImageTextModel, checkpoints: Mapping[str, Path], *, exif_rotation: bool = True) -> None:
        backend = TransformersBackend(
            model.model,
            model.processor,
            name=model.name,
            instruction=model.backend.instruction,
            exif_rotation=exif_rotation,
        )
        super().__init__(Captioner(backend), PRETRAINED)
        self.names = (PRETRAINED, *checkpoints)
        self.instructions = dict.fromkeys(self.names, backend.instruction or "")
        self._checkpoints = dict(checkpoints)
        self._swapper = CheckpointSwapper(model)
        # A broken checkpoint is refused before the server starts.
        for folder in checkpoints.values():
            self._swapper.load(folder)

    def select(self, name: str) -> None:
        """Load a checkpoint's tensors into the model, unless they are loaded."""
        self._swapper.load(self._checkpoints.get(name))


class ServedModel:
    """A MiniGPT-4 whose trained tensors are swapped from one checkpoint to another.

    Args:
        captioner: the model, with the tensors of the last checkpoint.
        checkpoints: name -> its trained tensors; those that one lacks (LoRA) are zero.
        instructions: name -> the instruction that it was tuned with.

    Attributes:
        names: of the checkpoints, in the order of training.
    """

    def __init__(
        self,
        captioner: MiniGPT4Backend,
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
        """The model with the checkpoint that was selected last."""
        return self.captioner.model

    @property
    def described(self) -> str:
        """Name and size of the model, for people."""
        return _described(self.captioner.name, self.model)

    @property
    def processor(self) -> MiniGPT4Processor:
        """Transform, vocabulary and prompt layout."""
        return self.captioner.processor

    @property
    def context(self) -> int:
        """Limit on the tokens of prompt plus answer."""
        config = self.model.llm.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or 2048)

    def lay_out(self, dialogue: Dialogue, max_tokens: int) -> Prompt:
        """The prompt of a dialogue.

        Raises:
            APIError: 400 when prompt plus answer are longer than the model's context.
        """
        ids = layout_prompt(self.processor.layout, dialogue, self.context, max_tokens)
        return Prompt(ids, tokens=len(ids))

    def select(self, name: str) -> None:
        """Load a checkpoint's tensors into the model, unless they are loaded."""
        if name == self._current:
            return
        self.model.load_trained_state(self._checkpoints[name])
        self._current = name

    def encode(self, pixels: Sequence[NDArray[np.float32]]) -> Tensor:
        """(N, Q, F) features of images from `captioner.prepare`; they are the same for every checkpoint."""
        return self.captioner.encode(pixels, len(pixels))


def _described(name: str, model: Any) -> str:
    """Name and number of parameters, such as "blip2, 3.7 billion parameters"; a folder is shown without its parents."""
    short = Path(name).name if Path(name).is_absolute() else name
    if not isinstance(model, nn.Module):
        return short
    count = sum(parameter.numel() for parameter in model.parameters())
    if count >= 1e9:
        return f"{short}, {count / 1e9:.1f} billion parameters"
    return f"{short}, {count / 1e6:.1f} million parameters"


def load_served(path: str, base: str | None = None) -> ServedModel | ServedCaptioner:
    """Load the model of `captune serve`.

    Args:
        path: a run (its pretrained model and every epoch are served), a checkpoint of one, a captune model, any other
            captioner, a hub id, or `toy`.
        base: folder or hub id of the base model of a run, checkpoint or adapter, if it has moved.

    Raises:
        InputError: it is none of these, or broken.
    """
    folder = Path(path).expanduser()
    if (folder / "config.yaml").is_file() and is_run(folder):
        return _load_run(folder, base)
    captioner = Captioner.from_pretrained(path, base=base)
    name = re.sub(r"[^\w.-]+", "-", folder.resolve().name if folder.exists() else path.split("/")[-1])
    backend = captioner.backend
    if not isinstance(backend, MiniGPT4Backend):
        return ServedCaptioner(captioner, name)
    return ServedModel(backend, {name: _trained(backend.model)}, {name: backend.instruction})


def _load_run(folder: Path, base: str | None) -> ServedModel | ServedRun:
    config = load_stored_config(folder, [] if base is None else [f"model.path={base}"])
    epochs = checkpoint_folders(folder)
    source = resolve_model(config.model)
    if is_image_text_model(source):
        tuned = load_image_text_model(source, default_device(), instruction=config.model.custom_instruction)
        names = {f"epoch{read_record(path).epoch}": path for path in epochs}
        return ServedRun(tuned, names, exif_rotation=config.exif_rotation)
    model = load_model(config.model, default_device())
    checkpoints, instructions = {PRETRAINED: _trained(model)}, {PRETRAINED: config.model.instruction}
    for path in epochs:
        record = load_trained(model, path)
        name = f"epoch{record.epoch}"
        checkpoints[name], instructions[name] = _trained(model), record.instruction
    if len({frozenset(state) for name, state in checkpoints.items() if name != PRETRAINED}) > 1:
        raise WeightsError(f"The checkpoints in {folder} hold different trained tensors; serve them one by one.")
    captioner = MiniGPT4Backend(model, name=str(folder), exif_rotation=config.exif_rotation)
    return ServedModel(captioner, checkpoints, instructions)


def _trained(model: MiniGPT4) -> dict[str, Tensor]:
    """Copies of the trained tensors on their device."""
    return {name: parameter.detach().clone() for name, parameter in model.trained_parameters()}


class ImagePool:
    """Decodes image files in threads, a few at a time so that memory is bounded.

    Args:
        served: its captioner prepares the images.
        threads: files decoded at once; one of the largest accepted takes a few hundred MB while it is decoded.
    """

    def __init__(self, served: ServedModel | ServedCaptioner, threads: int = 2) -> None:
        self._served = served
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="captune-images")

    async def pixels(self, files: Sequence[bytes]) -> tuple[Pixels, ...]:
        """Pixels of image files, in their order.

        Raises:
            APIError: 400 for one that is broken.
        """
        loop = asyncio.get_running_loop()
        return tuple(
            [await loop.run_in_executor(self._threads, self._prepare, n, data) for n, data in enumerate(files, 1)]
        )

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _prepare(self, number: int, data: bytes) -> Pixels:
        try:
            return Pixels.of(self._served.captioner.prepare(data, f"#{number}"))
        except DataError as error:
            raise APIError(400, str(error), code="invalid_image", param="messages") from None
