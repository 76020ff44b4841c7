"""A chat model's own way of wrapping a question, read off its template."""

from __future__ import annotations

from typing import Any

from captune.errors import ConfigError
from captune.model.prompt import Conversation

__all__ = ["conversation_of"]

_ASKED, _TOLD = "CAPTUNEASKED", "CAPTUNETOLD"

PLAIN = "User: {}\nAssistant: "
"""For a language model without a chat template."""


def conversation_of(tokenizer: Any) -> Conversation:
    """How a language model wants to be asked.

    The template is filled once, with a stand-in for question and answer, and cut around them. What it puts in by
    itself (a system prompt, the day's date, an empty block of thought) stays as it was on that day.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.

    Returns:
        The wrapping, and what ends an answer in it.

    Raises:
        ConfigError: the template cannot be filled, changes the question, or nothing ends an answer.
    """
    if not tokenizer.chat_template:
        if tokenizer.eos_token is None:
            raise ConfigError(
                "The tokenizer has neither a chat template nor an end-of-text token; give a conversation."
            )
        return Conversation(PLAIN, tokenizer.eos_token, bos=tokenizer.bos_token is not None)
    asked = {"role": "user", "content": _ASKED}
    try:
        text = tokenizer.apply_chat_template([asked, {"role": "assistant", "content": _TOLD}], tokenize=False)
    except Exception as error:  # a template is a program, and fails like one
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"The model's chat template cannot be filled: {reason}; give a conversation.") from error
    before, found_question, rest = text.partition(_ASKED)
    between, found_answer, after = rest.partition(_TOLD)
    if not (found_question and found_answer) or "{}" in before:
        raise ConfigError("The model's chat template changes what is put into it; give a conversation.")
    bos = tokenizer.bos_token
    starts = bos is not None and before.startswith(bos)
    template = f"{before[len(bos) :] if starts else before}{{}}{between}"
    return Conversation(template, _stop_symbol(tokenizer, after), bos=starts)


def _stop_symbol(tokenizer: Any, after: str) -> str:
    """What follows an answer: the first special token there, the text if there is none, or the end of text."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    placed = [(after.index(token), -len(token), token) for token in added if token and token in after]
    if placed:
        return min(placed)[2]
    stop: str | None = after.strip() or tokenizer.eos_token
    if stop is None:
        raise ConfigError("Nothing ends an answer in the model's chat template; give a conversation.")
    return stop
