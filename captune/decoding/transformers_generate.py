"""Generation with the `generate` of transformers: the reference, and the fallback without static KV cache support.

Letters: B rows, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from captune.decoding.options import DecodingOptions, Request
from captune.decoding.sampling import apply_repetition_penalty, row_uniforms, sample, warp_logits
from captune.errors import ConfigError
from captune.model import MiniGPT4, MiniGPT4Processor, TokenSequence, is_batch_invariant

__all__ = ["SamplingProcessor", "ScoreCheck", "StopSymbol", "generate_with_transformers"]


class SamplingProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Samples with the random numbers of each row: all logits but that of the sampled token become -inf.

    Args:
        options: temperature, restrictions and seed.
        keys: of the B rows; see `Request.key`.
    """

    def __init__(self, options: DecodingOptions, keys: Sequence[str]) -> None:
        self._options = options
        self._uniforms = torch.stack([row_uniforms(options, key) for key in keys])
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores, of which one a row is not -inf; called once a step."""
        scores = scores.float()
        tokens = sample(warp_logits(scores, self._options), self._uniforms[:, self._step])
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.unsqueeze(1), 0.0)


class _Penalty(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """The repetition penalty.

    When the prompt is passed as embeddings, transformers' processor skips as many of a row's first new tokens as the
    prompt has padding: captions in a batch would differ from captions alone.
    """

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores, those of the (B, T) new ids penalized."""
        generated = torch.zeros_like(scores, dtype=torch.bool).scatter(1, input_ids, True)
        return apply_repetition_penalty(scores, generated, self._penalty)


class StopSymbol(StoppingCriteria):  # type: ignore[misc]  # transformers has no types here
    """True for the rows whose newest tokens complete the stop symbol.

    The symbol is text and not a token: a vocabulary may spell it in several ways, so the end of every row is decoded
    after each step and searched for it.

    Args:
        processor: of the model.
    """

    def __init__(self, processor: MiniGPT4Processor) -> None:
        self.symbol = processor.layout.stop_text
        self.tokenizer = processor.tokenizer
        # The symbol has at most as many tokens as bytes.
        self.tail = len(self.symbol.encode())

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Which of the (B, T) rows have ended, (B,) bool."""
        ended = [False] * len(input_ids)
        if self.symbol:
            ended = [self.symbol in self.tokenizer.decode(row) for row in input_ids[:, -self.tail :].tolist()]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def generate_with_transformers(
    model: MiniGPT4, requests: Sequence[Request], options: DecodingOptions, *, stop_symbol: bool
) -> tuple[list[list[int]], set[int]]:
    """Decode one batch of captions.

    Args:
        model: with its processor.
        requests: B prompts, padded on the left here.
        options: how to decode; the batch is not divided.
        stop_symbol: whether the stop symbol ends a caption, or the end of text alone.

    Returns:
        B lists of new ids, up to the token that ended them; and the indices of those with non-finite scores.
    """
    processor = model.processor
    assert processor is not None
    device = model.projection.weight.device
    batch = processor.pad([TokenSequence(request.prompt, len(request.prompt)) for request in requests], left=True)
    features = [values for values in (request.read_features() for request in requests) if values is not None]
    ends = list(processor.end_ids)
    settings: dict[str, Any] = {"length_penalty": options.length_penalty} if options.beams > 1 else {}
    check = ScoreCheck()
    processors: list[LogitsProcessor] = [check]
    if options.repetition_penalty != 1.0:
        processors.append(_Penalty(options.repetition_penalty))
    if options.sampled:
        processors.append(SamplingProcessor(options, [request.key for request in requests]))
    settings["logits_processor"] = LogitsProcessorList(processors)
    if options.beams > 1 and not is_batch_invariant(model.llm, padded=False):
        # Beams are a batch, too.
        raise ConfigError(
            f"A '{model.llm.config.model_type}' language model mixes up the rows of a batch, so it has no beam "
            "search; set the number of beams to 1."
        )
    if stop_symbol:
        settings["stopping_criteria"] = StoppingCriteriaList([StopSymbol(processor)])
    new_ids = model.generate(
        batch["input_ids"].to(device),
        batch["attention_mask"].to(device),
        features=torch.cat(features).to(device) if features else None,
        max_new_tokens=options.max_new_tokens,
        num_beams=options.beams,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=ends or None,
        # Rows that have ended are padded with this id; it must be in the vocabulary, because it is embedded.
        pad_token_id=ends[0] if ends else 0,
        **settings,
    )
    symbol = StopSymbol(processor) if stop_symbol else None
    rows = [_cut(row, processor, symbol) for row in new_ids.tolist()]
    return rows, check.faulty([len(row) for row in rows], beams=options.beams)


def _cut(row: list[int], processor: MiniGPT4Processor, symbol: StopSymbol | None) -> list[int]:
    """A row up to its end; transformers pads it to the longest row."""
    row = row[: len(processor.trim_at_end(row)) + 1]
    if symbol is None or not symbol.symbol or symbol.symbol not in symbol.tokenizer.decode(row):
        return row
    shortest = next(n for n in range(1, len(row) + 1) if symbol.symbol in symbol.tokenizer.decode(row[:n]))
    return row[:shortest]


_NEVER = torch.iinfo(torch.int64).max


class ScoreCheck(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Records which rows of transformers' `generate` get non-finite scores, without a device sync."""

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The (R, V) scores, unchanged; called once a step."""
        faulty = ~scores.amax(dim=-1).isfinite()
        now = torch.where(faulty, self._step, _NEVER)
        if self._first is not None and len(self._first) != len(now):
            # A model that changes its batch between steps: the captions of these rows are not known.
            self._first = self._first.amin().expand(len(now))
        self._first = now if self._first is None else torch.minimum(self._first, now)
        self._step += 1
        return scores

    def faulty(self, lengths: Sequence[int], *, beams: int = 1) -> set[int]:
        """Indices of the captions with non-finite scores.

        Args:
            lengths: tokens of each of the N captions; what `generate` computes after an end does not count.
            beams: rows of a caption.
        """
        if self._first is None:
            return set()
        divides = len(self._first) % len(lengths) == 0
        rows = self._first.view(len(lengths), -1) if divides else self._first.expand(len(lengths), -1)
        first = rows.amin(dim=1).tolist()
        # The steps of a beam search decide its answer even where they are more than the answer is long.
        ends = [_NEVER] * len(lengths) if beams > 1 else lengths
        return {n for n, (step, end) in enumerate(zip(first, ends, strict=True)) if step < end}
