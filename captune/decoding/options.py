"""Inputs and outputs of decoding: options, requests with their stop rule, progress, captions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from captune.common import Thinking, did_you_mean
from captune.errors import ConfigError, NonFiniteScoresError

if TYPE_CHECKING:
    from torch import Tensor

    from captune.model import MiniGPT4Processor

__all__ = [
    "NON_FINITE_SCORES",
    "Caption",
    "DecodingKeywords",
    "DecodingOptions",
    "FeatureRows",
    "Progress",
    "Request",
    "StopRule",
    "common_prefix",
    "raise_if_faulty",
    "with_keywords",
]


@dataclass(frozen=True)
class DecodingOptions:
    """How captions are decoded.

    Attributes:
        max_new_tokens: longest caption in tokens, stop symbol included.
        beams: beams of beam search; 1 is greedy.
        length_penalty: exponent on a beam's length.
        repetition_penalty: divides the scores of tokens generated before; 1 is off.
        batch_size: largest number of images at once.
        temperature: above 0 a token is sampled from the distribution sharpened by it; 0 takes the most likely one.
        top_k: sample among this many most likely tokens only; 0 is all.
        top_p: sample among the most likely tokens with this total probability; 1 is all.
        seed: of sampling. Each image has separate random numbers, so its caption depends on no other image.
        compiled: run the language model in batches of one shape through torch.compile, with CUDA graphs on a GPU. The
            first step takes up to a minute; the captions are the same, but for rounding.

    Raises:
        ConfigError: a value is out of its range, or both beams and a temperature are set.
    """

    max_new_tokens: int = 40
    beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    batch_size: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if self.temperature < 0 or self.top_k < 0:
            raise ConfigError(f"temperature is {self.temperature:g} and top_k {self.top_k}; neither may be below 0.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p:g}; expected a share above 0 and at most 1.")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty:g}; expected 0.01 to 100, where 1 is off."
            )
        if self.sampled and self.beams > 1:
            raise ConfigError(f"beams is {self.beams} and temperature {self.temperature:g}; use one of them.")

    @property
    def sampled(self) -> bool:
        """Whether tokens are sampled."""
        return self.temperature > 0

    def __str__(self) -> str:
        """As written in a signature, such as `greedy,max40` or `beam3,lp0.6,max40`."""
        if self.sampled:
            parts = ["sample", f"t{self.temperature:g}"]
            parts += [f"k{self.top_k}"] * (self.top_k > 0) + [f"p{self.top_p:g}"] * (self.top_p < 1)
            parts.append(f"seed{self.seed}")
        else:
            parts = ["greedy"] if self.beams == 1 else [f"beam{self.beams}", f"lp{self.length_penalty:g}"]
        if self.repetition_penalty != 1.0:
            parts.append(f"rp{self.repetition_penalty:g}")
        return ",".join([*parts, f"max{self.max_new_tokens}"])


class DecodingKeywords(TypedDict, total=False):
    """Decoding options as keywords of a function: the fields of `DecodingOptions`."""

    max_new_tokens: int
    beams: int
    length_penalty: float
    repetition_penalty: float
    batch_size: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    compiled: bool


def with_keywords(options: DecodingOptions | None, keywords: Mapping[str, Any]) -> DecodingOptions | None:
    """Decoding options with some of them replaced.

    Args:
        options: the others; None for the defaults.
        keywords: `DecodingKeywords`.

    Returns:
        `options` itself if there are no keywords.

    Raises:
        ConfigError: a name is unknown, or a value is of another type or out of its range.
    """
    if not keywords:
        return options
    kinds = {field.name: type(field.default) for field in fields(DecodingOptions)}
    for name, value in keywords.items():
        if name not in kinds:
            known = f"the options are {', '.join(kinds)}."
            raise ConfigError(f"There is no decoding option '{name}'; {did_you_mean(name, kinds, known)}")
        accepted = (int, float) if kinds[name] is float else kinds[name]
        if not isinstance(value, accepted) or isinstance(value, bool) is not (kinds[name] is bool):
            expected = {int: "an integer", float: "a number", bool: "True or False"}[kinds[name]]
            raise ConfigError(f"{name} is {value!r}; expected {expected}.")
    return replace(options or DecodingOptions(), **keywords)


@dataclass(frozen=True)
class Caption:
    """One generated caption.

    Attributes:
        text: the caption, without the stop symbol.
        tokens: number of generated tokens, stop symbol included.
        stopped: whether it ended with the stop symbol or EOS, not at the length limit.
        thinking: whether thinking text was removed from it, and whether that text ended.
    """

    text: str
    tokens: int
    stopped: bool
    thinking: Thinking = "none"


_REPLACEMENT = "�"
"""What a tokenizer decodes an incomplete character to."""


class StopRule:
    """Decides from its ids whether a row has ended.

    The stop symbol is text, not a token: a vocabulary may encode it in several ways, and a token may contain its end
    and more. Decoding the tail of every row after each step would be slow. A token whose text neither contains the
    symbol nor starts with one of its suffixes cannot complete it, so rows are decoded after the few other tokens only;
    this is computed once for each generated token.

    Args:
        processor: has the stop symbol and the vocabulary.
        symbol: whether the stop symbol ends a row; otherwise only EOS does.
        also: other texts that end a row, such as the stop sequences of a request.
    """

    def __init__(self, processor: MiniGPT4Processor, *, symbol: bool = True, also: Sequence[str] = ()) -> None:
        self._tokenizer = processor.tokenizer
        self._symbols = tuple(filter(None, (processor.layout.stop_text if symbol else "", *also)))
        self.end_ids = frozenset(processor.end_ids)
        # A symbol has at most as many tokens as bytes; one more token keeps the space that a vocabulary drops at the
        # start of a text.
        self._tail = max((len(text.encode()) for text in self._symbols), default=0)
        self._anchor = self._tokenizer.encode("a")[-1:]
        self._anchor_text = self._tokenizer.decode(self._anchor)
        self._completes: dict[int, bool] = {}

    def ended(self, ids: Sequence[int], newest: int) -> bool:
        """Whether `newest`, generated after `ids`, ends the row."""
        if newest in self.end_ids:
            return True
        if not self._symbols or not self._may_complete(newest):
            return False
        text = self._tokenizer.decode([*ids[-self._tail :], newest])
        return any(symbol in text for symbol in self._symbols)

    def _may_complete(self, token: int) -> bool:
        known = self._completes.get(token)
        if known is None:
            known = self._completes[token] = self._compute_may_complete(token)
        return known

    def _compute_may_complete(self, token: int) -> bool:
        text = self._tokenizer.decode([*self._anchor, token])
        if not text.startswith(self._anchor_text) or _REPLACEMENT in text:
            # A piece of a character, or a vocabulary whose texts are not simply concatenated.
            return True
        text = text[len(self._anchor_text) :]
        rests = tuple(symbol[start:] for symbol in self._symbols for start in range(1, len(symbol)))
        return any(symbol in text for symbol in self._symbols) or text.startswith(rests)


class FeatureRows(Protocol):
    """Features of N images, in memory or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Those of some images, (B, Q, F)."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One requested caption.

    Attributes:
        number: distinguishes it from others; its index in a list of results.
        prompt: T token ids, `IMAGE_SLOT` for each image token.
        features: (I, Q, F) output of the frozen part for its images, or a function that reads it on demand; None for
            text only.
        key: selects the random numbers of sampling, with the seed; requests with equal keys use the same numbers.
        stop: stop rule of this caption; by default the engine's.
    """

    number: int
    prompt: tuple[int, ...]
    features: Tensor | Callable[[], Tensor] | None = None
    key: str = ""
    stop: StopRule | None = None

    def read_features(self) -> Tensor | None:
        """(I, Q, F), or None for text only."""
        return self.features() if callable(self.features) else self.features


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of one request after a step.

    Attributes:
        number: of the request.
        ids: all new ids so far, of the best beam where there are several; read it at once, the list keeps growing.
        ended: whether these are all.
        faulty: whether it ended because of non-finite scores; its ids are then invalid.
    """

    number: int
    ids: Sequence[int]
    ended: bool
    faulty: bool = False


