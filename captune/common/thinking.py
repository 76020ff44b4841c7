"""Thinking text of models that reason before they answer: its marks, and the answer without it.

Chat templates mark thinking text in these ways; a mark is one token of the vocabulary or several:

    <think> ... </think>                                        Qwen, GLM, DeepSeek, MiMo, ERNIE, LFM
    <seed:think>, <longcat_think>, <thought>, <thinking>, <reasoning>, <analysis>, with their ends
    [THINK] ... [/THINK]                                        Mistral
    ◁think▷ ... ◁/think▷                                        Kimi
    <|channel>thought ... <channel|>                            Gemma 4
    <unused94>thought ... <unused95>                            MedGemma
    <|START_THINKING|> ... <|END_THINKING|>                     Cohere
    <|begin_of_thought|>, <|inner_prefix|>, <|think|>           OpenThoughts, Apertus, Solar, with their ends
    <|channel|>analysis<|message|> ... <|end|>                  gpt-oss (harmony), the answer is in the channel `final`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypeAlias

__all__ = [
    "Answer",
    "RemovedThinking",
    "Thinking",
    "closing_text",
    "decode_marks",
    "has_marks",
    "opened_block",
    "special_marks",
    "split_thinking",
    "without_empty_blocks",
]

RemovedThinking: TypeAlias = Literal["removed", "unclosed"]
Thinking: TypeAlias = Literal["none", "removed", "unclosed"]
"""What happened to the thinking text of an answer: there was none, it was removed, or it never ended."""

_TAG = r"(?:seed:|longcat_)?think|thinking|thought|reasoning|analysis"
_CLOSING = {
    "[THINK]": ("[/THINK]",),
    "◁think▷": ("◁/think▷",),
    "<|channel>thought": ("<channel|>",),
    "<|channel>": ("<channel|>",),
    "<unused94>thought": ("<unused95>",),
    "<|START_THINKING|>": ("<|END_THINKING|>",),
    "<|begin_of_thought|>": ("<|end_of_thought|>",),
    "<|inner_prefix|>": ("<|inner_suffix|>",),
    "<|thinking|>": ("<|/thinking|>",),
    "<|think|>": ("<|/think|>", "<|end|>"),
}
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")
_CHANNEL_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_ENDS = sorted({end for ends in _CLOSING.values() for end in ends} - {"<|end|>"})
_MARK = re.compile(
    rf"<(?P<tag>{_TAG})>|</(?P<end_tag>{_TAG})>"
    # A header of a channel: "<|start|>assistant<|channel|>final <|constrain|>json<|message|>".
    r"|(?P<header>(?:<\|start\|>\s*\w{0,20}\s*)?<\|channel\|>\s*(?P<channel>\w{0,20})"
    r"(?:[^<\n]{0,100}(?:<\|constrain\|>[^<\n]{0,100})?<\|message\|>)?)"
    r"|(?P<control><\|(?:start\|>\s*assistant|message\|>|end\|>|return\|>|call\|>))"
    rf"|(?P<open>{'|'.join(map(re.escape, sorted(_CLOSING, key=len, reverse=True)))})"
    rf"|(?P<close>{'|'.join(map(re.escape, _ENDS))})"
)
_SURE = re.compile(
    rf"</?(?:{_TAG})>|<\|channel\|>|{'|'.join(map(re.escape, [*_CLOSING, *_ENDS]))}",
)
"""What only an answer with thinking text or channels contains; `<|end|>` also ends answers of other models."""
_ANSWER_TAGS = re.compile(
    r"(?:<(answer|response)>|<\|begin_of_box\|>|<\|START_(?:RESPONSE|TEXT)\|>)(.*?)"
    r"(?:</(?:answer|response)>|<\|end_of_box\|>|<\|END_(?:RESPONSE|TEXT)\|>)?",
    re.DOTALL,
)
"""What models with thinking text write around their answer."""
_EMPTY_BLOCKS = [
    rf"{re.escape(begin)}\s*(?:{re.escape(end)})?"
    for begin, (end, *_) in _CLOSING.items()
    if begin != "<|think|>"  # which is alone in the system prompt of Gemma
]
_EMPTY = re.compile(rf"\s*(?:<({_TAG})>\s*(?:</\1>)?|{'|'.join(_EMPTY_BLOCKS)})\s*")
_LONE_END_BEFORE = re.compile(r"(?:^|\n)[ \t]*$|[.!?。！？…][ \t]*$|(?P<word>\w)$")
_LONE_END_SPACES = 20
"""At least as many characters as there are between an end and the line or sentence before it."""
_LONE_END_AFTER = re.compile(r"[ \t]*(?:\n|<answer>|<response>|<\|begin_of_box\|>|<\|START_(?:RESPONSE|TEXT)\|>)")
_HIDDEN_CHANNELS = ("analysis", "thought", "thinking")
_CHANNELS = (*_HIDDEN_CHANNELS, "commentary", "final")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer without its thinking text.

    Attributes:
        text: the answer; empty if the model wrote nothing but thinking text.
        thinking: whether thinking text was removed, and whether it ended.
    """

    text: str
    thinking: Thinking


