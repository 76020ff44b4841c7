"""Is what training teaches what generation continues? The comparison, on what the language model was really fed.

Nothing here lays out a prompt. `captune.explain.explanation` watches both sides at the language model's door and hands
over what came through; here it is compared, check by check, and put into words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from captune.model import Tokenizer

__all__ = ["Check", "Decoded", "Expected", "FedToken", "Taught", "TaughtStep", "checks", "piece_text"]

Status = Literal["ok", "FAIL", "note"]


@dataclass(frozen=True, slots=True)
class FedToken:
    """One token as the language model received it.

    Attributes:
        id: of the vocabulary; None for an image token, and for a vector that is neither.
        slot: which of the image's tokens it is, from 0; None for text.
        position: its position id.
    """

    id: int | None
    slot: int | None
    position: int

    @property
    def what(self) -> tuple[int | None, int | None]:
        """The token without its place."""
        return self.id, self.slot


@dataclass(frozen=True, slots=True)
class TaughtStep:
    """One target: the tokens that its prediction depends on, and the token to be predicted."""

    seen: tuple[FedToken, ...]
    target: int


@dataclass(frozen=True, slots=True)
class Taught:
    """One caption as training teaches it, target after target."""

    steps: tuple[TaughtStep, ...]

    @property
    def prompt(self) -> tuple[FedToken, ...]:
        """What the first target is predicted from."""
        return self.steps[0].seen

    @property
    def targets(self) -> tuple[int, ...]:
        """The ids that are learnt."""
        return tuple(step.target for step in self.steps)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What decoding made of a model that says the targets, word for word, and then goes on talking.

    Attributes:
        text: the caption that came out.
        tokens: how many tokens were decoded.
        stopped: whether decoding ended by itself.
    """

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """What has to be found.

    Attributes:
        caption: the caption as it stands in the data.
        image_tokens: Q, how many tokens an image takes.
        stop_symbol: text that ends an answer.
        stop_ids: its ids behind a word.
        max_new_tokens: how long a caption evaluation allows.
        beginnings: how many beginnings of text a prompt has, and whether it begins with one.
    """

    caption: str
    image_tokens: int
    stop_symbol: str
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    beginnings: tuple[int, bool] = (1, True)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold.

    Attributes:
        name: of the check.
        status: "ok", "FAIL", or "note" for what is worth knowing and no fault.
        reason: what was found, a sentence.
    """

    name: str
    status: Status
    reason: str


def checks(
    taught: Taught, prompt: Sequence[FedToken], decoded: Decoded, expected: Expected, tokenizer: Tokenizer
) -> list[Check]:
    """Compare training with generation.

    Args:
        taught: what training fed and asked for.
        prompt: what generation fed before its first new token.
        decoded: what came out of decoding when the model said the targets.
        expected: what has to be found.
        tokenizer: vocabulary of the language model.

    Returns:
        One result for each check, in the order of a sequence.
    """
    results: list[tuple[str, tuple[Status, str]]] = [
        ("same prompt", _same_prompt(taught, prompt, tokenizer)),
        ("one BOS", _both(taught, prompt, lambda tokens: _bos(tokens, tokenizer.bos_id, expected.beginnings))),
        ("image tokens", _both(taught, prompt, lambda tokens: _image(tokens, expected.image_tokens))),
        ("positions", _positions(taught, prompt)),
        ("loss mask", _loss_mask(taught)),
        ("whole caption", _whole_caption(decoded, expected)),
        ("stop symbol learnt", _stop_learnt(taught, expected, tokenizer)),
        ("stop ends decoding", _stop_ends(taught, decoded, expected)),
        ("room for it", _room(taught, expected)),
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
    return names.get(token, f"<{token}>")


def _same_prompt(taught: Taught, prompt: Sequence[FedToken], tokenizer: Tokenizer) -> tuple[Status, str]:
    trained, generated = [t.what for t in taught.prompt], [t.what for t in prompt]
    if trained == generated:
        return "ok", f"training and generation start from the same {len(prompt)} tokens"
    index = next(
        (i for i, pair in enumerate(zip(trained, generated, strict=False)) if pair[0] != pair[1]),
        min(len(trained), len(generated)),
    )
    sides = [_named(tokens[index] if index < len(tokens) else None, tokenizer) for tokens in (trained, generated)]
    return "FAIL", f"at place {index} training has {sides[0]}, generation has {sides[1]}"


def _named(what: tuple[int | None, int | None] | None, tokenizer: Tokenizer) -> str:
    if what is None:
        return "nothing more"
    token, slot = what
    return f"image token {slot}" if slot is not None else f"{token} '{piece_text(tokenizer, token)}'"


def _both(
    taught: Taught, prompt: Sequence[FedToken], examine: Callable[[Sequence[FedToken]], tuple[Status, str]]
) -> tuple[Status, str]:
    """The first side that is wrong, or what holds for both."""
    for side, tokens in (("training", taught.prompt), ("generation", prompt)):
        status, reason = examine(tokens)
        if status == "FAIL":
            return status, f"{side} {reason}"
    return examine(prompt)


def _bos(tokens: Sequence[FedToken], bos: int | None, expected: tuple[int, bool]) -> tuple[Status, str]:
    """Whether the beginnings of text are those that the conversation has, or the language model's own template."""
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