def common_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Leading text that all prompts share, at most up to the first image and without the last token of any."""
    from captune.model import IMAGE_SLOT  # imports torch, and options of decoding need none

    first = prompts[0]
    length = min(len(prompt) for prompt in prompts) - 1
    if IMAGE_SLOT in first:
        length = min(length, first.index(IMAGE_SLOT))
    for other in set(prompts):
        while other[:length] != first[:length]:
            length -= 1
    return first[: max(length, 0)]


NON_FINITE_SCORES = (
    "the model's scores are not numbers (NaN or infinite): a weight is broken, or the number format overflows; try "
    "--dtype bfloat16 or float32 (model.dtype in a run's configuration)"
)
"""Why an image has no caption.

A broken weight, or an overflow in float16, makes logits NaN or infinite; the most likely token is then any id, often
the end of text, and the caption an empty string. A row is faulty where a logit is NaN or +inf, or all are -inf; single
logits of -inf are how models and processors forbid tokens.
"""


def raise_if_faulty(captions: Sequence[Any], faulty: Collection[int], reason: str = NON_FINITE_SCORES) -> None:
    """Raise an error if captions have non-finite scores.

    Args:
        captions: one for each image.
        faulty: indices of these captions.
        reason: a sentence.

    Raises:
        NonFiniteScoresError: there are any; it has the other captions.
    """
    if faulty:
        kept = [None if index in faulty else caption for index, caption in enumerate(captions)]
        raise NonFiniteScoresError(kept, dict.fromkeys(sorted(faulty), reason))
