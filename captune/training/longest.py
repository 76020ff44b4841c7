"""The longest samples of a run, of its data or made up: memory that holds them holds all others."""

from __future__ import annotations

from captune.config import RunConfig
from captune.errors import DataError
from captune.model import PromptLayout
from captune.protocols import training_images
from captune.training.samples import TrainingSamples

__all__ = ["longest_samples", "made_up_samples"]

_WORDS = ("dog", "cat", "man", "bus", "sun", "hat", "pen", "toy", "red", "fox")
"""What made-up captions are made of; no two begin with the same letter."""


def longest_samples(config: RunConfig) -> list[tuple[str, ...]] | None:
    """What the longest samples of the data teach, a step's number of them; None where there is no data yet.

    Raises:
        DataError: there is data, and it cannot be read.
    """
    try:
        images = training_images(config)
    except DataError:
        if config.data.train.exists():
            raise
        return None
    samples = TrainingSamples(images, config.train, config.seed)
    return [sample.captions for sample in samples.heaviest_step()]


def made_up_samples(config: RunConfig, layout: PromptLayout, tokens: int) -> list[tuple[str, ...]]:
    """As many samples as a step has, with captions of so many tokens, or as many as the layout allows."""
    together = config.train.captions_per_image if config.train.targets == "each" else 1
    captions = tuple(_caption_of(layout, tokens, number) for number in range(together))
    return [captions] * max(1, config.train.batch_size // together)


def _caption_of(layout: PromptLayout, tokens: int, number: int) -> str:
    """One of several captions that begin otherwise, so that a row has no tokens of theirs in common."""
    further, first = divmod(number, len(_WORDS))
    words = [_WORDS[first]]
    while len(layout.target_ids(" ".join(words))[0]) < min(tokens, layout.max_target_tokens):
        words.append(_WORDS[further % len(_WORDS)])
    return " ".join(words)
