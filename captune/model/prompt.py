"""The one place that lays out a prompt, for training and for generation alike.

A sequence is a row of token ids in which every image token is an `IMAGE_SLOT`:

    [BOS] text before the image | Q image slots | text after the image | caption and stop symbol
    '------------------ prompt: generation starts from it -----------' '--- targets of training --'

A training sample is the generation prompt followed by its targets, so the two cannot drift apart. As in the original
code each stretch of text is tokenised by itself, so that the ids do not depend on what the image is replaced by.
Special tokens and the image's placeholder are read in the template; in an instruction and a caption they are text, but
for the first placeholder of an instruction, which says where the image goes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

from captune.errors import ConfigError
from captune.model.tokenizer import Tokenizer, Words

__all__ = [
    "CHAT_TEMPLATES",
    "IMAGE_PLACEHOLDER",
    "IMAGE_SLOT",
    "ChatTemplate",
    "OriginalFaults",
    "PromptLayout",
    "TokenSequence",
]

IMAGE_SLOT = -1
"""Stands in a row of ids where one image token goes; no vocabulary has a negative id."""

IMAGE_PLACEHOLDER = "<ImageHere>"
"""Stands in a prompt's text where an image goes, as in the original code."""

_PLACEHOLDER = re.compile(rf"((?:<Img>)?{IMAGE_PLACEHOLDER}(?:</Img>)?)")
"""The placeholder with the marks around it, which are part of the template like it."""


@dataclass(frozen=True)
class ChatTemplate:
    """How an instruction is wrapped for one family of language models.

    Attributes:
        template: text with one `{}` for the instruction.
        stop_symbol: text that ends every answer; it is trained as part of the answer and ends decoding.
        bos: whether a prompt begins with the vocabulary's BOS, where it has one.
        answer_prefix: white space between prompt and answer that is tokenized with the answer.
        answer_suffix: white space between an answer and its stop symbol.
        later: text between the end of an answer and the next answer, with one `{}` for the question; None wraps every
            question like the first, behind a BOS.
        in_context: tokenize an answer behind the text in front of it, as the tokenizer would the whole; otherwise by
            itself, as the original does.
    """

    template: str
    stop_symbol: str
    bos: bool = True
    answer_prefix: str = ""
    answer_suffix: str = ""
    later: str | None = None
    in_context: bool = False

    def wrap(self, instruction: str) -> str:
        """Text of a prompt that asks `instruction` of one image."""
        if IMAGE_PLACEHOLDER not in instruction:
            instruction = f"<Img>{IMAGE_PLACEHOLDER}</Img> {instruction}"
        return self.template.replace("{}", instruction, 1)


CHAT_TEMPLATES = {
    "vicuna-v0": ChatTemplate("###Human: {} ###Assistant: ", "###"),
    "llama-2": ChatTemplate("[INST] {} [/INST] ", "</s>"),
    "minigpt-v2": ChatTemplate("[INST] {} [/INST]", "</s>"),
    "alignment": ChatTemplate("{}", "\n"),
}
"""The chat templates of MiniGPT-4 (Vicuna), MiniGPT-4 (Llama-2) and MiniGPT-v2, and that of stage-1 alignment."""


