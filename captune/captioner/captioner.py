"""`Captioner`, which captions images with any supported model, and the interface of its backends.

captioner = Captioner.from_pretrained("toy")
captioner("photo.jpg")                      one caption
captioner(["a.jpg", "b.jpg"])               a list of them
captioner("photo.jpg", beams=3)             with a decoding option
captioner.show("photo.jpg")                 the image with its caption, in a notebook

The model's libraries are imported when a model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, Unpack, overload

from captune.captioner.display import CaptionedImages
from captune.common import quiet_libraries
from captune.data import ImageInput, as_list, prefetch_map
from captune.decoding import Caption, DecodingKeywords, DecodingOptions, with_keywords
from captune.errors import ConfigError, NonFiniteScoresError, RefusedImagesError
from captune.preflight import extra_imports

__all__ = ["CaptionBackend", "Captioner"]

_PREFETCHED_BATCHES = 4
"""Batches of image files that are decoded ahead."""


class CaptionBackend(Protocol):
    """A model with its processor that captions images.

    `prepare` decodes one image on the CPU, in several threads; `generate` captions a batch of prepared images on the
    model's device.
    """

    @property
    def name(self) -> str:
        """Path or hub id of the model, for tables and messages."""
        ...

    @property
    def instruction(self) -> str | None:
        """The default instruction; None if the model takes none."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs between models whose captions may differ."""
        ...

    @property
    def follows_instructions(self) -> bool:
        """Whether it accepts any instruction, not only its default or none."""
        ...

    def prompt_text(self, instruction: str | None) -> str | None:
        """The prompt in a signature: the instruction, or the complete text of the prompt."""
        ...

    def prepare(self, image: ImageInput, name: str = "") -> Any:
        """Decode one image for `generate`; thread-safe.

        Args:
            image: the image.
            name: of the image in messages; by default its path.

        Raises:
            DataError: it cannot be read; with the reason.
        """
        ...

    def generate(
        self,
        prepared: Sequence[Any],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        keys: Sequence[str] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption prepared images.

        Args:
            prepared: N results of `prepare`.
            instruction: for every image; by default `instruction` of the backend.
            options: decoding options; `batch_size` is halved if memory runs out.
            keys: seed of the random numbers of each image in sampling; by default all images use the same numbers.
            on_progress: called with (done, N) when captions are complete.

        Returns:
            N captions; in float32 the caption of an image does not depend on its batch.

        Raises:
            RefusedImagesError: some images cannot be captioned; the error contains the captions of the others.
        """
        ...

    def stream(
        self, image: ImageInput, instruction: str | None = None, options: DecodingOptions | None = None
    ) -> Iterator[str]:
        """Caption one image and yield the text in pieces, or at once if the model cannot stream."""
        ...


class Captioner:
    """Captions images.

    Args:
        backend: the model that captions.
    """

    def __init__(self, backend: CaptionBackend) -> None:
        if isinstance(backend, (str, os.PathLike)):
            name = repr(os.fspath(backend))
            raise ConfigError(f"Captioner takes a backend; load a model with Captioner.from_pretrained({name}).")
        self.backend = backend

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        device: str | None = None,
        instruction: str | None = None,
        fast_decode: bool = False,
        exif_rotation: bool = True,
        base: str | Path | None = None,
    ) -> Self:
        """Load a captioner.

        Args:
            path: a captune model, a training run (its best checkpoint, or `RUN@epoch1`), a checkpoint of one, `toy`, a
                transformers image-text-to-text model (BLIP-2, Qwen-VL, SmolVLM, LLaVA, ...), or a peft adapter of one
                of these; a folder or a hub id.
            dtype: of the weights; auto is bfloat16 on a GPU and float32 on a CPU.
            device: such as `cuda:1`; by default this process's GPU (`LOCAL_RANK` of torchrun) or the CPU.
            instruction: the default instruction; by default the one that the model was tuned with.
            fast_decode: decode JPEG files with libjpeg-turbo and torch; a pixel may differ by one grey level.
            exif_rotation: apply the EXIF rotation of images; the original MiniGPT-4 does not.
            base: folder or hub id of the base model of a checkpoint or adapter; by default the recorded one.

        Returns:
            The captioner with its model in eval mode.

        Raises:
            WeightsError: the model does not exist, is broken, or does not caption images.
            MissingExtraError: it needs a library that is not installed.
        """
        with extra_imports("Captioner.from_pretrained", "train"), quiet_libraries():
            from captune.captioner.loading import load_backend

            backend = load_backend(
                path,
                dtype=dtype,
                device=device,
                instruction=instruction,
                fast_decode=fast_decode,
                exif_rotation=exif_rotation,
                base=base,
            )
        return cls(backend)

    def __repr__(self) -> str:
        instruction = "" if self.instruction is None else f", instruction={self.instruction!r}"
        return f"{type(self).__name__}({self.name!r}{instruction})"

    @property
    def name(self) -> str:
        """Path or hub id of the model, for tables and messages."""
        return self.backend.name

    @property
    def instruction(self) -> str | None:
        """The default instruction; None if the model takes none."""
        return self.backend.instruction

    @property
    def fingerprint(self) -> str:
        """Differs between models whose captions may differ."""
        return self.backend.fingerprint

    @property
    def follows_instructions(self) -> bool:
        """Whether it accepts any instruction; see `CaptionBackend.follows_instructions`."""
        return self.backend.follows_instructions

    def prompt_text(self, instruction: str | None) -> str | None:
        """The prompt in a signature; see `CaptionBackend.prompt_text`."""
        return self.backend.prompt_text(instruction)

    def prepare(self, image: ImageInput, name: str = "") -> Any:
        """Decode one image for `generate`; see `CaptionBackend.prepare`."""
        return self.backend.prepare(image, name)

    def generate(
        self,
        prepared: Sequence[Any],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        keys: Sequence[str] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption prepared images; see `CaptionBackend.generate`."""
        return self.backend.generate(prepared, instruction, options, keys=keys, on_progress=on_progress)

    def stream(
        self,
        image: ImageInput,
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        **decoding: Unpack[DecodingKeywords],
    ) -> Iterator[str]:
        """Caption one image and yield the text in pieces; see `CaptionBackend.stream` and `__call__`."""
        return self.backend.stream(image, instruction, with_keywords(options, decoding))

    def caption_files(
        self,
        files: Sequence[str | Path],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        **decoding: Unpack[DecodingKeywords],
    ) -> list[Caption]:
        """Caption image files, a few batches at a time.

        Args:
            files: N image files.
            instruction: for every image; by default `instruction` of the captioner.
            options: decoding options.
            on_progress: called with (done, N) after each part.
            **decoding: decoding options as keywords, which win over `options`.

        Returns:
            N captions, in the order of `files`.

        Raises:
            DataError: an image cannot be read; names the file.
            RefusedImagesError: some images cannot be captioned, or their scores are not finite (NonFiniteScoresError);
                the error contains the captions of the others.
        """
        options = with_keywords(options, decoding)
        size = _PREFETCHED_BATCHES * (options or DecodingOptions()).batch_size
        captions: list[Caption | None] = []
        reasons: dict[int, str] = {}
        kind = RefusedImagesError
        for start in range(0, len(files), size):
            prepared = [item for _, item in prefetch_map(files[start : start + size], self.prepare)]
            try:
                captions += self.generate(prepared, instruction, options)
            except RefusedImagesError as error:
                kind = type(error) if isinstance(error, NonFiniteScoresError) else kind
                reasons |= {start + index: reason for index, reason in error.reasons.items()}
                captions += error.captions
            if on_progress is not None:
                on_progress(len(captions), len(files))
        if reasons:
            raise kind(captions, reasons, [str(file) for file in files])
        return [caption for caption in captions if caption is not None]

    @overload
    def __call__(
        self,
        images: list[Any],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        **decoding: Unpack[DecodingKeywords],
    ) -> list[str]: ...

    @overload
    def __call__(
        self,
        images: ImageInput,
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        **decoding: Unpack[DecodingKeywords],
    ) -> str: ...

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        **decoding: Unpack[DecodingKeywords],
    ) -> str | list[str]:
        """Caption one image or several.

        Args:
            images: an image (a path, the bytes of a file, a Pillow image, an array of uint8), or a list of images.
            instruction: for every image; by default `instruction` of the captioner.
            options: decoding options; greedy by default.
            **decoding: decoding options as keywords, such as `beams=3`, which win over `options`.

        Returns:
            A caption, or a list of captions in the order of the images.

        Raises:
            DataError: an image cannot be read; names the file.
            ConfigError: there is no such decoding option, or its value is invalid.
        """
        items, is_one = as_list(images)
        options = with_keywords(options, decoding)
        prepared = [item for _, item in prefetch_map(items, self.prepare)]
        texts = [caption.text for caption in self.generate(prepared, instruction, options)]
        return texts[0] if is_one else texts

    def show(
        self,
        images: ImageInput | Sequence[ImageInput],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        **decoding: Unpack[DecodingKeywords],
    ) -> CaptionedImages:
        """Caption one image or several for display: a notebook shows each image with its caption.

        Args:
            images: as in `__call__`.
            instruction: as in `__call__`.
            options: as in `__call__`.
            **decoding: as in `__call__`.

        Returns:
            The images with their captions; `captions` has the texts.

        Raises:
            InputError: as `__call__`.
        """
        items, _ = as_list(images)
        return CaptionedImages(items, self(items, instruction, options, **decoding))
