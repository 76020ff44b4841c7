"""What stands between a person's images and words and the model's tensors: transform, vocabulary, prompt layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from captune.model.prompt import PromptLayout, TokenSequence
from captune.model.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captune.model.configuration import MiniGPT4Config

__all__ = ["MiniGPT4Processor"]

IGNORED = -100


class MiniGPT4Processor:
    """Images to pixels, instructions and captions to batches, ids to captions.

    Args:
        tokenizer: vocabulary of the language model.
        config: the model's configuration.
    """

    def __init__(self, tokenizer: Tokenizer, config: MiniGPT4Config) -> None:
        self.tokenizer = tokenizer
        self.image_size = int(config.vision_config.image_size)
        self.layout = PromptLayout(
            tokenizer,
            config.conversation,
            image_tokens=config.image_tokens,
            max_target_tokens=config.max_target_tokens,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: MiniGPT4Config, **hub_options: Any) -> Self:
        """Read the vocabulary that lies beside a model's weights."""
        return cls(load_tokenizer(folder, **hub_options), config)

    def save_pretrained(self, folder: Path) -> None:
        """Write the vocabulary's files beside a model's weights."""
        self.tokenizer.save(folder)

    def pad(self, rows: Sequence[TokenSequence], *, left: bool = False) -> dict[str, Tensor]:
        """Rows of different length as one batch.

        Args:
            rows: B sequences.
            left: pad on the left, as generation needs it, instead of on the right.

        Returns:
            `input_ids`, `attention_mask` and `labels`, each (B, T) int64; labels are -100 where nothing is learnt.
        """
        length = max(len(row.ids) for row in rows)
        input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for index, row in enumerate(rows):
            start = length - len(row.ids) if left else 0
            end = start + len(row.ids)
            ids = torch.tensor(row.ids, dtype=torch.int64)
            input_ids[index, start:end] = ids
            attention_mask[index, start:end] = 1
            labels[index, start + row.prompt_length : end] = ids[row.prompt_length :]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