def split_thinking(text: str, opened: str = "", *, is_complete: bool = True) -> Answer:
    """Remove the thinking text from an answer.

    A block begins at the beginning of the answer, or in the prompt, and is removed with its marks. An end without a
    beginning counts where models write it, as their prompt may have opened the block: on a separate line or at the end
    of one, after a sentence, before a tag of the answer, or between two words without a space; then everything before
    it is removed. A mark elsewhere is text of the answer, such as what an image of a screen shows. Of a block that
    never ends, everything after its beginning is removed, with one exception: if the prompt opened it, the text does
    not end it and the model ended the text by itself, then the text is the answer, of a model that was tuned to answer
    at once. An empty block is removed and does not count as thinking text.

    Args:
        text: what the model wrote, with its marks.
        opened: the mark at the end of the prompt, from `opened_block`.
        is_complete: whether the model ended the text, and not the length limit; matters for a block of the prompt.
    """
    if not opened and _SURE.search(text) is None:
        return Answer(text, "none")
    if opened and is_complete and _has_no_thinking(text, opened):
        return Answer(text, "unclosed")
    written, text = text, opened + text
    kept: list[str] = []
    ends: tuple[str, ...] | None = None
    begin, hidden, has_channels, has_thinking = 0, "", False, False
    for match in _MARK.finditer(text):
        mark, passage = match[0], text[begin : match.start()]
        if match["control"] and not has_channels and mark not in (ends or ()):
            continue
        is_first = ends is None and not f"{''.join(kept)}{passage}".strip()
        is_complete_header = match["channel"] in _CHANNELS and mark.endswith("<|message|>")
        if ends is not None and not is_complete_header:
            if mark not in ends:
                continue
            hidden += passage
            ends = None
        elif ends is None and not match["control"] and not (is_first or is_complete_header or _is_lone_end(match)):
            continue
        else:
            if ends is None:
                kept.append(passage)
            else:
                hidden += passage
                ends = None
            if match["end_tag"] or match["close"]:
                hidden += "".join(kept)
                kept = []
            elif match["header"]:
                has_channels = True
                if match["channel"] in _HIDDEN_CHANNELS:
                    ends = _CHANNEL_ENDS
                elif match["channel"] == "final":
                    kept = []
            elif match["tag"] or match["open"]:
                ends = _closing(mark)
        begin, has_thinking = match.end(), True
    if not has_thinking:
        return Answer(written, "none")
    if ends is None:
        kept.append(text[begin:])
    answer = "".join(kept).strip()
    if tagged := _ANSWER_TAGS.fullmatch(answer):
        answer = tagged[2].strip()
    return Answer(answer, "unclosed" if ends is not None else "removed" if hidden.strip() else "none")


def _has_no_thinking(text: str, opened: str) -> bool:
    """Whether a text neither ends the block that the prompt opened nor has other thinking text."""
    if "<|channel|>" in opened:
        return _MARK.search(text) is None
    return not any(end in text for end in _closing(opened)) and split_thinking(text) == Answer(text, "none")


def _is_lone_end(match: re.Match[str]) -> bool:
    """Whether an end of thinking text without a beginning is where models write it, and is not mentioned in a text."""
    if not (match["end_tag"] or match["close"]):
        return False
    if _LONE_END_AFTER.match(match.string, match.end()):
        return True
    # Marks of a long text are not searched from its beginning.
    before = _LONE_END_BEFORE.search(match.string[max(0, match.start() - _LONE_END_SPACES) : match.start()])
    if before is None:
        return False
    following = match.string[match.end() : match.end() + 1]
    return not before["word"] or following.isalnum() or not following


def opened_block(prompt: str | None) -> str:
    """The mark at the end of a prompt that opens a block of thinking text; empty if there is none."""
    text = (prompt or "").rstrip()
    # Instructions may mention marks, and an empty block may be closed again.
    for match in _MARK.finditer(text):
        is_open = match["tag"] or match["open"] or match["channel"] in _HIDDEN_CHANNELS
        if is_open and match.end() == len(text):
            return match[0]
    return ""


def closing_text(opened: str) -> str:
    """The text that closes an empty block before an answer, as chat templates write it.

    Args:
        opened: the mark that begins the block, from `opened_block`; an empty text for none.
    """
    if not opened:
        return ""
    (end, *_), is_tag = _closing(opened), opened.startswith("<") and opened not in _CLOSING
    return f"{end}\n\n" if is_tag else end


def without_empty_blocks(text: str) -> str:
    """A prompt or conversation without empty blocks of thinking text, and without the beginning of one at its end."""
    return _EMPTY.sub("", text)


def special_marks(tokenizer: Any) -> dict[int, str]:
    """The special tokens of a vocabulary that mark thinking text, by id; decoding without special tokens drops them.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
    """
    special = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {
        int(i): str(token) for i, token in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    }
    marks = {i: token for i, token in special.items() if _is_mark(token)}
    # Other models end their answers with "<|end|>".
    if not {"<|channel|>", "<|think|>"}.isdisjoint(marks.values()):
        marks |= {i: token for i, token in special.items() if token in _HARMONY}
    return marks


def has_marks(tokenizer: Any) -> bool:
    """Whether a vocabulary has a token that marks thinking text, special or not."""
    return any(map(_is_mark, tokenizer.get_added_vocab())) or bool(special_marks(tokenizer))


def decode_marks(ids: Sequence[int], marks: Mapping[int, str], decode: Callable[[list[int]], str]) -> str:
    """The text of ids without special tokens, but with the marks of thinking text.

    Args:
        ids: of the answer.
        marks: from `special_marks`.
        decode: decodes ids without special tokens.
    """
    if marks.keys().isdisjoint(ids):
        return decode(list(ids))
    parts = groupby(ids, key=marks.get)
    return "".join(decode(list(part)) if mark is None else mark for mark, part in parts)


def _closing(opened: str) -> tuple[str, ...]:
    return _CLOSING.get(opened) or (f"</{opened[1:]}",)


def _is_mark(token: str) -> bool:
    return token in ("<unused94>", "<unused95>") or _SURE.fullmatch(token) is not None
