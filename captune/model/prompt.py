"""The one place that lays out a prompt, for training and for generation alike.

A sequence is a row of token ids in which every image token is an `IMAGE_SLOT`:

    [BOS] text before the image | Q image slots | text after the image | caption and stop symbol
    '------------------ prompt: generation starts from it -----------' '--- targets of training --'

A training sample is the generation prompt followed by its targets, so the two cannot drift apart. As in the original
code each stretch of text is tokenised by itself, so that the ids do not depend on what the image is replaced by.
"""

from __future__ import annotations

from dataclasses import dataclass

from captune.errors import ConfigError
from captune.model.tokenizer import Tokenizer

__all__ = [
    "CONVERSATIONS",
    "IMAGE_PLACEHOLDER",
    "IMAGE_SLOT",
    "Conversation",
    "PromptLayout",
    "TokenSequence",
]

IMAGE_SLOT = -1
"""Stands in a row of ids where one image token goes; no vocabulary has a negative id."""

IMAGE_PLACEHOLDER = "<ImageHere>"
"""Stands in a prompt's text where an image goes, as in the original code."""


@dataclass(frozen=True)
class Conversation:
    """How an instruction is wrapped for one family of language models.

    Attributes:
        template: text with one `{}` for the instruction.
        stop_symbol: text that ends every answer; it is trained as part of the answer and ends decoding.
    """

    template: str
    stop_symbol: str

    def wrap(self, instruction: str) -> str:
        """Text of a prompt that asks `instruction` of one image."""
        if IMAGE_PLACEHOLDER not in instruction:
            instruction = f"<Img>{IMAGE_PLACEHOLDER}</Img> {instruction}"
        return self.template.replace("{}", instruction, 1)


CONVERSATIONS = {
    "vicuna-v0": Conversation("###Human: {} ###Assistant: ", "###"),
    "llama-2": Conversation("[INST] {} [/INST] ", "</s>"),
    "minigpt-v2": Conversation("[INST] {} [/INST]", "</s>"),
}
"""The conversations of MiniGPT-4 (Vicuna), MiniGPT-4 (Llama-2) and MiniGPT-v2."""


@dataclass(frozen=True)
class TokenSequence:
    """One row for the language model.

    Attributes:
        ids: T token ids, `IMAGE_SLOT` where an image token goes.
        prompt_length: how many of them are prompt; the rest are targets.
        truncated: whether the caption was too long and its end was left out (the stop symbol never is).
    """

    ids: tuple[int, ...]
    prompt_length: int
    truncated: bool = False

    @property
    def target_count(self) -> int:
        """Number of target tokens, stop symbol included."""
        return len(self.ids) - self.prompt_length


class PromptLayout:
    """Turns instructions and captions into rows of ids.

    Args:
        tokenizer: vocabulary of the language model.
        conversation: a name in `CONVERSATIONS`, or a `Conversation`.
        image_tokens: Q, how many tokens an image takes.
        max_target_tokens: longest caption in tokens, stop symbol included.

    Raises:
        ConfigError: the conversation is unknown, or `max_target_tokens` leaves no room for a caption.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        conversation: str | Conversation,
        *,
        image_tokens: int,
        max_target_tokens: int = 160,
    ) -> None:
        if isinstance(conversation, str):
            if conversation not in CONVERSATIONS:
                known = ", ".join(CONVERSATIONS)
                raise ConfigError(f"There is no conversation '{conversation}'; expected one of: {known}.")
            conversation = CONVERSATIONS[conversation]
        self.tokenizer = tokenizer
        self.conversation = conversation
        self.image_tokens = image_tokens
        self.max_target_tokens = max_target_tokens
        self._prompts: dict[str, TokenSequence] = {}
        # As it comes out behind a word: "###" has another id there than at the start of a text.
        word = tokenizer.encode("a")
        self.stop_ids: tuple[int, ...] = tuple(tokenizer.encode("a" + conversation.stop_symbol)[len(word) :])
        if max_target_tokens <= len(self.stop_ids):
            raise ConfigError(
                f"max_target_tokens is {max_target_tokens}, but the stop symbol '{conversation.stop_symbol}' alone "
                f"takes {len(self.stop_ids)}; give room for a caption."
            )

    def text_ids(self, prompt: str) -> tuple[int, ...]:
        """Ids of a literal prompt text, Q slots for each `<ImageHere>`, BOS first."""
        ids: list[int] = []
        # Some prompts spell out the BOS; the tokenizer turns that into its id, and one BOS is enough.
        for position, stretch in enumerate(prompt.split(IMAGE_PLACEHOLDER)):
            if position:
                ids.extend([IMAGE_SLOT] * self.image_tokens)
            ids.extend(self.tokenizer.encode(stretch))
        bos = self.tokenizer.bos_id
        if bos is not None and (not ids or ids[0] != bos):
            ids.insert(0, bos)
        return tuple(ids)

    def prompt(self, instruction: str) -> TokenSequence:
        """What generation starts from: `instruction` asked of one image."""
        if instruction not in self._prompts:
            ids = self.text_ids(self.conversation.wrap(instruction))
            self._prompts[instruction] = TokenSequence(ids, prompt_length=len(ids))
        return self._prompts[instruction]

    def target_ids(self, caption: str) -> tuple[tuple[int, ...], bool]:
        """Ids of a caption and its stop symbol, and whether the caption had to be cut."""
        ids = tuple(self.tokenizer.encode(caption + self.conversation.stop_symbol))
        if len(ids) <= self.max_target_tokens:
            return ids, False
        return ids[: self.max_target_tokens - len(self.stop_ids)] + self.stop_ids, True

    def sample(self, instruction: str, caption: str) -> TokenSequence:
        """What training sees: the generation prompt, then `caption` and the stop symbol as targets."""
        prompt = self.prompt(instruction)
        targets, truncated = self.target_ids(caption)
        return TokenSequence(prompt.ids + targets, prompt.prompt_length, truncated)

    def cut(self, text: str) -> str:
        """A generated text as a caption: everything from the stop symbol on is left out."""
        return text.split(self.conversation.stop_symbol, 1)[0].strip()
