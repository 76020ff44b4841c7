"""What a captioner is: something that takes images and an instruction and gives captions.

    captioner = Captioner.from_pretrained("toy")
    captioner("photo.jpg")                      one caption
    captioner(["a.jpg", "b.jpg"])               a list of them

The work has two halves, because they want other processors: `prepare` decodes one image, in as many threads as there
are; `generate` captions a batch of prepared images on the model's device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from captune.data.images import Picture, as_list
from captune.data.prefetch import prefetch_map
from captune.decoding import Caption, DecodingOptions
from captune.errors import NonFiniteScoresError, RefusedImagesError

__all__ = ["Captioner", "Picture"]


class Captioner(ABC):
    """Captions images.

    Attributes:
        name: what it was loaded from, for tables and messages.
        instruction: what is asked where nobody says otherwise; None where the model is asked nothing.
        fingerprint: tells models apart whose captions may differ.
    """

    name: str
    instruction: str | None
    fingerprint: str

    def prompt_text(self, instruction: str | None) -> str | None:
        """What a signature tells of the prompt: the instruction, or all of its text where the captioner knows that."""
        return instruction

    @property
    def follows_instructions(self) -> bool:
        """Whether it can be asked anything; otherwise its own instruction, or none, is the only one it knows."""
        return self.instruction is not None

    @staticmethod
    def from_pretrained(
        path: str | Path,
        *,
        dtype: str = "auto",
        device: str | None = None,
        instruction: str | None = None,
        fast_decode: bool = False,
        exif_rotation: bool = True,
    ) -> Captioner:
        """Load a captioner.

        Args:
            path: a captune model, a checkpoint of a training run, `toy`, a transformers image-text-to-text model
                (BLIP-2, Qwen-VL, SmolVLM, LLaVA, ...), or a peft adapter of one of these; a folder or a hub id.
            dtype: number format of the weights; auto is bfloat16 on a GPU and float32 on a CPU.
            device: such as `cuda:1`; by default this process's GPU (torchrun says which), else the CPU.
            instruction: what is asked of an image; by default what the model was tuned with.
            fast_decode: decode JPEG files with libjpeg-turbo and torch; a pixel may differ by one grey level.
            exif_rotation: turn images upright as their EXIF data say; the original MiniGPT-4 does not.

        Returns:
            The captioner, its model in eval mode.

        Raises:
            WeightsError: there is no such model, its weights are broken or do not fit it, or it captions no images.
            MissingExtraError: it needs a library that is not installed.
        """
        from captune.captioner.loading import load_captioner

        return load_captioner(
            path,
            dtype=dtype,
            device=device,
            instruction=instruction,
            fast_decode=fast_decode,
            exif_rotation=exif_rotation,
        )

    @abstractmethod
    def prepare(self, picture: Picture, name: str = "") -> Any:
        """Decode one image as the model wants it; may be called from several threads.

        Args:
            picture: the image.
            name: what messages call it; by default its path.

        Raises:
            DataError: it cannot be read; the message says why.
        """

    @abstractmethod
    def generate(
        self,
        prepared: Sequence[Any],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        keys: Sequence[str] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption images that `prepare` gave.

        Args:
            prepared: N of them.
            instruction: what is asked of every image; by default the captioner's own.
            options: how to decode; where the memory does not hold `batch_size` images, fewer are decoded at once.
            keys: what names each image's stream of draws when sampling; without, all draw the same numbers.
            on_progress: called with (done, N) as captions end.

        Returns:
            N captions, in float32 the same for an image whatever its batch is.

        Raises:
            RefusedImagesError: the model refuses some images; all others are captioned, and the error holds both.
        """

    def caption_files(
        self,
        files: Sequence[Path],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption image files, of which a few batches at a time are decoded.

        Args:
            files: N of them.
            instruction: what is asked of every image; by default the captioner's own.
            options: how to decode.
            on_progress: called with (done, N) as captions are there.

        Returns:
            N captions, in their order.

        Raises:
            DataError: an image cannot be read; names the file.
            RefusedImagesError: the model refuses some, or its scores of some are not numbers (NonFiniteScoresError);
                all others are captioned.
        """
        size = 4 * (options or DecodingOptions()).batch_size
        captions: list[Caption | None] = []
        reasons: dict[int, str] = {}
        kind = RefusedImagesError
        for start in range(0, len(files), size):
            prepared = [made for _, made in prefetch_map(files[start : start + size], self.prepare)]
            try:
                captions += self.generate(prepared, instruction, options)
            except RefusedImagesError as error:
                kind = type(error) if isinstance(error, NonFiniteScoresError) else kind
                reasons |= {start + place: reason for place, reason in error.reasons.items()}
                captions += error.captions
            if on_progress is not None:
                on_progress(len(captions), len(files))
        if reasons:
            raise kind(captions, reasons, [str(file) for file in files])
        return [caption for caption in captions if caption is not None]

    def stream(
        self, picture: Picture, instruction: str | None = None, options: DecodingOptions | None = None
    ) -> Iterator[str]:
        """Caption one image, piece by piece as the words come; the pieces joined are the caption.

        A model that cannot tell its words one by one gives them all at once.
        """
        yield self.generate([self.prepare(picture)], instruction, options)[0].text

    @overload
    def __call__(
        self, pictures: list[Any], instruction: str | None = None, options: DecodingOptions | None = None
    ) -> list[str]: ...

    @overload
    def __call__(
        self, pictures: Picture, instruction: str | None = None, options: DecodingOptions | None = None
    ) -> str: ...

    def __call__(
        self,
        pictures: Picture | Sequence[Picture],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
    ) -> str | list[str]:
        """Caption one image or several.

        Args:
            pictures: an image, or a list of images.
            instruction: what is asked of every image; by default the captioner's own.
            options: how to decode; greedy by default.

        Returns:
            A caption, or as many captions as images, in their order.

        Raises:
            DataError: an image cannot be read; names the file.
        """
        listed, is_one = as_list(pictures)
        prepared = [made for _, made in prefetch_map(listed, self.prepare)]
        texts = [caption.text for caption in self.generate(prepared, instruction, options)]
        return texts[0] if is_one else texts
