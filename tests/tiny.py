"""A MiniGPT-4 of a few thousand random weights over any language model, for tests that need no shipped one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig

from captune.decoding.transformers_generate import StopSymbol
from captune.features import StoredImages, encode_images
from captune.model import MiniGPT4, MiniGPT4Config, MiniGPT4Processor

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


class Characters:
    """A vocabulary of printable ASCII characters; 1 begins a text and 2 ends it."""

    bos_id: int | None = 1
    eos_id: int | None = 2
    vocabulary_size = VOCABULARY

    def encode(self, text: str) -> list[int]:
        return [3 + (ord(character) - 32) % (VOCABULARY - 3) for character in text]

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        return self.encode("".join(pieces))

    def find_special_token(self, text: str) -> str | None:
        return None

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(chr(i - 3 + 32) for i in ids if i >= 3)

    def piece_id(self, piece: str) -> int | None:
        return self.encode(piece)[0] if len(piece) == 1 else None

    def save(self, folder: Path) -> None:
        (folder / "characters.txt").write_text("printable ASCII", encoding="utf-8")


def tiny_minigpt4(text: Any = None, *, scale: float = 3.0, seed: int = 0) -> MiniGPT4:
    """A model with random weights, large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    config = MiniGPT4Config(
        vision_config=Blip2VisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            initializer_range=0.1,
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            encoder_hidden_size=16,
            cross_attention_frequency=2,
        ),
        text_config=text or AutoConfig.for_model("llama", **SIZES),
        query_tokens=4,
        max_target_tokens=60,
    )
    model = MiniGPT4(config)
    with torch.no_grad():
        model.query_tokens.normal_()
        for parameter in model.llm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.processor = MiniGPT4Processor(Characters(), config)
    return model.eval()


class InMemory(list[Tensor]):
    """Features (Q, F) of images in memory, where stored ones are read from the disk."""

    def __getitem__(self, key: Any) -> Any:
        indices = range(*key.indices(len(self))) if isinstance(key, slice) else key
        return torch.stack([super(InMemory, self).__getitem__(index) for index in indices])

    def every(self, step: int, first: int = 0) -> InMemory:
        """Every so manieth image."""
        return InMemory(list.__getitem__(self, slice(first, None, step)))


def ending_minigpt4() -> MiniGPT4:
    """One whose captions end at all places: by the stop symbol, by the end of text, at the limit."""
    model = tiny_minigpt4(seed=0, scale=2.0)
    assert model.processor is not None
    with torch.no_grad():
        model.llm.lm_head.weight[model.processor.tokenizer.encode("#")[0]] *= 7
        model.llm.lm_head.weight[2] *= 2
    return model


def tiny_features(config: Any, files: Sequence[Path], root: Path, group: Any, **kwargs: Any) -> StoredImages:
    """Replaces `captune.features.features_of` where the model is `tiny_minigpt4`, which has no folder."""
    encoded: Any = InMemory(encode_images(tiny_minigpt4(), files))
    return StoredImages(encoded, tuple(range(len(files))), ())


def reference_captions(model: MiniGPT4, images: Any, prompt: str | None = None, *, max_new_tokens: int) -> list[str]:
    """Greedy captions of one batch of images by transformers' own `generate`."""
    new_ids = model.generate(
        **model.processor(images, prompt),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        stopping_criteria=[StopSymbol(model.processor)],
    )
    return list(model.processor.batch_decode(new_ids))