def _image(tokens: Sequence[FedToken], count: int) -> tuple[Status, str]:
    slots = [token.slot for token in tokens if token.slot is not None]
    indices = [index for index, token in enumerate(tokens) if token.slot is not None]
    strange = [index for index, token in enumerate(tokens) if token.slot is None and token.id is None]
    if strange:
        return "FAIL", f"feeds a vector at {strange[0]} that is neither a word nor one of the image's tokens"
    if slots != list(range(count)):
        return "FAIL", f"feeds {len(slots)} image tokens in the order {slots[:8]}; expected 0 to {count - 1}"
    if indices != list(range(indices[0], indices[0] + count)):
        return "FAIL", "feeds the image in several pieces"
    return "ok", f"{count}, in order, from place {indices[0]}"


def _positions(taught: Taught, prompt: Sequence[FedToken]) -> tuple[Status, str]:
    for side, tokens in (("training", taught.steps[-1].seen), ("generation", prompt)):
        wrong = [index for index, token in enumerate(tokens) if token.position != index]
        if wrong:
            return "FAIL", f"{side} gives the token at place {wrong[0]} position {tokens[wrong[0]].position}"
    return "ok", "0, 1, 2, ... on both sides"


def _loss_mask(taught: Taught) -> tuple[Status, str]:
    """Each target has to be predicted from the prompt and the targets before it, and from nothing else."""
    prompt = [token.what for token in taught.prompt]
    for number, step in enumerate(taught.steps):
        expected_input = prompt + [(target, None) for target in taught.targets[:number]]
        seen = [token.what for token in step.seen]
        if seen != expected_input:
            return "FAIL", (
                f"target {number} is predicted from {len(seen)} tokens, which are not the prompt and the "
                f"{number} targets before it"
            )
    return "ok", f"{len(taught.steps)} targets, each predicted from the prompt and the targets before it alone"


def _whole_caption(decoded: Decoded, expected: Expected) -> tuple[Status, str]:
    expected_text, got = _plain(expected.caption), _plain(decoded.text)
    if expected_text == got:
        return "ok", "the caption comes back as it stands in the data"
    if got and expected_text.startswith(got):
        return "FAIL", f"it is cut: '{expected_text[len(got) :].strip()[-60:]}' at its end is lost"
    return "FAIL", f"'{expected_text[:60]}' comes back as '{got[:60]}'"


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _stop_learnt(taught: Taught, expected: Expected, tokenizer: Tokenizer) -> tuple[Status, str]:
    ids, symbol = taught.targets, expected.stop_symbol
    # A vocabulary may join the symbol with the text before it; the end of text is no text at all.
    if ids[-len(expected.stop_ids) :] == expected.stop_ids or tokenizer.decode(ids).endswith(symbol):
        return "ok", f"the targets end in {symbol!r}"
    last = piece_text(tokenizer, ids[-1])
    return "FAIL", f"the targets end in '{last}', not in {symbol!r}: the model never learns to stop"


def _stop_ends(taught: Taught, decoded: Decoded, expected: Expected) -> tuple[Status, str]:
    count = len(taught.targets)
    if not decoded.stopped:
        return "FAIL", f"a model that says all {count} targets is not stopped behind them"
    if decoded.tokens != count:
        return "FAIL", f"decoding stops after {decoded.tokens} of the {count} tokens that are learnt"
    return "ok", f"decoding ends behind {expected.stop_symbol!r}, after exactly the {count} tokens that are learnt"


def _room(taught: Taught, expected: Expected) -> tuple[Status, str]:
    count, limit = len(taught.targets), expected.max_new_tokens
    if count <= limit:
        return "ok", f"{count} tokens, evaluate.max_new_tokens is {limit}"
    return "note", f"this caption takes {count} tokens, evaluate.max_new_tokens cuts captions at {limit}"
