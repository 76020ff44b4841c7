"""Batched generation that stops where an answer ends.

transformers' `generate` does the decoding; what is added is the stop symbol. It is text, not a token: a vocabulary may
spell it in several ways, so the tail of every row is decoded after each step and compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from captune.model import MiniGPT4, MiniGPT4Processor, TokenSequence

__all__ = ["Caption", "DecodingOptions", "generate_captions"]


@dataclass(frozen=True)
class DecodingOptions:
    """How captions are decoded.

    Attributes:
        max_new_tokens: longest caption in tokens, stop symbol included.
        beams: beams of beam search; 1 is greedy.
        length_penalty: exponent on a beam's length.
        repetition_penalty: divides the score of tokens already said; 1 is off.
        batch_size: images captioned at once.
    """

    max_new_tokens: int = 40
    beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    batch_size: int = 32

    def __str__(self) -> str:
        """How it stands in a signature, such as `greedy,max40` or `beam3,lp0.6,max40`."""
        parts = ["greedy"] if self.beams == 1 else [f"beam{self.beams}", f"lp{self.length_penalty:g}"]
        if self.repetition_penalty != 1.0:
            parts.append(f"rp{self.repetition_penalty:g}")
        return ",".join([*parts, f"max{self.max_new_tokens}"])


@dataclass(frozen=True)
class Caption:
    """One generated caption.

    Attributes:
        text: the caption, without the stop symbol.
        tokens: how many tokens were generated for it, stop symbol included.
        stopped: whether it ended by itself, with the stop symbol or the end of text, and not at the length limit.
    """

    text: str
    tokens: int
    stopped: bool


class _StopSymbol(StoppingCriteria):  # type: ignore[misc]  # transformers has no types here
    """True for the rows whose newest tokens complete the stop symbol."""

    def __init__(self, processor: MiniGPT4Processor) -> None:
        self.symbol = processor.layout.conversation.stop_symbol
        self.tokenizer = processor.tokenizer
        # However the symbol is cut into tokens, it has no more of them than bytes.
        self.tail = len(self.symbol.encode())

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        rows = input_ids[:, -self.tail :].tolist()
        ended = [self.symbol in self.tokenizer.decode(row) for row in rows]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def generate_captions(
    model: MiniGPT4,
    features: Tensor,
    instruction: str,
    options: DecodingOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Caption]:
    """Caption images from their stored features.

    Args:
        model: its processor attached.
        features: (N, Q, F) output of the frozen part.
        instruction: what is asked of every image.
        options: how to decode.
        on_progress: called with (done, N) after each batch.

    Returns:
        N captions in the order of the features.
    """
    processor = model.processor
    if processor is None:
        raise ValueError("The model has no processor; load it with from_pretrained or load_official.")
    prompt = processor.layout.prompt(instruction)
    weight = model.projection.weight
    captions: list[Caption] = []
    for start in range(0, len(features), options.batch_size):
        batch = features[start : start + options.batch_size].to(weight.device)
        captions.extend(_generate_batch(model, processor, batch, prompt, options))
        if on_progress is not None:
            on_progress(len(captions), len(features))
    return captions


def _generate_batch(
    model: MiniGPT4,
    processor: MiniGPT4Processor,
    features: Tensor,
    prompt: TokenSequence,
    options: DecodingOptions,
) -> list[Caption]:
    rows = torch.tensor([prompt.ids], device=features.device).expand(len(features), -1)
    eos = processor.tokenizer.eos_id
    filler = eos if eos is not None else 0
    settings: dict[str, Any] = {"length_penalty": options.length_penalty} if options.beams > 1 else {}
    if options.repetition_penalty != 1.0:
        settings["repetition_penalty"] = options.repetition_penalty
    new_ids = model.generate(
        rows,
        features=features,
        max_new_tokens=options.max_new_tokens,
        num_beams=options.beams,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=eos,
        pad_token_id=filler,
        stopping_criteria=StoppingCriteriaList([_StopSymbol(processor)]),
        **settings,
    )
    return [_caption(processor, row, eos) for row in new_ids.tolist()]


def _caption(processor: MiniGPT4Processor, ids: list[int], eos: int | None) -> Caption:
    """Read one row: up to the end of text or the stop symbol, whichever comes first; the rest is filler."""
    stopped = eos is not None and eos in ids
    if stopped:
        ids = ids[: ids.index(eos) + 1]  # type: ignore[arg-type]
    text = processor.tokenizer.decode(ids)
    stopped = stopped or processor.layout.conversation.stop_symbol in text
    return Caption(processor.layout.cut(text), len(ids), stopped)
