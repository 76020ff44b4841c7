"""The model of a run in evaluation: loaded once, with the trained tensors of one checkpoint after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from captune.captioner import MiniGPT4Backend, probe_images
from captune.config import RunConfig
from captune.decoding import Caption
from captune.distributed import DistributedContext
from captune.evaluation.scoring import Evaluation
from captune.features import PixelSource, encode_images, features_of, image_features_of
from captune.hub import resolve_model
from captune.model import LANGUAGE, default_device, load_model, load_trained, restore_chat_template
from captune.parsing import load_json
from captune.run_checkpoints import CheckpointRecord, read_record, trained_hash
from captune.vlm import (
    COMPUTATION_FILE,
    CaptionGenerator,
    CheckpointSwapper,
    is_image_text_model,
    load_image_text_model,
)

__all__ = ["RunModel", "load_run_model"]

Progress = Callable[[int, int], None]


class RunModel(Protocol):
    """The model of a run."""

    @property
    def instruction(self) -> str | None:
        """The instruction of the run; None if the model takes none."""
        ...

    def prompt_text(self, instruction: str | None) -> str | None:
        """The prompt in a signature; see `CaptionBackend.prompt_text`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs between checkpoints whose captions may differ."""
        ...

    def load(self, checkpoint: Path | None) -> None:
        """Load a checkpoint's tensors; None restores the model before training, or the checkpoint that the run started
            from.

        Raises:
            WeightsError: the checkpoint is broken, or belongs to another model.
        """
        ...

    def images(self, files: Sequence[Path], on_progress: Progress) -> Any:
        """Images or their features, for `caption`, which takes all of them or some: `images[indices]`.

        Args:
            files: N image files.
            on_progress: called with (done, count) while features are computed.

        Raises:
            DataError: one cannot be read; names the file.
        """
        ...

    def caption(
        self,
        evaluation: Evaluation,
        images: Any,
        instruction: str | None,
        on_progress: Progress,
        *,
        keys: Sequence[str] | None = None,
    ) -> list[Caption]:
        """Caption images with the decoding options of an evaluation.

        Args:
            evaluation: has the options.
            images: N images, from `images`.
            instruction: for every image.
            on_progress: called with (done, N) as captions are ready.
            keys: seed of the random numbers of each image in sampling.

        Raises:
            NonFiniteScoresError: the scores of some images are not numbers.
        """
        ...


def load_run_model(
    config: RunConfig, evaluation: Evaluation, checkpoints: Sequence[Path], *, stored: bool = True
) -> RunModel:
    """Load the model of a run as it was before training.

    Args:
        config: of the run.
        evaluation: whose protocol may set the instruction.
        checkpoints: that will be loaded into it.
        stored: features of the images are in the run's store, or are added to it; otherwise they are computed only for
            this evaluation.
    """
    records = [read_record(folder) for folder in checkpoints]
    if config.model.llm is None and is_image_text_model(resolve_model(config.model)):
        return _ImageTextRun(config, evaluation, checkpoints, records, stored)
    return _MiniGPT4Run(config, evaluation, checkpoints, records, stored)


class _MiniGPT4Run:
    """A MiniGPT-4, whose images are features.

    Its prompts get the chat template of the first checkpoint, so that the model before training is prompted as its
    checkpoints are.
    """

    def __init__(
        self,
        config: RunConfig,
        evaluation: Evaluation,
        checkpoints: Sequence[Path],
        records: Sequence[CheckpointRecord],
        stored: bool,
    ) -> None:
        self._config, self._stored = config, stored
        self.instruction: str | None = evaluation.instruction
        device = default_device()
        # Stored features replace the towers.
        self._model = load_model(config.model, device, parts=LANGUAGE) if stored else load_model(config.model, device)
        start = _start_of(config, checkpoints)
        if start is not None:
            load_trained(self._model, start)
        if records:
            restore_chat_template(self._model, records[0].wrapping, checkpoints[0])
        self._initial = self._model.trained_state()

    def prompt_text(self, instruction: str | None) -> str | None:
        assert self._model.processor is not None
        return None if instruction is None else self._model.processor.layout.prompt_text(instruction)

    @property
    def fingerprint(self) -> str:
        return MiniGPT4Backend(self._model, exif_rotation=self._config.exif_rotation).fingerprint

    def load(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            load_trained(self._model, checkpoint)
        else:
            self._model.load_trained_state(self._initial)

    def images(self, files: Sequence[Path], on_progress: Progress) -> Any:
        exif = self._config.exif_rotation
        if not self._stored:
            size = self._config.evaluate.batch_size
            return encode_images(self._model, files, batch_size=size, exif_rotation=exif, on_progress=on_progress)
        dist, root = DistributedContext(default_device()), self._config.feature_folder
        stored = features_of(self._config.model, files, root, dist, exif_rotation=exif, on_progress=on_progress)
        return stored.require_all("evaluation images")

    def caption(
        self,
        evaluation: Evaluation,
        images: Any,
        instruction: str | None,
        on_progress: Progress,
        *,
        keys: Sequence[str] | None = None,
    ) -> list[Caption]:
        return evaluation.caption(self._model, images, on_progress, instruction=instruction, keys=keys)


class _ImageTextRun:
    """A transformers model; its images are pixels, or features if the run computed its losses from them."""

    def __init__(
        self,
        config: RunConfig,
        evaluation: Evaluation,
        checkpoints: Sequence[Path],
        records: Sequence[CheckpointRecord],
        stored: bool,
    ) -> None:
        self._config = config
        self._source = resolve_model(config.model)
        instruction = evaluation.images.rules.instruction or config.model.custom_instruction
        self._model = load_image_text_model(self._source, default_device(), instruction=instruction)
        self._generator = CaptionGenerator(self._model)
        self.instruction: str | None = self._model.conversation.instruction
        # Features depend on the projector and on the tower.
        fixed = bool(records) and all(record.trained == ("lora",) for record in records)
        self._stored = (
            stored
            and fixed
            and _stores_features(checkpoints[0].parent.parent)
            and self._model.find_features()
            and self._generator.supports(evaluation.options, probe_images()[0])
        )
        self._swapper = CheckpointSwapper(self._model)
        self._start = _start_of(config, checkpoints)
        self._swapper.load(self._start)

    def prompt_text(self, instruction: str | None) -> str | None:
        return self._model.backend.prompt_text(instruction)

    @property
    def fingerprint(self) -> str:
        base = self._model.backend.fingerprint
        base += "" if self._config.exif_rotation else "-stored"
        loaded = self._swapper.current
        return base if loaded is None else f"{base}-{trained_hash(loaded)}"

    def load(self, checkpoint: Path | None) -> None:
        self._swapper.load(self._start if checkpoint is None else checkpoint)

    def images(self, files: Sequence[Path], on_progress: Progress) -> Any:
        exif = self._config.exif_rotation
        if not self._stored:
            return PixelSource(files, exif)
        dist, root = DistributedContext(default_device()), self._config.feature_folder
        stored = image_features_of(
            self._model, self._source, files, root, dist, exif_rotation=exif, on_progress=on_progress
        )
        return stored.require_all("evaluation images")

    def caption(
        self,
        evaluation: Evaluation,
        images: Any,
        instruction: str | None,
        on_progress: Progress,
        *,
        keys: Sequence[str] | None = None,
    ) -> list[Caption]:
        return evaluation.caption_images(self._generator, images, on_progress, instruction=instruction)


def _start_of(config: RunConfig, checkpoints: Sequence[Path]) -> Path | None:
    """The checkpoint from which a run started, in the run's folder."""
    if config.train.start is None or not checkpoints:
        return None
    return checkpoints[0].parent / "start"


def _stores_features(run: Path) -> bool:
    """Whether the losses of a run were computed from stored features."""
    try:
        return bool(load_json((run / COMPUTATION_FILE).read_text(encoding="utf-8"))["features"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
