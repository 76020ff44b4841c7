"""The interface of captioning backends, which `Captioner` uses.

`prepare` decodes one image on the CPU, in several threads; `generate` captions a batch of prepared images on the
model's device.
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
