"""What every captioning model implements; `Captioner` is the same for users, whatever is behind it.

The work has two halves that need different processors: `prepare` decodes one image, in several threads; `generate`
captions a batch of prepared images on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from captune.data import ImageInput
from captune.decoding import Caption, DecodingOptions

__all__ = ["CaptionBackend"]


class CaptionBackend(Protocol):
    """A model, with its processor, that captions images."""

    @property
    def name(self) -> str:
        """What it was loaded from, for tables and messages."""
        ...

    @property
    def instruction(self) -> str | None:
        """The instruction that is used where none is passed; None if the model takes none."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs between models whose captions may differ."""
        ...

    @property
    def follows_instructions(self) -> bool:
        """Whether it takes any instruction; otherwise its default one, or none, is the only one it knows."""
        ...

    def prompt_text(self, instruction: str | None) -> str | None:
        """The prompt in a signature: the instruction, or the complete text if the backend knows it."""
        ...

    def prepare(self, image: ImageInput, name: str = "") -> Any:
        """Decode one image into the form that `generate` takes; may be called from several threads.

        Args:
            image: the image.
            name: of the image in messages; by default its path.

        Raises:
            DataError: it cannot be read; the message says why.
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
            options: how to decode; if `batch_size` images do not fit into memory, fewer are decoded at once.
            keys: seeds of each image's random numbers when sampling; without them all images use the same numbers.
            on_progress: called with (done, N) as captions end.

        Returns:
            N captions; in float32 the caption of an image does not depend on its batch.

        Raises:
            RefusedImagesError: the model refuses some images; all others are captioned, and the error holds both.
        """
        ...

    def stream(
        self, image: ImageInput, instruction: str | None = None, options: DecodingOptions | None = None
    ) -> Iterator[str]:
        """Caption one image and yield the text in pieces, or at once if the model cannot stream."""
        ...
