"""The checks of `captune explain`: whether training and generation give the language model the same tokens.

Nothing here builds a prompt. `captune.explain.explanation` records the inputs of the language model on both sides; the
functions here compare them and describe the result.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from captune.model import HuggingFaceTokenizer, Tokenizer

__all__ = [
    "Check",
    "Decoded",
    "Expected",
    "InputToken",
    "Status",
    "TargetToken",
    "TargetTrace",
    "checks",
    "complete_caption",
    "length_limit",
    "loss_mask",
    "piece_text",
    "same_prompt",
    "stop_ends",
]

Status = Literal["ok", "FAIL", "note"]


@dataclass(frozen=True, slots=True)
class InputToken:
    """An input token of the language model.

    Attributes:
        id: token id; None for an image token, and for a vector that is neither text nor image.
        slot: index among the image tokens; None for text.
        position: position id.
    """

    id: int | None
    slot: int | None
    position: int

    @property
    def content(self) -> tuple[int | None, int | None]:
        """The token without its position."""
        return self.id, self.slot


@dataclass(frozen=True, slots=True)
class TargetToken:
    """A target of the loss.

    Attributes:
        context: the tokens that its prediction depends on.
        target: token id.
    """

    context: tuple[InputToken, ...]
    target: int


@dataclass(frozen=True, slots=True)
class TargetTrace:
    """All targets of one caption, in order."""

    steps: tuple[TargetToken, ...]

    @property
    def prompt(self) -> tuple[InputToken, ...]:
        """The context of the first target."""
        return self.steps[0].context

    @property
    def targets(self) -> tuple[int, ...]:
        """The target ids."""
        return tuple(step.target for step in self.steps)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The result of decoding with a model that outputs exactly the targets and then more tokens.

    Attributes:
        text: the caption.
        tokens: number of decoded tokens.
        stopped: whether a stop condition ended decoding.
    """

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected values.

    Attributes:
        caption: the caption in the data.
        image_tokens: Q, number of tokens of an image.
        stop_symbol: text that ends an answer.
        stop_ids: its ids after a word.
        max_new_tokens: maximum length of a caption in evaluation.
        bos: number of BOS tokens in a prompt, and whether it starts with one.
    """

    caption: str
    image_tokens: int
    stop_symbol: str
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    bos: tuple[int, bool] = (1, True)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: of the check.
        status: "ok", "FAIL", or "note" for information that is not a fault.
        reason: one sentence.
    """

    name: str
    status: Status
    reason: str


def checks(
    trace: TargetTrace, prompt: Sequence[InputToken], decoded: Decoded, expected: Expected, tokenizer: Tokenizer
) -> list[Check]:
    """Compare training with generation.

    Args:
        trace: inputs and targets of training.
        prompt: inputs of generation before its first new token.
        decoded: result of decoding when the model outputs the targets.
        expected: the expected values.
        tokenizer: of the language model.

    Returns:
        One result per check, in the order of a sequence.
    """
    results: list[tuple[str, tuple[Status, str]]] = [
        ("same prompt", same_prompt(trace, prompt, tokenizer)),
        ("one BOS", _both(trace, prompt, lambda tokens: _bos(tokens, tokenizer.bos_id, expected.bos))),
        ("image tokens", _both(trace, prompt, lambda tokens: _image(tokens, expected.image_tokens))),
        ("positions", _positions(trace, prompt)),
        ("loss mask", loss_mask(trace)),
        ("complete caption", complete_caption(decoded, expected)),
        ("stop symbol trained", _stop_trained(trace, expected, tokenizer)),
        ("stop ends decoding", stop_ends(trace, decoded, expected)),
        ("length limit", length_limit(trace, expected)),
    ]
    return [Check(name, status, reason) for name, (status, reason) in results]


def piece_text(tokenizer: Tokenizer, token: int | None) -> str:
    """A token as text, `▁` for the space before it; special tokens by name."""
    if token is None:
        return "?"
    anchor = tokenizer.encode("a")
    before = tokenizer.decode(anchor)
    text = tokenizer.decode([*anchor, token]).removeprefix(before)
    if text:
        return text.replace(" ", "▁").replace("\n", "\\n")
    names = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    if token in names or not isinstance(tokenizer, HuggingFaceTokenizer):
        return names.get(token, f"<{token}>")
    return str(tokenizer.library.convert_ids_to_tokens(token))


def same_prompt(trace: TargetTrace, prompt: Sequence[InputToken], tokenizer: Tokenizer) -> tuple[Status, str]:
    """Whether training and generation start with the same tokens."""
    trained, generated = [t.content for t in trace.prompt], [t.content for t in prompt]
    if trained == generated:
        return "ok", f"training and generation start with the same {len(prompt)} tokens"
    index = next(
        (i for i, pair in enumerate(zip(trained, generated, strict=False)) if pair[0] != pair[1]),
        min(len(trained), len(generated)),
    )
    sides = [_named(tokens[index] if index < len(tokens) else None, tokenizer) for tokens in (trained, generated)]
    return "FAIL", f"at index {index} training has {sides[0]}, generation has {sides[1]}"


def _named(what: tuple[int | None, int | None] | None, tokenizer: Tokenizer) -> str:
    if what is None:
        return "nothing more"
    token, slot = what
    return f"image token {slot}" if slot is not None else f"{token} '{piece_text(tokenizer, token)}'"


