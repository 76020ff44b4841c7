"""The chat template of a language model as a `ChatTemplate`.

A chat template is a program that may read the clock. captune renders it with a fixed date, so that the prompt is the
same on every day.
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

__all__ = ["count_bos", "read_chat_template", "warn_date_is_fixed", "with_fixed_clock"]

logger = logging.getLogger(__name__)

_QUESTION, _ANSWER = "CAPTUNEQUESTION", "CAPTUNEANSWER"
_LATER_QUESTION, _LATER_ANSWER = "CAPTUNELATERQUESTION", "CAPTUNELATERANSWER"
_ANSWERS = ("A red circle.", "The dog", "there is", "Two men, 3 dogs")
"""Answers for the test where a prompt ends and an answer begins."""

CLOCK = datetime(2024, 7, 26, 12)
"""The time for all templates. The date is the default of Llama 3's template."""
_OTHER_CLOCK = datetime(2023, 12, 1, 9)
_RENDERINGS = 4
"""How often a template is rendered to test that its text is always the same."""

_STRFTIME = (
    "{%- macro strftime_now(format) -%}{%- set result = namespace(text=format) -%}"
    "{%- for code, value in CLOCK.items() -%}{%- set result.text = result.text | replace(code, value) -%}"
    "{%- endfor -%}{{- result.text -}}{%- endmacro -%}"
)
"""A macro that replaces the library's function of the same name, which reads the clock of the machine."""

PLAIN = "User: {}\nAssistant: "
"""The template for a language model without a chat template."""


def read_chat_template(tokenizer: Any, name: str | None = None) -> ChatTemplate:
    """Derive a `ChatTemplate` from the chat template of a language model.

    The template is rendered with markers for question and answer, and split at them. Its additions (a system prompt, an
    empty thinking block) are kept. White space before the answer is part of the prompt or of the answer, such that
    prompt and answer have the tokens of the complete text.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        name: of the model; if given, a warning reports a template that depends on the date.

    Raises:
        ConfigError: the template cannot be rendered, changes the question, is not deterministic, or has no end of an
            answer.
    """
    if not tokenizer.chat_template:
        if tokenizer.eos_token is None:
            raise ConfigError(
                "The tokenizer has neither a chat template nor an end-of-text token; give a conversation."
            )
        starts, first = _prepended_text(tokenizer)
        before, between = (first + PLAIN).split("{}")
        return _split_template(tokenizer, before, between, None, tokenizer.eos_token, bos=starts)
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    text = _render(tokenizer, turns)
    if any(_render(tokenizer, turns) != text for _ in range(_RENDERINGS)):
        raise ConfigError("The model's chat template is not deterministic; give a conversation.")
    if name is not None and _render(tokenizer, turns, _OTHER_CLOCK) != text:
        warn_date_is_fixed(name)
    before, question_mark, rest = text.partition(_QUESTION)
    between, answer_mark, after = rest.partition(_ANSWER)
    if not (question_mark and answer_mark) or "{}" in before:
        raise ConfigError("The model's chat template changes the texts of the messages; give a conversation.")
    bos = tokenizer.bos_token
    starts = bool(bos) and before.startswith(bos)
    generation_prompt = _generation_prompt(tokenizer, turns[:1])
    return _split_template(
        tokenizer, before, between, generation_prompt, after, bos=starts, later=_later(tokenizer, turns, between, after)
    )


@cache
def warn_date_is_fixed(name: str) -> None:
    """Warn once that the prompts of a model have a fixed date."""
    logger.warning(
        "The chat template of %s contains the date; captune always sets it to %s, so that prompts stay the same.",
        name,
        f"{CLOCK:%d %B %Y}",
    )


