"""A chat model's own way of wrapping a question, read off its template.

A template is a program. What it depends on besides the question is fixed here: the clock, for which a date of the past
is put, so that the same model is asked the same on every day.
"""

from __future__ import annotations

import logging
from datetime import datetime
from functools import cache
from string import ascii_letters
from typing import Any

from captune.common import error_text
from captune.errors import ConfigError
from captune.model.prompt import IMAGE_PLACEHOLDER, ChatTemplate

__all__ = ["announce_date", "bos_count", "read_chat_template", "with_clock"]

logger = logging.getLogger(__name__)

_QUESTION, _ANSWER = "CAPTUNEQUESTION", "CAPTUNEANSWER"
_LATER_QUESTION, _LATER_ANSWER = "CAPTUNELATERQUESTION", "CAPTUNELATERANSWER"
_ANSWERS = ("A red circle.", "The dog", "there is", "Two men, 3 dogs")
"""Answers with which it is tried where a prompt ends and an answer begins."""

CLOCK = datetime(2024, 7, 26, 12)
"""The time that templates are told. The date is the one that Llama 3's template has where there is no clock."""
_OTHER_CLOCK = datetime(2023, 12, 1, 9)
_RENDERED = 4
"""How often a template is filled, to see whether its text is always the same."""

_STRFTIME = (
    "{%- macro strftime_now(format) -%}{%- set told = namespace(text=format) -%}"
    "{%- for code, value in CLOCK.items() -%}{%- set told.text = told.text | replace(code, value) -%}"
    "{%- endfor -%}{{- told.text -}}{%- endmacro -%}"
)
"""Replaces, within a template, the library's function of the same name, which asks the clock of the machine."""

PLAIN = "User: {}\nAssistant: "
"""For a language model without a chat template."""


def read_chat_template(tokenizer: Any, name: str | None = None) -> ChatTemplate:
    """How a language model expects a question.

    The template is filled with a placeholder for question and answer, and cut around them. What it puts in by itself (a
    system prompt, an empty block of thought) stays as it is. White space in front of the answer belongs to the prompt
    or to the answer, so that both together have the tokens that the tokenizer gives the whole text.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        name: of the model; with it, a template that depends on the clock is named in the log.

    Returns:
        The wrapping, and what ends an answer in it.

    Raises:
        ConfigError: the template cannot be filled, changes the question, is never the same, or nothing ends an answer.
    """
    if not tokenizer.chat_template:
        if tokenizer.eos_token is None:
            raise ConfigError(
                "The tokenizer has neither a chat template nor an end-of-text token; give a conversation."
            )
        starts, first = _beginning(tokenizer)
        before, between = (first + PLAIN).split("{}")
        return _divided(tokenizer, before, between, None, tokenizer.eos_token, bos=starts)
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    text = _rendered(tokenizer, turns)
    if any(_rendered(tokenizer, turns) != text for _ in range(_RENDERED)):
        raise ConfigError("The model's chat template writes another text each time; give a conversation.")
    if name is not None and _rendered(tokenizer, turns, _OTHER_CLOCK) != text:
        announce_date(name)
    before, question_mark, rest = text.partition(_QUESTION)
    between, answer_mark, after = rest.partition(_ANSWER)
    if not (question_mark and answer_mark) or "{}" in before:
        raise ConfigError("The model's chat template changes what is put into it; give a conversation.")
    bos = tokenizer.bos_token
    starts = bool(bos) and before.startswith(bos)
    generation_prompt = _generation_prompt(tokenizer, turns[:1])
    return _divided(
        tokenizer, before, between, generation_prompt, after, bos=starts, later=_later(tokenizer, turns, between, after)
    )


@cache
def announce_date(name: str) -> None:
    """Say once that a model's prompts have another date than today's."""
    logger.warning(
        "The chat template of %s writes the date; it is given %s on every day, so that prompts stay the same.",
        name,
        f"{CLOCK:%d %B %Y}",
    )


def bos_count(tokenizer: Any) -> tuple[int, bool]:
    """How many beginnings of text a prompt of a language model has, and whether it begins with one.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
    """
    conversation = read_chat_template(tokenizer)
    stretches = conversation.wrap("Look.").split(IMAGE_PLACEHOLDER)
    ids = [token for text in stretches for token in tokenizer.encode(text, add_special_tokens=False)]
    if conversation.bos and ids[:1] != [tokenizer.bos_token_id]:
        ids.insert(0, tokenizer.bos_token_id)
    return ids.count(tokenizer.bos_token_id), ids[:1] == [tokenizer.bos_token_id]


