"""From images to captions in one call, for those who need no more than that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

if TYPE_CHECKING:
    from captune.model.minigpt4 import MiniGPT4
    from captune.model.processor import ImageLike, MiniGPT4Processor

__all__ = ["StopSymbol", "caption_images"]


class StopSymbol(StoppingCriteria):  # type: ignore[misc]  # transformers has no types here
    """True for the rows whose newest tokens complete the stop symbol.

    The symbol is text, not a token: a vocabulary may spell it in several ways, so the tail of every row is decoded
    after each step and compared with it.

    Args:
        processor: knows the symbol and the vocabulary.
    """

    def __init__(self, processor: MiniGPT4Processor) -> None:
        self.symbol = processor.layout.stop_text
        self.tokenizer = processor.tokenizer
        # However the symbol is cut into tokens, it has no more of them than bytes.
        self.tail = len(self.symbol.encode())

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Which of the (B, T) rows have ended, (B,) bool."""
        ended = [False] * len(input_ids)
        if self.symbol:
            ended = [self.symbol in self.tokenizer.decode(row) for row in input_ids[:, -self.tail :].tolist()]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def caption_images(
    model: MiniGPT4,
    images: Sequence[ImageLike],
    instruction: str | None,
    *,
    batch_size: int,
    max_new_tokens: int,
    num_beams: int,
    **settings: Any,
) -> list[str]:
    """Caption N images, the same text for an image whatever its neighbours are; see `MiniGPT4.caption`."""
    processor = model.processor
    assert processor is not None
    weight = model.projection.weight
    captions: list[str] = []
    for start in range(0, len(images), batch_size):
        batch = processor(images[start : start + batch_size], instruction).to(weight.device)
        new_ids = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            stopping_criteria=StoppingCriteriaList([StopSymbol(processor)]),
            **settings,
        )
        captions.extend(processor.batch_decode(new_ids))
    return captions