@dataclass(frozen=True)
class OriginalFaults:
    """Faults of the original code, each of which can be switched on to repeat what it did; all are off.

    Attributes:
        cut_stop_symbol: a caption that is too long loses its stop symbol, so that its end is never learnt.
        clip_image: a prompt that is too long is cut from the right, into the image if need be.
        double_bos: a prompt that spells out its BOS gets a second one.
        pad_is_dollar_sign: padding is the word "$$"; a caption's own "$$" is not learnt, and is lost in decoding.
    """

    cut_stop_symbol: bool = False
    clip_image: bool = False
    double_bos: bool = False
    pad_is_dollar_sign: bool = False

    @classmethod
    def under(cls, protocol: str, names: Sequence[str] = ()) -> Self:
        """The faults that are switched on by name.

        Args:
            protocol: of the run; only `slides`, which repeats the original project, may have any.
            names: of the attributes above.

        Raises:
            ConfigError: a name is unknown, or the protocol is another one.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigError(f"There is no original fault '{unknown[0]}'; expected some of: {', '.join(known)}.")
        if names and protocol != "slides":
            raise ConfigError(f"The original's faults are for protocol 'slides' only, and this one is '{protocol}'.")
        return cls(**dict.fromkeys(names, True))


@dataclass(frozen=True)
class TokenSequence:
    """One row for the language model.

    Attributes:
        ids: T token ids, `IMAGE_SLOT` where an image token goes.
        prompt_length: how many of them are prompt; the rest are targets, but for those in `masked`.
        truncated: whether the caption was too long and its end was left out (the stop symbol never is).
        masked: positions behind the prompt that are no targets, such as later questions of a dialogue.
        excluded_from_attention: positions that attention leaves out; only an original fault makes any.
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
        image_tokens: Q, how many tokens an image takes.
        max_target_tokens: longest caption in tokens, stop symbol included.
        max_prompt_tokens: longest prompt in tokens, image included and BOS not; None is no limit.
        faults: of the original code, to be repeated.

    Raises:
        ConfigError: the conversation is unknown, or `max_target_tokens` leaves no room for a caption.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | ChatTemplate,
        *,
        image_tokens: int,
        max_target_tokens: int = 160,
        max_prompt_tokens: int | None = None,
        faults: OriginalFaults | None = None,
    ) -> None:
        if isinstance(chat_template, str):
            if chat_template not in CHAT_TEMPLATES:
                known = ", ".join(CHAT_TEMPLATES)
                raise ConfigError(f"There is no conversation '{chat_template}'; expected one of: {known}.")
            chat_template = CHAT_TEMPLATES[chat_template]
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.image_tokens = image_tokens
        self.max_target_tokens = max_target_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.faults = faults or OriginalFaults()
        # What stands in padding is never seen; the original puts this word there.
        dollars = tokenizer.piece_id("$$")
        self.pad_id: int = dollars or 0
        self._dollars = dollars if self.faults.pad_is_dollar_sign else None
        self._prompts: dict[str, TokenSequence] = {}
        # As it comes out behind a word: "###" has another id there than at the start of a text.
        word = tokenizer.encode("a")
        self.stop_ids: tuple[int, ...] = tuple(tokenizer.encode("a" + chat_template.stop_symbol)[len(word) :])
        # A special token such as <end_of_turn> has no text; where a text spells it out, nothing ends.
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
        """Ids of a literal prompt text, Q slots for each `<ImageHere>`, BOS first.

        Args:
            prompt: the text, or pieces of it; in those that are `Words` neither special tokens nor the placeholder are
                read.

        Raises:
            ConfigError: the prompt is longer than `max_prompt_tokens`.
        """
        pieces = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = self._stretches(pieces)
        bos = self.tokenizer.bos_id if self.chat_template.bos else None
        # Some prompts spell out the BOS; the tokenizer turns that into its id, and one BOS is enough.
        if bos is not None and ids[:1] == [bos] and not self.faults.double_bos:
            ids.pop(0)
        limit = self.max_prompt_tokens
        if limit is not None and len(ids) > limit:
            if not self.faults.clip_image:
                raise ConfigError(
                    f"The prompt {''.join(pieces)!r} takes {len(ids)} tokens, {self.image_tokens} of them the image's, "
                    f"and max_prompt_tokens is {limit}; shorten the instruction."
                )
            ids = ids[:limit]
        return tuple(ids) if bos is None else (bos, *ids)

    def prompt(self, instruction: str) -> TokenSequence:
        """What generation starts from: `instruction` asked of one image."""
        if instruction not in self._prompts:
            ids = self.text_ids(self.pieces(instruction))
            self._prompts[instruction] = TokenSequence(ids, prompt_length=len(ids))
        return self._prompts[instruction]

    def target_ids(self, caption: str) -> tuple[tuple[int, ...], bool]:
        """Ids of a caption and its stop symbol, and whether the caption had to be cut."""
        ids = tuple(self._answer_ids(caption))
        if len(ids) <= self.max_target_tokens:
            return ids, False
        if self.faults.cut_stop_symbol:
            return ids[: self.max_target_tokens], True
        return ids[: self.max_target_tokens - len(self.stop_ids)] + self.stop_ids, True

    def pieces(self, question: str, *, images: int | None = 1) -> list[str]:
        """The text of a prompt, the person's words apart from the template.

        Args:
            question: what is asked.
            images: how many placeholders in it are read, the first ones; None is all. With 1, a question without any
                is asked of one image, which stands in front of it; with 0, it is asked without an image.
        """
        before, _, after = self.chat_template.template.partition("{}")
        parts = _PLACEHOLDER.split(question, maxsplit=images or 0) if images != 0 else [question]
        if images == 1 and len(parts) == 1:
            before += f"<Img>{IMAGE_PLACEHOLDER}</Img> "
        pieces = [part if number % 2 else Words(part) for number, part in enumerate(parts)]
        return [before, *pieces, after]

    def prompt_text(self, instruction: str) -> str:
        """What identifies the prompt in a signature: all its text, or the instruction if the template is a named one.

        The templates in `CHAT_TEMPLATES` never change; that of a chat model may, under the same name.
        """
        if self.chat_template in CHAT_TEMPLATES.values():
            return instruction
        return self.chat_template.wrap(instruction) + self.chat_template.answer_prefix

    def _stretches(self, pieces: Sequence[str]) -> list[int]:
        """Ids of pieces of text, each stretch between images tokenized by itself, and the images' slots."""
        stretches: list[list[str]] = [[]]
        for piece in pieces:
            parts = [piece] if isinstance(piece, Words) else piece.split(IMAGE_PLACEHOLDER)
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
            ids = self.tokenizer.encode_pieces([self._context + chat.answer_prefix, Words(answer), end])
            if ids[: len(context)] == context:
                return ids[len(context) :]
        return self.tokenizer.encode_pieces([chat.answer_prefix, Words(answer), end])

    def sample(self, instruction: str, caption: str) -> TokenSequence:
        """What training sees: the generation prompt, then `caption` and the stop symbol as targets."""
        return self.with_answer(self.prompt(instruction).ids, caption)

    def with_answer(self, prompt_ids: tuple[int, ...], caption: str) -> TokenSequence:
        """A prompt's ids followed by `caption` and the stop symbol as targets."""
        targets, truncated = self.target_ids(caption)
        row = TokenSequence(prompt_ids + targets, len(prompt_ids), truncated)
        return TokenSequence(row.ids, row.prompt_length, truncated, masked=self._dollar_places(row))

    def dialogue(self, turns: Sequence[tuple[str, str]]) -> TokenSequence:
        """Several questions about one image, every answer a target.

        Args:
            turns: questions with their answers. The image goes where the first question has `<ImageHere>`.

        Returns:
            The row. As in the original each later question is wrapped like the first and starts with a BOS.
            When the turns take more than `max_target_tokens`, the last answer that is begun is cut.
        """
        prompt = self.text_ids(self.pieces(turns[0][0], images=None))
        ids: list[int] = []
        targets: list[bool] = []
        for number, (question, answer) in enumerate(turns):
            question_ids: Sequence[int] = self._later_question(question) if number else ()
            answer_ids = self._answer_ids(answer)
            ids.extend([*question_ids, *answer_ids])
            targets.extend([False] * len(question_ids) + [True] * len(answer_ids))
        limit = self.max_target_tokens
        truncated = len(ids) > limit
        if truncated and not self.faults.cut_stop_symbol:
            limit -= len(self.stop_ids)
            while limit and not targets[limit - 1]:
                limit -= 1
            ids, targets = [*ids[:limit], *self.stop_ids], [*targets[:limit], *[True] * len(self.stop_ids)]
        row = TokenSequence(prompt + tuple(ids[: self.max_target_tokens]), len(prompt), truncated)
        questions = [len(prompt) + i for i, is_target in enumerate(targets[: self.max_target_tokens]) if not is_target]
        dollars = self._dollar_places(row)
        return TokenSequence(
            row.ids,
            row.prompt_length,
            truncated,
            tuple(sorted({*questions, *dollars})),
            excluded_from_attention=dollars,
        )

    def reply(self, turns: Sequence[tuple[str, str]], question: str) -> TokenSequence:
        """What generation starts from in the middle of a dialogue, laid out as `dialogue` does for training.

        Args:
            turns: earlier questions with their answers; `<ImageHere>` stands where an image goes, in any question.
            question: that is to be answered.
        """
        first = turns[0][0] if turns else question
        ids = list(self.text_ids(self.pieces(first, images=None)))
        later = [text for text, _ in turns[1:]] + ([question] if turns else [])
        for (_, answer), text in zip(turns, later, strict=True):
            ids += self._answer_ids(answer)
            ids += self._later_question(text)
        return TokenSequence(tuple(ids), len(ids))

    def _later_question(self, question: str) -> list[int]:
        """Ids of a question that is not the first, by default wrapped like the first, behind another BOS."""
        pieces = self.pieces(question, images=None)
        later = self.chat_template.later
        if later is not None:
            pieces[0], _, pieces[-1] = later.partition("{}")
        ids = self._stretches(pieces)
        bos = self.tokenizer.bos_id if self.chat_template.bos and later is None else None
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _dollar_places(self, row: TokenSequence) -> tuple[int, ...]:
        """Positions behind the prompt of the word that the original takes for padding."""
        if self._dollars is None:
            return ()
        return tuple(i for i in range(row.prompt_length, len(row.ids)) if row.ids[i] == self._dollars)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return self.tokenizer.decode([i for i in ids if i != self._dollars])

    def cut(self, text: str) -> str:
        """A generated text as a caption: everything from the stop symbol on is left out."""
        return (text.split(self.stop_text, 1)[0] if self.stop_text else text).strip()
