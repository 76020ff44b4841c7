"""Prompts and captions of a transformers model as rows of token ids, in the documented format of its family.

A row of training is the row that generation starts from, followed by the caption and the end of the turn:

    [ prompt with image tokens | caption | end of turn ]       the loss is on caption and end of turn

Tokens after the end of the turn, such as the newline of ChatML, are never generated and are no targets.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captune.captioner import ModelInputs, end_token_ids
from captune.common import closing_text, opened_block, without_empty_blocks
from captune.errors import DataError, WeightsError

__all__ = ["Conversation", "PromptRow", "concatenated", "is_constant"]

_CACHED_PROMPTS = 4096
"""Number of prompts whose inputs are cached: pairs of an image size and an instruction."""
_PIXELS = 1 << 12
"""Inputs of more floating-point numbers than this are pixels."""
_CACHED_CAPTIONS = 1 << 14
_PROBE_CAPTION = "A photo of a dog."
_ROLES = ("assistant", "model")
"""Names of the role that answers, in the order in which templates are tried."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt with its image, as inputs of the model for one row.

    Attributes:
        inputs: the processor's output: `input_ids` (1, P), pixels, sizes, token types, ...
        ends: for each input that has one number per token: its token dimension, and the part of one target token.
    """

    inputs: Mapping[str, Tensor]
    ends: Mapping[str, tuple[int, Tensor]]

    @property
    def length(self) -> int:
        """P, the number of prompt tokens."""
        ids = self.inputs.get("input_ids")
        return 0 if ids is None else ids.shape[1]

    def rows(self, targets: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
        """Inputs of one row for each caption, padded on the right.

        Args:
            targets: K rows of ids that follow the prompt.
            pad: id of padding.

        Returns:
            Inputs with K rows.
        """
        longest = max(map(len, targets))
        if "input_ids" not in self.inputs:
            raise WeightsError("The model has no prompt that a caption can follow; set model.instruction to a text.")
        inputs = {name: _repeat(value, len(targets)) for name, value in self.inputs.items()}
        for name, (dimension, end) in self.ends.items():
            inputs[name] = torch.cat(
                [inputs[name], *[_repeat(end, len(targets)).to(inputs[name])] * longest], dim=dimension
            )
        for row, ids in enumerate(targets):
            start, stop = self.length, self.length + len(ids)
            inputs["input_ids"][row, start:stop] = torch.tensor(ids, dtype=torch.int64)
            inputs["input_ids"][row, stop:] = pad
            inputs["attention_mask"][row, stop:] = 0
        return inputs


class Conversation:
    """Makes the rows of one model.

    Args:
        model: the model; only its configuration and its class are used.
        inputs: makes the inputs of prompts.
        instruction: of samples without a separate instruction; None is no instruction.

    Attributes:
        max_positions: of the text decoder; None if it has no limit.

    Raises:
        WeightsError: no answer follows the generation prompt in the model's chat template.
    """

    def __init__(self, model: Any, inputs: ModelInputs, instruction: str | None) -> None:
        self.inputs, self.instruction = inputs, instruction
        self.tokenizer = inputs.processor.tokenizer
        self.is_encoder_decoder = inputs.encodes_text
        self._ends, _ = end_token_ids(model, self.tokenizer)
        head = model.get_output_embeddings()
        # A token without logits, such as the end of a turn in a model that was not trained on turns, is no target.
        self._vocabulary = 1 << 62 if head is None else int(head.weight.shape[0])
        special = {str(token) for token in self.tokenizer.all_special_tokens}
        special |= {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        self._special = frozenset(token for token in special if token)
        text = model.config.get_text_config(decoder=True)
        self.max_positions: int | None = getattr(text, "max_position_embeddings", None)
        self._takes_suffix = "suffix" in inspect.signature(type(inputs.processor).__call__).parameters
        self._rows: OrderedDict[tuple[Any, ...], PromptRow] = OrderedDict()
        self._scalar_ends: dict[str | None, dict[str, tuple[int, Tensor]]] = {}
        self._endings: dict[str | None, tuple[str, str, str]] = {}
        self.target_ids = lru_cache(_CACHED_CAPTIONS)(self._target_ids)

    # Prompts

    def prompt(self, image: Image.Image, instruction: str | None = None) -> PromptRow:
        """The prompt of an image, with its pixels."""
        text = self._text(instruction)
        inputs = dict(self.inputs.batch([image], text))
        return PromptRow(inputs, self._row_of_size(image.size, instruction).ends)

    def prompt_of_size(self, size: tuple[int, int], instruction: str | None = None) -> PromptRow:
        """The prompt of any image of a size: pixels are one repeated number, all other inputs are the same."""
        return self._row_of_size(size, instruction)

    def _row_of_size(self, size: tuple[int, int], instruction: str | None) -> PromptRow:
        key = (size, self._or_default(instruction))
        if key not in self._rows:
            blank = Image.new("RGB", size, (127, 127, 127))
            text = self._text(instruction)
            inputs = dict(self.inputs.batch([blank], text))
            if self.is_encoder_decoder and "decoder_input_ids" in inputs:
                raise WeightsError(
                    f"{self.inputs.name} reads a prompt as the beginning of its caption, which captune does not train; "
                    "remove model.instruction and train.instructions."
                )
            ends = {} if self.is_encoder_decoder else self._ends_of(inputs, blank, instruction)
            self._rows[key] = PromptRow({name: _without_pixels(value) for name, value in inputs.items()}, ends)
            if len(self._rows) > _CACHED_PROMPTS:
                self._rows.popitem(last=False)
        self._rows.move_to_end(key)
        return self._rows[key]

    def _ends_of(
        self, prompt: Mapping[str, Tensor], image: Image.Image, instruction: str | None
    ) -> dict[str, tuple[int, Tensor]]:
        """Which inputs grow with the caption, and by what."""
        key = self._or_default(instruction)
        if key in self._scalar_ends:
            return self._scalar_ends[key]
        complete = self.complete(image, _PROBE_CAPTION, instruction)
        ends = {}
        for name, value in prompt.items():
            longer = complete[name]
            grown = [d for d in range(value.ndim) if longer.shape[d] != value.shape[d]]
            dimension = grown[0] if len(grown) == 1 else -1
            # Other tensors that grow have no part in the row, such as the ids of a Q-Former, which reads the prompt.
            if dimension >= 0 and "input_ids" in prompt and value.shape[dimension] == prompt["input_ids"].shape[1]:
                ends[name] = (dimension, longer.narrow(dimension, longer.shape[dimension] - 1, 1))
        if "input_ids" in prompt and "input_ids" not in ends:
            raise WeightsError(
                f"The processor of {self.inputs.name} returns as many tokens for a prompt as for the prompt with a "
                "caption, so it truncates texts; remove max_length and truncation from its settings."
            )
        if all(end.numel() == 1 for _, end in ends.values()):
            # Others, such as a mask of an image's tiles for each token, depend on the size of the image.
            self._scalar_ends[key] = ends
        return ends

    def complete(self, image: Image.Image, caption: str, instruction: str | None = None) -> dict[str, Tensor]:
        """The processor's output for the complete conversation, as the family documents it."""
        prompt = self._text(instruction)
        if self._takes_suffix:
            return dict(self.inputs.batch([image], prompt, suffix=[caption]))
        before, after, _ = self._ending(instruction)
        return dict(self.inputs.batch([image], f"{prompt or ''}{before}{caption}{after}", is_continued=False))

    # Captions

    def _target_ids(self, caption: str, instruction: str | None = None) -> tuple[int, ...]:
        """Ids of a caption and the end of the turn, as they follow the prompt.

        Raises:
            DataError: the tokenizer joins the end of the prompt and the caption; names the caption.
        """
        if self.is_encoder_decoder:
            ids = list(self.tokenizer(caption).input_ids)
        elif self._takes_suffix:
            ids = self._ids(caption, special=False)
        else:
            before, after, anchor = self._ending(instruction)
            first = self._ids(anchor)
            if self.has_special_token(caption):
                # The words of a caption are no image token, nor the end of its turn.
                both = self._ids(f"{anchor}{before}{caption}", special=False) + self._ids(after)
            else:
                both = self._ids(f"{anchor}{before}{caption}{after}")
            if both[: len(first)] != first:
                raise DataError(
                    f"The tokenizer of {self.inputs.name} joins the end of the prompt with the caption "
                    f"{caption[:60]!r}, so that training would start from another prompt than generation; change the "
                    "instruction."
                )
            ids = both[len(first) :]
        ids = [token for token in ids if token < self._vocabulary]
        stop = next((index for index, token in enumerate(ids) if index and token in self._ends), None)
        if stop is not None:
            return tuple(ids[: stop + 1])
        return (*ids, self._end)

    def has_special_token(self, caption: str) -> bool:
        """Whether a caption contains the text of a special token, which is trained on as text."""
        return any(token in caption for token in self._special)

    def _ids(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text without BOS and EOS.

        Args:
            text: the text.
            special: whether the text of a special token is that token.
        """
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids)

    @property
    def end_text(self) -> str:
        """The text of the token that ends generation."""
        return str(self.tokenizer.decode([self._end]))

    @property
    def _end(self) -> int:
        """The id that ends generation."""
        end = self.tokenizer.eos_token_id
        return int(end) if end in self._ends else min(self._ends)

    def _ending(self, instruction: str | None) -> tuple[str, str, str]:
        """The texts between prompt and caption and after the caption, and the prompt's text after its image."""
        key = self._or_default(instruction)
        if key not in self._endings:
            prompt = self._text(instruction) or ""
            anchor = self._after_image(prompt)
            if self.inputs.has_template:
                before, after = self._around_answer(prompt, key)
            else:
                before, after = " " if anchor and not anchor[-1].isspace() else "", ""
            self._endings[key] = (before, after, anchor)
        return self._endings[key]

    def _around_answer(self, prompt: str, instruction: str | None) -> tuple[str, str]:
        """The texts around an answer in a conversation that begins with a prompt.

        Raises:
            WeightsError: the conversation begins with another prompt than the one for generation.
        """
        for role in _ROLES:
            conversation = self.inputs.conversation(instruction, _PROBE_CAPTION, role)
            head, answer, after = conversation.rpartition(_PROBE_CAPTION)
            after = after.rstrip()
            if answer and head.startswith(prompt):
                return head[len(prompt) :], after
            # A template may differ in white space, or render an empty block of reasoning in one of both only. What
            # follows is then the prompt for generation, which is the one that captions are generated from.
            if answer and _without_reasoning(head) == _without_reasoning(prompt):
                return closing_text(opened_block(prompt)), after
        raise WeightsError(
            f"In the chat template of {self.inputs.name}, the prompt for generation is no beginning of a conversation "
            "with an answer, so that training would start from another prompt than generation."
        )

    def _after_image(self, prompt: str) -> str:
        """The text of a prompt after its last special token, which the tokenizer never joins with what follows."""
        last = max((prompt.rfind(token) + len(token) for token in self._special if token in prompt), default=0)
        return prompt[last:]

    @property
    def is_documented(self) -> bool:
        """Whether the family documents conversations with an answer; if not, it is the prompt and then the caption."""
        return not self.is_encoder_decoder and (self.inputs.has_template or self._takes_suffix)

    def is_target(self, token: int) -> bool:
        """Whether the model has a logit for a token, such as not for an end of turn that it was not trained on."""
        return token < self._vocabulary

    def check(self, image: Image.Image, caption: str, instruction: str | None = None) -> None:
        """Check that the processor's ids of the complete conversation begin with the prompt's and hold the targets.

        Raises:
            DataError: they do not; names the caption.
        """
        if not self.is_documented:
            return
        prompt = self.prompt_of_size(image.size, instruction)
        ids = self.complete(image, caption, instruction)["input_ids"][0].tolist()
        first = prompt.inputs["input_ids"][0].tolist()
        targets = list(self.target_ids(caption, instruction))
        rest = [token for token in ids[len(first) :] if token < self._vocabulary]
        agrees = rest[: len(targets)] == targets or (rest == targets[: len(rest)] and len(targets) - len(rest) <= 1)
        if ids[: len(first)] != first or not agrees:
            raise DataError(
                f"The processor of {self.inputs.name} renders the caption {caption[:60]!r} after another prompt in a "
                "conversation than for generation; training would not fit generation."
            )

    def require_fit(self, prompt: PromptRow, caption: str, ids: Sequence[int]) -> None:
        """Check that a caption fits into the model's positions; nothing is ever truncated.

        Args:
            prompt: before the caption.
            caption: the text, for the message.
            ids: of the caption.

        Raises:
            DataError: it does not; names the caption.
        """
        before = 0 if self.is_encoder_decoder else prompt.length
        if self.max_positions is not None and before + len(ids) > self.max_positions:
            raise DataError(
                f"The caption {caption[:60]!r} has {len(ids):,} tokens after a prompt of {before:,}, and "
                f"{self.inputs.name} has {self.max_positions:,} positions; captions are not truncated, so shorten or "
                "remove it."
            )

    def _text(self, instruction: str | None) -> str | None:
        return self.inputs.prompt(self._or_default(instruction))

    def _or_default(self, instruction: str | None) -> str | None:
        return self.instruction if instruction is None else instruction


def _without_reasoning(text: str) -> str:
    """A prompt without empty blocks of reasoning and without white space at its end."""
    return without_empty_blocks(text).rstrip()


def _repeat(value: Tensor, count: int) -> Tensor:
    """Inputs of `count` equal rows: images are concatenated along the first dimension in every family."""
    if is_constant(value):
        return value[:1].expand(count * value.shape[0], *value.shape[1:])
    return torch.cat([value] * count) if count > 1 else value.clone()


def concatenated(values: Sequence[Tensor]) -> Tensor:
    """Inputs of several images as those of one batch."""
    if all(map(is_constant, values)):
        return values[0][:1].expand(sum(value.shape[0] for value in values), *values[0].shape[1:])
    return torch.cat(list(values))


def is_constant(value: Tensor) -> bool:
    """Whether a tensor is one number in memory, which is expanded to its shape."""
    return value.numel() > 1 and not any(value.stride())


def _without_pixels(value: Any) -> Any:
    """Pixels as one number that is expanded to their shape, since those of a blank image may take 30 MB; or `value`."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > _PIXELS:
        return value.flatten()[:1].clone().squeeze().expand(value.shape)
    return value
