"""The captioning backend of MiniGPT-4."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captune.captioner.jpeg_decoder import TurboJpegDecoder
from captune.data import ImageInput, read_image, to_pixels
from captune.decoding import Caption, DecodingOptions, Request, generate_captions, in_batches, stream_text
from captune.model import MiniGPT4, MiniGPT4Processor
from captune.weights import full_hash

__all__ = ["MiniGPT4Backend"]


class MiniGPT4Backend:
    """Captions with a MiniGPT-4.

    Args:
        model: in eval mode with its processor.
        name: path or hub id, for messages.
        instruction: the default instruction; by default the one that the model was tuned with.
        fast_decode: decode JPEG files with libjpeg-turbo and torch.
        exif_rotation: apply the EXIF rotation of images; the original does not.
    """

    def __init__(
        self,
        model: MiniGPT4,
        *,
        name: str = "model",
        instruction: str | None = None,
        fast_decode: bool = False,
        exif_rotation: bool = True,
    ) -> None:
        if model.processor is None:
            raise ValueError("The model has no processor; load it with from_pretrained or load_official.")
        self.model = model
        self.processor: MiniGPT4Processor = model.processor
        self.name = name
        self.instruction: str = instruction or self.processor.instruction
        self.fingerprint = f"{model.frozen_fingerprint()}-{full_hash(model.trained_parameters())}-{model.llm.dtype}"
        if model.config.wrapping is not None:
            # Captions depend on the chat template, too.
            text = json.dumps(asdict(self.processor.layout.chat_template), sort_keys=True)
            self.fingerprint += f"-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self._size = int(model.config.vision_config.image_size)
        self._fast = TurboJpegDecoder() if fast_decode else None
        if fast_decode:
            self.fingerprint += "-fast"
        self._exif = exif_rotation
        if exif_rotation:
            # Earlier releases ignored the EXIF rotation, and their fingerprints have no suffix.
            self.fingerprint += "-upright"

    @property
    def follows_instructions(self) -> bool:
        """True: it accepts any instruction."""
        return True

    def prompt_text(self, instruction: str | None) -> str | None:
        """The complete prompt if it comes from a chat template; see `CaptionBackend.prompt_text`."""
        return None if instruction is None else self.processor.layout.prompt_text(instruction)

    def prepare(self, image: ImageInput, name: str = "") -> NDArray[np.float32]:
        """(3, S, S) float32 pixels, as the original's deterministic transform makes them."""
        made = None if self._fast is None else self._fast.square(image, self._size, exif=self._exif)
        return to_pixels(read_image(image, name, exif=self._exif), self._size) if made is None else made

    def generate(
        self,
        prepared: Sequence[Any],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        keys: Sequence[str] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption pixels; see `CaptionBackend.generate`."""
        if not prepared:
            return []
        settings = options or DecodingOptions()
        features = self.encode(prepared, settings.batch_size)
        return generate_captions(
            self.model, features, instruction or self.instruction, settings, keys=keys, on_progress=on_progress
        )

    @torch.inference_mode()
    def encode(self, prepared: Sequence[NDArray[np.float32]], batch_size: int) -> Tensor:
        """(N, Q, F) features of N images' pixels; half as many at once where the memory does not hold `batch_size`."""
        batches = in_batches(prepared, batch_size, self.model.encode_pixels)
        return torch.cat([features for _, features in batches])

    def stream(
        self, image: ImageInput, instruction: str | None = None, options: DecodingOptions | None = None
    ) -> Iterator[str]:
        """Caption one image, piece by piece; see `CaptionBackend.stream`."""
        features = self.encode([self.prepare(image)], 1)
        prompt = self.processor.layout.prompt(instruction or self.instruction).ids
        yield from stream_text(self.model, Request(0, prompt, features), options or DecodingOptions())