def with_clock(template: str, clock: datetime = CLOCK) -> str:
    """A chat template that writes a fixed time where it would write the machine's."""
    if "strftime_now" not in template:
        return template
    codes = [f"%{flag}{letter}" for flag in ("-", "") for letter in ascii_letters]
    return _STRFTIME.replace("CLOCK", repr({code: clock.strftime(code) for code in codes})) + template


def _rendered(tokenizer: Any, turns: list[dict[str, str]], clock: datetime = CLOCK, **settings: Any) -> str:
    """The text of a conversation at a fixed time."""
    try:
        template = with_clock(str(tokenizer.get_chat_template()), clock)
        text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **settings)
    except Exception as error:  # a template is a program, and fails like one
        reason = error_text(error)
        raise ConfigError(f"The model's chat template cannot be filled: {reason}; give a conversation.") from error
    return str(text)


def _generation_prompt(tokenizer: Any, question: list[dict[str, str]]) -> str | None:
    """What the template puts between a question and an answer that is to be generated; None where it does not say."""
    try:
        text = _rendered(tokenizer, question, add_generation_prompt=True)
    except ConfigError:
        return None
    return text.partition(_QUESTION)[2]


def _later(tokenizer: Any, turns: list[dict[str, str]], between: str, after: str) -> str | None:
    """What stands between the end of an answer and the next answer, `{}` for the question; None if that is not said."""
    more = [{"role": "user", "content": _LATER_QUESTION}, {"role": "assistant", "content": _LATER_ANSWER}]
    try:
        text = _rendered(tokenizer, [*turns, *more])
    except ConfigError:
        return None
    front = text.partition(_ANSWER)[2].partition(_LATER_QUESTION)[0]
    stop, suffix = _end(tokenizer, after)
    if not front.startswith(suffix + stop) or "{}" in front:
        return None
    return front.removeprefix(suffix + stop) + "{}" + between


def _divided(
    tokenizer: Any,
    before: str,
    between: str,
    generation_prompt: str | None,
    after: str,
    *,
    bos: bool,
    later: str | None = None,
) -> ChatTemplate:
    """A conversation whose answers take as much of the white space in front of them as the tokenizer would.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        before: text in front of the question.
        between: text between question and answer.
        generation_prompt: what the template puts there where an answer is to be generated.
        after: text behind the answer.
        bos: whether a prompt begins with the BOS.
        later: see `ChatTemplate`.
    """
    stop, suffix = _end(tokenizer, after)
    bare = between.rstrip(" ")
    ends = [between, bare]
    if (
        generation_prompt is not None
        and between.startswith(generation_prompt)
        and not between[len(generation_prompt) :].strip()
    ):
        ends.insert(0, generation_prompt)

    def agrees(end: str) -> bool:
        prompt = tokenizer.encode("x" + end, add_special_tokens=False)
        full_ids = (tokenizer.encode(f"x{between}{answer}", add_special_tokens=False) for answer in _ANSWERS)
        return all(ids[: len(prompt)] == prompt for ids in full_ids)

    end = next(filter(agrees, ends), between)
    prefix = between[len(end) :]
    if later is not None:
        later = later.removesuffix(between) + end
    return ChatTemplate(
        f"{before}{{}}{end}",
        stop,
        bos=bos,
        answer_prefix=prefix,
        answer_suffix=suffix,
        later=later,
        in_context=True,
    )


def _beginning(tokenizer: Any) -> tuple[bool, str]:
    """Whether a tokenizer puts its BOS in front of a text, and the text of what it puts there instead."""
    bare, framed = (tokenizer.encode("x", add_special_tokens=adds) for adds in (False, True))
    front: list[int] = next((framed[:n] for n in range(len(framed)) if framed[n : n + len(bare)] == bare), [])
    if front == [tokenizer.bos_token_id]:
        return True, ""
    return False, "".join(tokenizer.convert_ids_to_tokens(front))


def _end(tokenizer: Any, after: str) -> tuple[str, str]:
    """What ends an answer, and white space in front of it.

    That is the first special token behind an answer, the text if there is none, or the end of text.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    specials = [(after.index(token), -len(token), token) for token in added if token.strip() and token in after]
    if specials:
        index, _, token = min(specials)
        suffix = after[:index]
        return token, "" if suffix.strip() else suffix
    stop: str | None = after.strip() or tokenizer.eos_token
    if stop is None:
        raise ConfigError("Nothing ends an answer in the model's chat template; give a conversation.")
    return stop, ""
