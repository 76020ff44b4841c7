"""What transformers' `generate` is told, and what of its output is the caption.

A model's folder may hold settings of `generate`: a repetition penalty, a least length, beams. A caption follows
captune's decoding options alone, which stand in its signature, so those settings are set back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

__all__ = ["Observer", "caption_ends", "caption_starts", "reset_decoding", "written_ids"]

_KEPT = {
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "eos_token_id",
    "forced_bos_token_id",
    "max_cache_len",
    "pad_token_id",
    "prefill_chunk_size",
    "transformers_version",
    "use_cache",
}
"""Settings that say how a text begins, ends and is computed; all others choose other words."""


def reset_decoding(model: Any, pad_token_id: int) -> None:
    """Set back whatever in the generation configurations of a model and its parts chooses other words.

    Args:
        model: the model; parts such as a Q-Former model's language model generate with configurations of their own.
        pad_token_id: fills rows that ended, where the model names no token for it.
    """
    neutral = GenerationConfig()
    for part in model.modules():
        settings = getattr(part, "generation_config", None)
        if not isinstance(settings, GenerationConfig):
            continue
        for name, value in vars(neutral).items():
            if name not in _KEPT and not name.startswith("_"):
                setattr(settings, name, value)
        if settings.pad_token_id is None:
            settings.pad_token_id = pad_token_id


class Observer(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Sees where generation begins, whatever a model makes of its prompt before.

    Attributes:
        begin: ids in front of the first new one.
        scores: (B, V) scores of the first new id.
    """

    def __init__(self) -> None:
        self.begin = 0
        self.scores: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, unchanged; called once a step."""
        if self.scores is None:
            self.begin = int(input_ids.shape[1])
            self.scores = scores.detach().float()
        return scores


def written_ids(output: Tensor, prompt: Tensor | None, begin: int) -> tuple[Tensor, int]:
    """The ids of captions in what `generate` gave.

    A prompt that is repeated as it was is cut. Words that the model turned into the beginning of its own text (BLIP,
    Pix2Struct) are the beginning of the caption.

    Args:
        output: (B, T) ids.
        prompt: (B, P) ids that were given.
        begin: ids in front of the first new one.

    Returns:
        (B, T') ids, and how many of them are not new.
    """
    if prompt is not None and output.shape[1] >= prompt.shape[1]:
        length = prompt.shape[1]
        if torch.equal(output[:, :length], prompt.to(output.device)):
            return output[:, length:], max(0, begin - length)
    return output, min(begin, output.shape[1])


def caption_starts(model: Any) -> set[int]:
    """Ids that begin a text, which are no part of it whatever a tokenizer makes of them."""
    configs = [getattr(part, "generation_config", None) for part in model.modules()]
    configs += [model.config, model.config.get_text_config(decoder=True)]
    return set(_values(configs, ("bos_token_id", "decoder_start_token_id")))


def caption_ends(model: Any, tokenizer: Any) -> tuple[set[int], set[int]]:
    """Ids that may end a caption, and ids that fill a row behind its end.

    Args:
        model: whose configurations name them, and those of its parts.
        tokenizer: names them too.
    """
    configs = [getattr(part, "generation_config", None) for part in model.modules()]
    configs += [model.config, model.config.get_text_config(decoder=True)]
    ends = set(_values(configs, ("eos_token_id", "sep_token_id"))) | set(_values([tokenizer], ("eos_token_id",)))
    fillers = set(_values([*configs, tokenizer], ("pad_token_id",)))
    return ends, fillers | ends


def _values(sources: Iterable[Any], names: tuple[str, ...]) -> Iterator[int]:
    for source in sources:
        for name in names:
            value = getattr(source, name, None)
            yield from value if isinstance(value, (list, tuple)) else [] if value is None else [int(value)]
