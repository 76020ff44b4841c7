"""What stands between a person's images and words and the model's tensors: transform, vocabulary, prompt layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from captune.data.images import Picture, as_list, read_picture, to_pixels
from captune.errors import DataError
from captune.model.prompt import Conversation, OriginalFaults, PromptLayout, TokenSequence
from captune.model.tokenizer import Tokenizer, load_tokenizer
from captune.weights.pointers import refuse_part

if TYPE_CHECKING:
    from captune.model.configuration import MiniGPT4Config

__all__ = ["DEFAULT_INSTRUCTION", "ImageLike", "MiniGPT4Processor"]

IGNORED = -100
DEFAULT_INSTRUCTION = "Describe this image in detail."

ImageLike = Picture


class MiniGPT4Processor:
    """Images to pixels, instructions and captions to batches, ids to captions.

    Args:
        tokenizer: vocabulary of the language model.
        config: the model's configuration.

    Attributes:
        layout: lays out prompts, for training and generation alike.
        end_ids: ids of which each ends an answer: the stop symbol's, where it is one special token, the tokenizer's end
            of text, and those that the language model's generation_config.json names.
        instruction: what is asked where nobody says otherwise; a tuned adapter brings its own.
    """

    def __init__(self, tokenizer: Tokenizer, config: MiniGPT4Config) -> None:
        self.tokenizer = tokenizer
        self.instruction = DEFAULT_INSTRUCTION
        self.image_size = int(config.vision_config.image_size)
        wrapping = config.wrapping
        self.layout = PromptLayout(
            tokenizer,
            config.conversation if wrapping is None else Conversation(**wrapping),
            image_tokens=config.image_tokens,
            max_target_tokens=config.max_target_tokens,
        )
        self._ends = [i for i in (tokenizer.eos_id, *(config.end_ids or ())) if i is not None]
        self.end_ids = self._find_ends()

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: MiniGPT4Config | None = None, **hub_options: Any) -> Self:
        """Read the vocabulary that lies beside a model's weights.

        Args:
            folder: of the model, or its hub id.
            config: the model's configuration; by default it is read from there, too.
            hub_options: `revision`, `token`, `cache_dir`, ... for a hub id.
        """
        refuse_part(folder)
        if config is None:
            from captune.model.configuration import MiniGPT4Config

            config = MiniGPT4Config.from_pretrained(str(folder), **hub_options)
        return cls(load_tokenizer(folder, library=config.library_tokens, **hub_options), config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the vocabulary's files beside a model's weights."""
        self.tokenizer.save(Path(folder))

    def _find_ends(self) -> tuple[int, ...]:
        ends = list(self._ends)
        if not self.layout.stop_text:
            # A special token such as <end_of_turn> has no text to be found by; it ends decoding by its id.
            self.tokenizer.eos_id = self.layout.stop_ids[0]
            ends.insert(0, self.layout.stop_ids[0])
        return tuple(dict.fromkeys(i for i in ends if i < self.tokenizer.vocabulary_size))

    def converse(self, conversation: Conversation) -> None:
        """Wrap instructions in another conversation, such as the one that a checkpoint was trained with."""
        self.layout = PromptLayout(
            self.tokenizer,
            conversation,
            image_tokens=self.layout.image_tokens,
            max_target_tokens=self.layout.max_target_tokens,
            max_prompt_tokens=self.layout.max_prompt_tokens,
            faults=self.layout.faults,
        )
        self.end_ids = self._find_ends()

    def use(
        self,
        *,
        faults: OriginalFaults | None = None,
        max_target_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
    ) -> None:
        """Lay out prompts anew, with other limits or with faults of the original switched on.

        Args:
            faults: to be repeated; None is none.
            max_target_tokens: longest caption in tokens; by default as before.
            max_prompt_tokens: longest prompt in tokens, image included; None is no limit.
        """
        self.layout = PromptLayout(
            self.tokenizer,
            self.layout.conversation,
            image_tokens=self.layout.image_tokens,
            max_target_tokens=max_target_tokens or self.layout.max_target_tokens,
            max_prompt_tokens=max_prompt_tokens,
            faults=faults,
        )

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike] | None = None,
        text: str | Sequence[str] | None = None,
        answers: str | Sequence[str] | None = None,
        *,
        literal: bool = False,
    ) -> BatchFeature:
        """A batch that `MiniGPT4.forward` (with answers) or `generate` (without) takes.

        Args:
            images: I images, or None for text alone.
            text: what is asked: one instruction for all rows or one a row; by default `instruction`.
            answers: B captions to be learnt; without them the rows are prompts, padded on the left.
            literal: take `text` word for word as whole prompts, `<ImageHere>` where the image goes, instead of
                wrapping it in the model's conversation.

        Returns:
            `input_ids`, `attention_mask` (B, T), with answers `labels` (B, T), with images `pixel_values` (I, 3, S, S).

        Raises:
            DataError: the numbers of images, texts and answers do not agree, or an image cannot be read.
        """
        pictures = None if images is None else self.listed(images)
        asked = [self.instruction] if text is None else self.listed(text)
        told = None if answers is None else self.listed(answers)
        counts = {len(given) for given in (pictures, told) if given is not None} | ({len(asked)} - {1})
        if len(counts) > 1:
            raise DataError(f"There are {sorted(counts)} images, texts and answers; expected as many of each.")
        asked = asked * max(counts, default=1) if len(asked) == 1 else asked
        prompts = [self._prompt_ids(question, literal, pictures is not None) for question in asked]
        if told is None:
            rows = [TokenSequence(ids, len(ids)) for ids in prompts]
        else:
            rows = [self.layout.answered(ids, answer) for ids, answer in zip(prompts, told, strict=True)]
        batch: dict[str, Tensor] = self.pad(rows, left=told is None)
        if told is None:
            del batch["labels"]
        if pictures is not None:
            batch["pixel_values"] = self.pixels(pictures)
        return BatchFeature(batch)

    def _prompt_ids(self, question: str, literal: bool, with_image: bool) -> tuple[int, ...]:
        if literal:
            return self.layout.text_ids(question)
        if with_image:
            return self.layout.prompt(question).ids
        return self.layout.text_ids(self.layout.pieces(question, images=0))

    def pixels(self, images: ImageLike | Sequence[ImageLike]) -> Tensor:
        """Images as the original's deterministic transform makes them, (I, 3, S, S) float32.

        Raises:
            DataError: an image cannot be read; names the file.
        """
        return torch.from_numpy(
            np.stack([to_pixels(read_picture(image), self.image_size) for image in self.listed(images)])
        )

    @staticmethod
    def listed(given: Any) -> list[Any]:
        """One thing as a list of one; an array is one image unless it has a fourth dimension."""
        return as_list(given)[0]

    def pad(self, rows: Sequence[TokenSequence], *, left: bool = False) -> dict[str, Tensor]:
        """Rows of different length as one batch.

        Args:
            rows: B sequences.
            left: pad on the left, as generation needs it, instead of on the right.

        Returns:
            `input_ids`, `attention_mask` and `labels`, each (B, T) int64; labels are -100 where nothing is learnt.
        """
        length = max(len(row.ids) for row in rows)
        if self.layout.faults.dollars_are_padding and not left:
            # The original pads prompts and answers apart from each other.
            prompt_length = max(row.prompt_length for row in rows)
            length = prompt_length + max(len(row.ids) - row.prompt_length for row in rows)
        input_ids = torch.full((len(rows), length), self.layout.pad_id, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for index, row in enumerate(rows):
            start = length - len(row.ids) if left else 0
            end = start + len(row.ids)
            ids = torch.tensor(row.ids, dtype=torch.int64)
            input_ids[index, start:end] = ids
            attention_mask[index, start:end] = 1
            labels[index, start + row.prompt_length : end] = ids[row.prompt_length :]
            labels[index, [start + place for place in row.unlearnt]] = IGNORED
            attention_mask[index, [start + place for place in row.unseen]] = 0
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def batch_decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Rows of generated ids as captions, cut at the first id that ends an answer and at the stop symbol."""
        rows = ids.tolist() if isinstance(ids, Tensor) else ids
        return [self.layout.cut(self.layout.decode(self.before_end(row))) for row in rows]

    def before_end(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids of an answer in front of the first one that ends it."""
        return ids[: next((place for place, token in enumerate(ids) if token in self.end_ids), len(ids))]
