"""Prompt layout: instructions and captions to rows of token ids, for training and for generation.

In a row of token ids each image token is an `IMAGE_SLOT`:

    [BOS] text before the image | Q image slots | text after the image | caption and stop symbol
    '------------- prompt: generation continues it ------------------' '--- targets of training --'

A training sample is the generation prompt followed by its targets, so training and generation use the same prompt. As
in the original code, the text before the image and the text after it are tokenized separately. Special tokens and the
image placeholder are parsed in the template only. In an instruction or a caption they are plain text, except the first
placeholder of an instruction, which marks the position of the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from captune.errors import ConfigError
from captune.model.tokenizer import PlainText, Tokenizer

__all__ = [
    "CHAT_TEMPLATES",
    "IMAGE_PLACEHOLDER",
    "IMAGE_SLOT",
    "ChatTemplate",
    "LegacyBugs",
    "PromptLayout",
    "TokenSequence",
]

IMAGE_SLOT = -1
"""The id of an image token in a row of ids; no vocabulary has a negative id."""

IMAGE_PLACEHOLDER = "<ImageHere>"
"""The position of an image in the text of a prompt, as in the original code."""

_PLACEHOLDER = re.compile(rf"((?:<Img>)?{IMAGE_PLACEHOLDER}(?:</Img>)?)")
"""The placeholder with the tags around it, which are part of the template as well."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of one family of language models.

    Attributes:
        template: text with one `{}` for the instruction.
        stop_symbol: text that ends every answer; it is a target in training and ends decoding.
        bos: whether a prompt begins with the BOS token, if the vocabulary has one.
        answer_prefix: white space between prompt and answer that is tokenized with the answer.
        answer_suffix: white space between an answer and its stop symbol.
        later: text between the end of an answer and the next answer, with one `{}` for the question; None formats
            every question like the first, with another BOS.
        in_context: tokenize an answer together with the text before it; otherwise separately, as the original does.
    """

    template: str
    stop_symbol: str
    bos: bool = True
    answer_prefix: str = ""
    answer_suffix: str = ""
    later: str | None = None
    in_context: bool = False

    def wrap(self, instruction: str) -> str:
        """Text of the prompt for `instruction` and one image."""
        if IMAGE_PLACEHOLDER not in instruction:
            instruction = f"<Img>{IMAGE_PLACEHOLDER}</Img> {instruction}"
        return self.template.replace("{}", instruction, 1)


CHAT_TEMPLATES = {
    "vicuna-v0": ChatTemplate("###Human: {} ###Assistant: ", "###"),
    "llama-2": ChatTemplate("[INST] {} [/INST] ", "</s>"),
    "minigpt-v2": ChatTemplate("[INST] {} [/INST]", "</s>"),
    "alignment": ChatTemplate("{}", "\n"),
}
"""The chat templates of MiniGPT-4 (Vicuna), MiniGPT-4 (Llama-2), MiniGPT-v2 and stage-1 alignment."""


@dataclass(frozen=True)
class LegacyBugs:
    """Bugs of the original code that can be reproduced; all are off by default.

    Attributes:
        cut_stop_symbol: a caption that is too long loses its stop symbol, so its end is no target.
        clip_image: a prompt that is too long is cut from the right, including image tokens.
        double_bos: a prompt that contains the text of the BOS gets a second BOS.
        pad_is_dollar_sign: the padding token is "$$"; a "$$" in a caption is masked in training and lost in decoding.
    """

    cut_stop_symbol: bool = False
    clip_image: bool = False
    double_bos: bool = False
    pad_is_dollar_sign: bool = False


@dataclass(frozen=True)
class TokenSequence:
    """One row for the language model.

    Attributes:
        ids: T token ids, `IMAGE_SLOT` for each image token.
        prompt_length: number of prompt tokens; the other tokens are targets, except those in `masked`.
        truncated: whether the caption was too long and was truncated (the stop symbol is kept).
        masked: positions after the prompt that are no targets, such as later questions of a dialogue.
        excluded_from_attention: positions that the attention mask excludes; only a legacy bug sets any.
    """

    ids: tuple[int, ...]
    prompt_length: int
    truncated: bool = False
    masked: tuple[int, ...] = ()
    excluded_from_attention: tuple[int, ...] = ()

    @property
    def target_count(self) -> int:
        """Number of target tokens, stop symbol included."""
        return len(self.ids) - self.prompt_length - len(self.masked)


class PromptLayout:
    """Turns instructions and captions into rows of ids.

    Args:
        tokenizer: vocabulary of the language model.
        chat_template: a name in `CHAT_TEMPLATES`, or a `ChatTemplate`.
        image_tokens: Q, the number of tokens of an image.
        max_target_tokens: longest caption in tokens, stop symbol included.
        max_prompt_tokens: longest prompt in tokens, with the image and without BOS; None is no limit.
        legacy_bugs: bugs of the original code to reproduce.

    Raises:
        ConfigError: the chat template is unknown, or `max_target_tokens` leaves no room for a caption.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | ChatTemplate,
        *,
        image_tokens: int,
        max_target_tokens: int = 160,
        max_prompt_tokens: int | None = None,
        legacy_bugs: LegacyBugs | None = None,
    ) -> None:
        if isinstance(chat_template, str):
            if chat_template not in CHAT_TEMPLATES:
                known = ", ".join(CHAT_TEMPLATES)
                raise ConfigError(f"There is no chat template '{chat_template}'; expected one of: {known}.")
            chat_template = CHAT_TEMPLATES[chat_template]
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.image_tokens = image_tokens
        self.max_target_tokens = max_target_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.legacy_bugs = legacy_bugs or LegacyBugs()
        # Padding is masked, so any id will do; the original uses this word.
        dollars = tokenizer.piece_id("$$")
        self.pad_id: int = dollars or 0
        self._dollars = dollars if self.legacy_bugs.pad_is_dollar_sign else None
        self._prompts: dict[str, TokenSequence] = {}
        # The ids after a word: "###" has another id at the start of a text.
        word = tokenizer.encode("a")
        self.stop_ids: tuple[int, ...] = tuple(tokenizer.encode("a" + chat_template.stop_symbol)[len(word) :])
        # A special token such as <end_of_turn> has no text; the same characters in a caption do not end it.
        by_id = len(self.stop_ids) == 1 and not tokenizer.decode(self.stop_ids)
        self.stop_text = "" if by_id else chat_template.stop_symbol
        self._context = "x" + chat_template.template.partition("{}")[2]
        self._context_ids = tokenizer.encode(self._context)
        if max_target_tokens <= len(self.stop_ids):
            raise ConfigError(
                f"max_target_tokens is {max_target_tokens}, but the stop symbol '{chat_template.stop_symbol}' alone "
                f"takes {len(self.stop_ids)}; give room for a caption."
            )

    def text_ids(self, prompt: str | Sequence[str]) -> tuple[int, ...]:
        """Ids of a complete prompt text: BOS first, Q image slots for each `<ImageHere>`.

        Args:
            prompt: the text, or pieces of it; special tokens and the placeholder are not parsed in `PlainText` pieces.

        Raises:
            ConfigError: the prompt is longer than `max_prompt_tokens`.
        """
        pieces = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = self._stretches(pieces)
        bos = self.tokenizer.bos_id if self.chat_template.bos else None
        # A prompt that contains the text of the BOS has its id already; one BOS is enough.
        if bos is not None and ids[:1] == [bos] and not self.legacy_bugs.double_bos:
            ids.pop(0)
        limit = self.max_prompt_tokens
        if limit is not None and len(ids) > limit:
            if not self.legacy_bugs.clip_image:
                raise ConfigError(
                    f"The prompt {''.join(pieces)!r} takes {len(ids)} tokens, {self.image_tokens} of them the image's, "
                    f"and max_prompt_tokens is {limit}; shorten the instruction."
                )
            ids = ids[:limit]
        return tuple(ids) if bos is None else (bos, *ids)

    def prompt(self, instruction: str) -> TokenSequence:
        """The generation prompt for `instruction` and one image."""
        if instruction not in self._prompts:
            ids = self.text_ids(self.prompt_pieces(instruction))
            self._prompts[instruction] = TokenSequence(ids, prompt_length=len(ids))
        return self._prompts[instruction]

    def target_ids(self, caption: str) -> tuple[tuple[int, ...], bool]:
        """Ids of a caption and its stop symbol, and whether the caption was truncated."""
        ids = tuple(self._answer_ids(caption))
        if len(ids) <= self.max_target_tokens:
            return ids, False
        if self.legacy_bugs.cut_stop_symbol:
            return ids[: self.max_target_tokens], True
        return ids[: self.max_target_tokens - len(self.stop_ids)] + self.stop_ids, True

    def prompt_pieces(self, question: str, *, images: int | None = 1) -> list[str]:
        """The pieces of a prompt: those of the template, and the question as `PlainText`.

        Args:
            question: the question.
            images: number of placeholders in it that are parsed, from the first; None parses all. With 1, an image
                is put before a question without a placeholder; with 0, the prompt has no image.
        """
        before, _, after = self.chat_template.template.partition("{}")
        parts = _PLACEHOLDER.split(question, maxsplit=images or 0) if images != 0 else [question]
        if images == 1 and len(parts) == 1:
            before += f"<Img>{IMAGE_PLACEHOLDER}</Img> "
        pieces = [part if number % 2 else PlainText(part) for number, part in enumerate(parts)]
        return [before, *pieces, after]

    def prompt_text(self, instruction: str) -> str:
        """The prompt in a signature: the instruction for a template in `CHAT_TEMPLATES`, otherwise the text.

        The templates in `CHAT_TEMPLATES` never change; that of a chat model may change under the same name.
        """
        if self.chat_template in CHAT_TEMPLATES.values():
            return instruction
        return self.chat_template.wrap(instruction) + self.chat_template.answer_prefix

    def _stretches(self, pieces: Sequence[str]) -> list[int]:
        """Ids of pieces of text, with image slots; the texts between images are tokenized separately."""
        stretches: list[list[str]] = [[]]
        for piece in pieces:
            parts = [piece] if isinstance(piece, PlainText) else piece.split(IMAGE_PLACEHOLDER)
            stretches[-1].append(parts[0])
            stretches += [[part] for part in parts[1:]]
        ids: list[int] = []
        for number, stretch in enumerate(stretches):
            ids += [IMAGE_SLOT] * self.image_tokens * (number > 0)
            ids += self.tokenizer.encode_pieces(stretch)
        return ids

    def _answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer and its stop symbol."""
        chat = self.chat_template
        end = chat.answer_suffix + chat.stop_symbol
        if chat.in_context:
            context = self._context_ids
            ids = self.tokenizer.encode_pieces([self._context + chat.answer_prefix, PlainText(answer), end])
            if ids[: len(context)] == context:
                return ids[len(context) :]
        return self.tokenizer.encode_pieces([chat.answer_prefix, PlainText(answer), end])

    def sample(self, instruction: str, caption: str) -> TokenSequence:
        """A training sample: the generation prompt, then `caption` and the stop symbol as targets."""
        return self.with_answer(self.prompt(instruction).ids, caption)

    def with_answer(self, prompt_ids: tuple[int, ...], caption: str) -> TokenSequence:
        """A prompt's ids followed by `caption` and the stop symbol as targets."""
        targets, truncated = self.target_ids(caption)
        ids = prompt_ids + targets
        return TokenSequence(ids, len(prompt_ids), truncated, masked=self._dollar_positions(ids, len(prompt_ids)))

    def dialogue(self, turns: Sequence[tuple[str, str]]) -> TokenSequence:
        """Several questions about one image, every answer a target.

        Args:
            turns: questions with their answers. `<ImageHere>` in the first question is replaced by the image.

        Returns:
            The row. As in the original, each later question is formatted like the first and starts with a BOS.
            Turns that take more than `max_target_tokens` are truncated within an answer.
        """
        prompt = self.text_ids(self.prompt_pieces(turns[0][0], images=None))
        ids: list[int] = []
        targets: list[bool] = []
        for number, (question, answer) in enumerate(turns):
            question_ids: Sequence[int] = self._later_question(question) if number else ()
            answer_ids = self._answer_ids(answer)
            ids.extend([*question_ids, *answer_ids])
            targets.extend([False] * len(question_ids) + [True] * len(answer_ids))
        limit = self.max_target_tokens
        truncated = len(ids) > limit
        if truncated and not self.legacy_bugs.cut_stop_symbol:
            limit -= len(self.stop_ids)
            while limit and not targets[limit - 1]:
                limit -= 1
            ids, targets = [*ids[:limit], *self.stop_ids], [*targets[:limit], *[True] * len(self.stop_ids)]
        row = prompt + tuple(ids[: self.max_target_tokens])
        questions = [len(prompt) + i for i, is_target in enumerate(targets[: self.max_target_tokens]) if not is_target]
        dollars = self._dollar_positions(row, len(prompt))
        masked = tuple(sorted({*questions, *dollars}))
        return TokenSequence(row, len(prompt), truncated, masked, excluded_from_attention=dollars)

    def dialogue_prompt(self, turns: Sequence[tuple[str, str]], question: str) -> TokenSequence:
        """The generation prompt for the next answer of a dialogue, laid out as by `dialogue`.

        Args:
            turns: earlier questions with their answers; any question may contain `<ImageHere>`.
            question: the question to answer.
        """
        first = turns[0][0] if turns else question
        ids = list(self.text_ids(self.prompt_pieces(first, images=None)))
        later = [text for text, _ in turns[1:]] + ([question] if turns else [])
        for (_, answer), text in zip(turns, later, strict=True):
            ids += self._answer_ids(answer)
            ids += self._later_question(text)
        return TokenSequence(tuple(ids), len(ids))

    def _later_question(self, question: str) -> list[int]:
        """Ids of a question that is not the first, by default formatted like the first, with another BOS."""
        pieces = self.prompt_pieces(question, images=None)
        later = self.chat_template.later
        if later is not None:
            pieces[0], _, pieces[-1] = later.partition("{}")
        ids = self._stretches(pieces)
        bos = self.tokenizer.bos_id if self.chat_template.bos and later is None else None
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _dollar_positions(self, ids: tuple[int, ...], start: int) -> tuple[int, ...]:
        """Positions from `start` on of "$$", which the original treats as padding."""
        if self._dollars is None:
            return ()
        return tuple(i for i in range(start, len(ids)) if ids[i] == self._dollars)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        return self.tokenizer.decode([i for i in ids if i != self._dollars])

    def text_before_stop(self, text: str) -> str:
        """The caption in a generated text: what precedes the stop symbol."""
        return (text.split(self.stop_text, 1)[0] if self.stop_text else text).strip()
