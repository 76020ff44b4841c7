"""The processor of a MiniGPT-4: images and texts to tensors, generated ids to captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from captune.data import ImageInput, as_list, read_image, to_pixels
from captune.errors import DataError
from captune.model.prompt import ChatTemplate, LegacyBugs, PromptLayout, TokenSequence
from captune.model.tokenizer import Tokenizer, load_tokenizer
from captune.weights import require_complete_model

if TYPE_CHECKING:
    from captune.model.configuration import MiniGPT4Config

__all__ = ["DEFAULT_INSTRUCTION", "MiniGPT4Processor"]

IGNORE_INDEX = -100
"""Label of a position that is no target, as everywhere in transformers."""

DEFAULT_INSTRUCTION = "Describe this image in detail."


class MiniGPT4Processor:
    """Image transform, tokenizer and prompt layout of a model.

    Args:
        tokenizer: vocabulary of the language model.
        config: the model's configuration.

    Attributes:
        layout: the prompt layout, for training and generation.
        end_ids: ids that end an answer: the stop symbol's if it is one special token, the tokenizer's EOS, and those
            in the language model's generation_config.json.
        instruction: the default instruction; loading a checkpoint sets the one that it was tuned with.
    """

    def __init__(self, tokenizer: Tokenizer, config: MiniGPT4Config) -> None:
        self.tokenizer = tokenizer
        self.instruction = DEFAULT_INSTRUCTION
        self.image_size = int(config.vision_config.image_size)
        wrapping = config.wrapping
        self.layout = PromptLayout(
            tokenizer,
            config.conversation if wrapping is None else ChatTemplate(**wrapping),
            image_tokens=config.image_tokens,
            max_target_tokens=config.max_target_tokens,
        )
        self._ends = [i for i in (tokenizer.eos_id, *(config.end_ids or ())) if i is not None]
        self.end_ids = self._find_ends()

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: MiniGPT4Config | None = None, **hub_options: Any) -> Self:
        """Load the processor of a model.

        Args:
            folder: of the model, or its hub id.
            config: the model's configuration; by default it is read from the folder.
            hub_options: `revision`, `token`, `cache_dir`, ... for a hub id.
        """
        require_complete_model(folder)
        if config is None:
            from captune.model.configuration import MiniGPT4Config

            config = MiniGPT4Config.from_pretrained(str(folder), **hub_options)
        return cls(load_tokenizer(folder, library=config.library_tokens, **hub_options), config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files into a model's folder."""
        self.tokenizer.save(Path(folder))

    def _find_ends(self) -> tuple[int, ...]:
        ends = list(self._ends)
        if not self.layout.stop_text:
            # A special token such as <end_of_turn> has no text; it ends decoding by its id.
            self.tokenizer.eos_id = self.layout.stop_ids[0]
            ends.insert(0, self.layout.stop_ids[0])
        return tuple(dict.fromkeys(i for i in ends if i < self.tokenizer.vocabulary_size))

    def use_chat_template(self, chat_template: ChatTemplate) -> None:
        """Use another chat template, such as the one that a checkpoint was trained with."""
        self.layout = PromptLayout(
            self.tokenizer,
            chat_template,
            image_tokens=self.layout.image_tokens,
            max_target_tokens=self.layout.max_target_tokens,
            max_prompt_tokens=self.layout.max_prompt_tokens,
            legacy_bugs=self.layout.legacy_bugs,
        )
        self.end_ids = self._find_ends()

    def configure(
        self,
        *,
        legacy_bugs: LegacyBugs | None = None,
        max_target_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
    ) -> None:
        """Change the limits of the prompt layout, and which bugs of the original it reproduces.

        Args:
            legacy_bugs: bugs to reproduce; None is none.
            max_target_tokens: longest caption in tokens; unchanged by default.
            max_prompt_tokens: longest prompt in tokens, image included; None is no limit.
        """
        self.layout = PromptLayout(
            self.tokenizer,
            self.layout.chat_template,
            image_tokens=self.layout.image_tokens,
            max_target_tokens=max_target_tokens or self.layout.max_target_tokens,
            max_prompt_tokens=max_prompt_tokens,
            legacy_bugs=legacy_bugs,
        )

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        text: str | Sequence[str] | None = None,
        answers: str | Sequence[str] | None = None,
        *,
        literal: bool = False,
    ) -> BatchFeature:
        """Make a batch for `MiniGPT4.forward` (with answers) or `generate` (without).

        Args:
            images: I images, or None for text only.
            text: one instruction for all rows, or one for each row; by default `instruction`.
            answers: B captions, the targets; without them the rows are prompts, padded on the left.
            literal: use `text` as complete prompts with `<ImageHere>` for the image, without the chat template.

        Returns:
            `input_ids`, `attention_mask` (B, T), with answers `labels` (B, T), with images `pixel_values` (I, 3, S, S).

        Raises:
            DataError: the numbers of images, texts and answers do not agree, or an image cannot be read.
        """
        image_list = None if images is None else as_list(images)[0]
        prompts = [self.instruction] if text is None else as_list(text)[0]
        answer_list = None if answers is None else as_list(answers)[0]
        counts = {len(items) for items in (image_list, answer_list) if items is not None} | ({len(prompts)} - {1})
        if len(counts) > 1:
            raise DataError(f"There are {sorted(counts)} images, texts and answers; expected as many of each.")
        prompts = prompts * max(counts, default=1) if len(prompts) == 1 else prompts
        prompt_ids = [self._prompt_ids(prompt, literal, image_list is not None) for prompt in prompts]
        if answer_list is None:
            rows = [TokenSequence(ids, len(ids)) for ids in prompt_ids]
        else:
            rows = [self.layout.with_answer(ids, answer) for ids, answer in zip(prompt_ids, answer_list, strict=True)]
        batch: dict[str, Tensor] = self.pad(rows, left=answer_list is None)
        if answer_list is None:
            del batch["labels"]
        if image_list is not None:
            batch["pixel_values"] = self.pixels(image_list)
        return BatchFeature(batch)

    def _prompt_ids(self, prompt: str, literal: bool, with_image: bool) -> tuple[int, ...]:
        if literal:
            return self.layout.text_ids(prompt)
        if with_image:
            return self.layout.prompt(prompt).ids
        return self.layout.text_ids(self.layout.prompt_pieces(prompt, images=0))

    def pixels(self, images: ImageInput | Sequence[ImageInput]) -> Tensor:
        """Apply the original's deterministic transform to images: (I, 3, S, S) float32.

        Raises:
            DataError: an image cannot be read; names the file.
        """
        return torch.from_numpy(
            np.stack([to_pixels(read_image(image), self.image_size) for image in as_list(images)[0]])
        )

    def pad(self, rows: Sequence[TokenSequence], *, left: bool = False) -> dict[str, Tensor]:
        """Pad rows of different lengths to one batch.

        Args:
            rows: B sequences.
            left: pad on the left, for generation, instead of on the right.

        Returns:
            `input_ids`, `attention_mask` and `labels`, each (B, T) int64; labels are -100 where there is no target.
        """
        length = max(len(row.ids) for row in rows)
        if self.layout.legacy_bugs.pad_is_dollar_sign and not left:
            # The original pads prompts and answers separately.
            prompt_length = max(row.prompt_length for row in rows)
            length = prompt_length + max(len(row.ids) - row.prompt_length for row in rows)
        input_ids = torch.full((len(rows), length), self.layout.pad_id, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for index, row in enumerate(rows):
            start = length - len(row.ids) if left else 0
            end = start + len(row.ids)
            ids = torch.tensor(row.ids, dtype=torch.int64)
            input_ids[index, start:end] = ids
            attention_mask[index, start:end] = 1
            labels[index, start + row.prompt_length : end] = ids[row.prompt_length :]
            labels[index, [start + position for position in row.masked]] = IGNORE_INDEX
            attention_mask[index, [start + position for position in row.excluded_from_attention]] = 0
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def batch_decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Captions of rows of generated ids, truncated at the first end id and at the stop symbol."""
        rows = ids.tolist() if isinstance(ids, Tensor) else ids
        return [self.layout.text_before_stop(self.layout.decode(self.trim_at_end(row))) for row in rows]

    def trim_at_end(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids before the first end id."""
        return ids[: next((index for index, token in enumerate(ids) if token in self.end_ids), len(ids))]