def count_bos(tokenizer: Any) -> tuple[int, bool]:
    """The number of BOS tokens in a prompt of a language model, and whether the prompt begins with one.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
    """
    conversation = read_chat_template(tokenizer)
    stretches = conversation.wrap("Look.").split(IMAGE_PLACEHOLDER)
    ids = [token for text in stretches for token in tokenizer.encode(text, add_special_tokens=False)]
    if conversation.bos and ids[:1] != [tokenizer.bos_token_id]:
        ids.insert(0, tokenizer.bos_token_id)
    return ids.count(tokenizer.bos_token_id), ids[:1] == [tokenizer.bos_token_id]


def with_fixed_clock(template: str, clock: datetime = CLOCK) -> str:
    """A chat template that uses a fixed time instead of the machine's."""
    if "strftime_now" not in template:
        return template
    codes = [f"%{flag}{letter}" for flag in ("-", "") for letter in ascii_letters]
    return _STRFTIME.replace("CLOCK", repr({code: clock.strftime(code) for code in codes})) + template


def _render(tokenizer: Any, turns: list[dict[str, str]], clock: datetime = CLOCK, **settings: Any) -> str:
    """The text of a conversation at a fixed time."""
    try:
        template = with_fixed_clock(str(tokenizer.get_chat_template()), clock)
        text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **settings)
    except Exception as error:  # a template is a program, and may raise anything
        reason = error_text(error)
        raise ConfigError(f"The model's chat template cannot be rendered: {reason}; give a conversation.") from error
    return str(text)


def _generation_prompt(tokenizer: Any, question: list[dict[str, str]]) -> str | None:
    """The text after a question that starts the generation of an answer; None if the template cannot render it."""
    try:
        text = _render(tokenizer, question, add_generation_prompt=True)
    except ConfigError:
        return None
    return text.partition(_QUESTION)[2]


def _later(tokenizer: Any, turns: list[dict[str, str]], between: str, after: str) -> str | None:
    """The text between two answers, `{}` for the question; None if the template cannot render it."""
    more = [{"role": "user", "content": _LATER_QUESTION}, {"role": "assistant", "content": _LATER_ANSWER}]
    try:
        text = _render(tokenizer, [*turns, *more])
    except ConfigError:
        return None
    front = text.partition(_ANSWER)[2].partition(_LATER_QUESTION)[0]
    stop, suffix = _end(tokenizer, after)
    if not front.startswith(suffix + stop) or "{}" in front:
        return None
    return front.removeprefix(suffix + stop) + "{}" + between


def _split_template(
    tokenizer: Any,
    before: str,
    between: str,
    generation_prompt: str | None,
    after: str,
    *,
    bos: bool,
    later: str | None = None,
) -> ChatTemplate:
    """A chat template that splits the white space between prompt and answer as the tokenizer does.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        before: text before the question.
        between: text between question and answer.
        generation_prompt: the text after the question in a generation prompt.
        after: text after the answer.
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


def _prepended_text(tokenizer: Any) -> tuple[bool, str]:
    """Whether a tokenizer prepends its BOS to a text, and the text that it prepends otherwise."""
    bare, framed = (tokenizer.encode("x", add_special_tokens=adds) for adds in (False, True))
    front: list[int] = next((framed[:n] for n in range(len(framed)) if framed[n : n + len(bare)] == bare), [])
    if front == [tokenizer.bos_token_id]:
        return True, ""
    return False, "".join(tokenizer.convert_ids_to_tokens(front))


def _end(tokenizer: Any, after: str) -> tuple[str, str]:
    """The stop symbol of an answer, and white space before it.

    It is the first special token after an answer, otherwise the text after it, otherwise the end-of-text token.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    specials = [(after.index(token), -len(token), token) for token in added if token.strip() and token in after]
    if specials:
        index, _, token = min(specials)
        suffix = after[:index]
        return token, "" if suffix.strip() else suffix
    stop: str | None = after.strip() or tokenizer.eos_token
    if stop is None:
        raise ConfigError("The model's chat template has no end of an answer; give a conversation.")
    return stop, ""