def _both(
    trace: TargetTrace, prompt: Sequence[InputToken], examine: Callable[[Sequence[InputToken]], tuple[Status, str]]
) -> tuple[Status, str]:
    """The result of the first side that fails, or the common result."""
    for side, tokens in (("training", trace.prompt), ("generation", prompt)):
        status, reason = examine(tokens)
        if status == "FAIL":
            return status, f"{side} {reason}"
    return examine(prompt)


def _bos(tokens: Sequence[InputToken], bos: int | None, expected: tuple[int, bool]) -> tuple[Status, str]:
    """Whether the BOS tokens are those of the conversation, or of the language model's own template."""
    if bos is None:
        return "ok", "the vocabulary has none"
    indices = [index for index, token in enumerate(tokens) if token.id == bos]
    description = f"has {len(indices)} (at {', '.join(map(str, indices))})" if indices else "has none"
    if (len(indices), indices[:1] == [0]) != expected:
        count, starts = expected
        expected_text = (
            "" if expected == (1, True) else f"; expected {count}{', the first at the start' if starts else ''}"
        )
        return "FAIL", description + expected_text
    if indices == [0]:
        return "ok", "one, at the start"
    return "ok", f"{description.removeprefix('has ')}, as the language model's tokenizer writes a prompt"


def _image(tokens: Sequence[InputToken], count: int) -> tuple[Status, str]:
    slots = [token.slot for token in tokens if token.slot is not None]
    indices = [index for index, token in enumerate(tokens) if token.slot is not None]
    strange = [index for index, token in enumerate(tokens) if token.slot is None and token.id is None]
    if strange:
        return "FAIL", f"has a vector at index {strange[0]} that is neither a text token nor an image token"
    if slots != list(range(count)):
        return "FAIL", f"has {len(slots)} image tokens in the order {slots[:8]}; expected 0 to {count - 1}"
    if indices != list(range(indices[0], indices[0] + count)):
        return "FAIL", "splits the image into several parts"
    return "ok", f"{count}, in order, from index {indices[0]}"


def _positions(trace: TargetTrace, prompt: Sequence[InputToken]) -> tuple[Status, str]:
    for side, tokens in (("training", trace.steps[-1].context), ("generation", prompt)):
        wrong = [index for index, token in enumerate(tokens) if token.position != index]
        if wrong:
            return "FAIL", f"{side} gives the token at index {wrong[0]} position {tokens[wrong[0]].position}"
    return "ok", "0, 1, 2, ... on both sides"


def loss_mask(trace: TargetTrace) -> tuple[Status, str]:
    """Whether each target is predicted from the prompt and the previous targets only."""
    prompt = [token.content for token in trace.prompt]
    for number, step in enumerate(trace.steps):
        expected_input = prompt + [(target, None) for target in trace.targets[:number]]
        seen = [token.content for token in step.context]
        if seen != expected_input:
            return "FAIL", (
                f"target {number} is predicted from {len(seen)} tokens, which are not the prompt and the "
                f"{number} previous targets"
            )
    return "ok", f"{len(trace.steps)} targets, each predicted from the prompt and the previous targets only"


def complete_caption(decoded: Decoded, expected: Expected) -> tuple[Status, str]:
    """Whether decoding returns the caption of the data."""
    expected_text, got = _plain(expected.caption), _plain(decoded.text)
    if expected_text == got:
        return "ok", "decoding returns the caption of the data unchanged"
    if got and expected_text.startswith(got):
        return "FAIL", f"it is truncated: '{expected_text[len(got) :].strip()[-60:]}' at its end is missing"
    return "FAIL", f"'{expected_text[:60]}' is decoded as '{got[:60]}'"


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _stop_trained(trace: TargetTrace, expected: Expected, tokenizer: Tokenizer) -> tuple[Status, str]:
    ids, symbol = trace.targets, expected.stop_symbol
    # A tokenizer may merge the symbol with the text before it; end of text decodes to nothing.
    if ids[-len(expected.stop_ids) :] == expected.stop_ids or tokenizer.decode(ids).endswith(symbol):
        return "ok", f"the targets end in {symbol!r}"
    last = piece_text(tokenizer, ids[-1])
    return "FAIL", f"the targets end in '{last}', not in {symbol!r}: the model is not trained to stop"


def stop_ends(trace: TargetTrace, decoded: Decoded, expected: Expected) -> tuple[Status, str]:
    """Whether decoding stops after exactly the targets."""
    count = len(trace.targets)
    if not decoded.stopped:
        return "FAIL", f"decoding does not stop after all {count} targets"
    if decoded.tokens != count:
        return "FAIL", f"decoding stops after {decoded.tokens} of the {count} target tokens"
    return "ok", f"decoding stops at {expected.stop_symbol!r}, after exactly the {count} target tokens"


def length_limit(trace: TargetTrace, expected: Expected) -> tuple[Status, str]:
    """Whether evaluation truncates captions of this length."""
    count, limit = len(trace.targets), expected.max_new_tokens
    if count <= limit:
        return "ok", f"{count} tokens, evaluate.max_new_tokens is {limit}"
    return "note", f"this caption has {count} tokens, evaluate.max_new_tokens truncates captions at {limit}"
