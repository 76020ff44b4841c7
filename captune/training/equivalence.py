"""Equivalence check before the first step: packed rows and compiled layers must give the gradient of plain rows.

Sliding windows, linear attention and positions that are not position ids make packing wrong, some without an error, so
there is no list of supported families. A sliding window affects rows that are longer than it: besides samples of the
data, captions of the maximum length are compared, and if these fail, shorter ones, to find the maximum length of packed
rows. In 16-bit formats rounding alone changes the gradient of a deep model by a tenth, more than some of these faults;
so a float32 copy of the first few layers is compared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captune.common import error_text
from captune.decoding import is_out_of_memory
from captune.errors import ConfigError
from captune.model import MiniGPT4, copy_first_layers, decoder_layers, is_sharded
from captune.training.loss import Objective
from captune.training.sample_order import TrainingSample

__all__ = ["CheckedObjective", "check_packing", "truncated_copy"]

EXACT = 1e-4
"""Largest relative difference of gradients that is due to rounding in float32."""
EXACT_IN_HALF = 0.3
"""The same for 16-bit formats: 0.08 to 0.11 were measured at 32 layers of 4,096, 0.16 at 40 of 5,120."""

_LAYERS = 2
"""Layers of the copy; more if these do not include every kind of layer."""
Loss = Callable[[Sequence[TrainingSample], Tensor], Tensor]
"""Function of samples and their features."""

_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, ConfigError)


class CheckedObjective(Objective):
    """The objective of a MiniGPT-4, which turns off what changes its gradient."""

    def check(self, samples: Sequence[TrainingSample], features: Tensor) -> str | None:
        """Compare gradients; see `check_packing`."""
        return check_packing(self, samples, features)


def check_packing(objective: Objective, samples: Sequence[TrainingSample], features: Tensor) -> str | None:
    """Compare gradients, and turn off packing or compilation if they differ.

    Args:
        objective: of a run.
        samples: a few, preferably the longest.
        features: (B, Q, F) of their images.

    Returns:
        Why packing is now off, for all samples or for those with long rows; None if it is exact. If compilation is
        turned off, this is logged.
    """
    if not objective.packed:
        return None
    half = objective.model.llm.dtype in (torch.bfloat16, torch.float16)
    short = truncated_copy(objective.model) if half else None
    tried = objective.on(objective.model if short is None else short)
    allowed = EXACT_IN_HALF if half and short is None else EXACT
    reason = _mismatch(tried, samples, features, allowed)
    if reason is not None and tried.skips_unused:
        # The cause may be that a layer does not support its tokens in two parts.
        tried.disable_layer_skipping()
        objective.disable_layer_skipping()
        reason = _mismatch(tried, samples, features, allowed)
    if reason is not None:
        objective.disable_packing()
        return reason
    reason = _limit(objective, tried, samples, features, allowed)
    if objective.packed:
        _check_compiled(objective, samples, features, EXACT_IN_HALF if half else EXACT)
    return reason


def _limit(
    objective: Objective, tried: Objective, samples: Sequence[TrainingSample], features: Tensor, allowed: float
) -> str | None:
    """Find the maximum length of packed rows; returns why longer ones are not packed, None if none are longer."""
    words = " ".join(caption for sample in samples for caption in sample.captions).split() or ["a"]
    count = max(len(sample.captions) for sample in samples)
    instruction = max(samples, key=lambda sample: tried.lengths(sample).plain).instruction

    def sample_of(length: int) -> TrainingSample:
        """As many captions as a sample has, of `length` words each, with different beginnings."""
        starts = [number * max(1, len(words) // count) for number in range(count)]
        texts = [" ".join(words[(start + n) % len(words)] for n in range(length)) for start in starts]
        return TrainingSample(samples[0].image, tuple(texts), instruction)

    def fault(length: int) -> str | None:
        try:
            return _mismatch(tried, [sample_of(length)], features[:1], allowed)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return "they do not fit into memory"

    positions = getattr(objective.model.llm.config.get_text_config(decoder=True), "max_position_embeddings", None)
    room = math.inf if positions is None else int(positions)
    assert objective.model.processor is not None
    length, longest_target = 1, objective.model.processor.layout.max_target_tokens
    # Captions are truncated at the maximum target length, so more words do not give longer rows.
    while length < longest_target and tried.lengths(sample_of(2 * length)).plain <= room:
        length *= 2
    reason = fault(length)
    if reason is None:
        return None
    shortest, longest = 0, length
    while longest - shortest > 1:
        middle = (shortest + longest) // 2
        failure = fault(middle)
        shortest, longest = (middle, longest) if failure is None else (shortest, middle)
        reason = failure or reason
    if not shortest:
        objective.disable_packing()
        return reason
    objective.limits = tried.lengths(sample_of(shortest))
    return f"{reason}, in rows of more than {objective.limits.plain} tokens, which are not packed"


def _mismatch(tried: Objective, samples: Sequence[TrainingSample], features: Tensor, allowed: float) -> str | None:
    """Why packed rows cannot be used, or None."""
    try:
        difference = _difference(tried.loss, tried.plain_loss, tried.model, samples, features)
    except _ERRORS as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return f"this language model does not support packed rows ({_short(error)})"
    # Written so that a NaN does not pass.
    return None if difference <= allowed else f"packed rows change this language model's gradient by {difference:.1e}"


def _check_compiled(objective: Objective, samples: Sequence[TrainingSample], features: Tensor, allowed: float) -> None:
    """Compare compiled layers with uncompiled layers on the same rows."""
    if objective.compiled is None:
        return
    plain = objective.on(objective.model)
    try:
        difference = _difference(objective.loss, plain.loss, objective.model, samples, features)
    except _ERRORS as error:
        objective.disable_compile(f"compiled layers fail ({_short(error)})")
        return
    # Written so that a NaN does not pass.
    if not difference <= allowed:
        objective.disable_compile(f"compiled layers change the gradient by {difference:.1e}")


def truncated_copy(model: MiniGPT4) -> MiniGPT4 | None:
    """A model with a float32 copy of the first layers of its language model; everything else is shared.

    Args:
        model: on its device.

    Returns:
        None if there cannot be a copy: the layers are quantized, sharded or not in one list, or do not fit into memory.
    """
    if is_sharded(model.llm) or getattr(model.llm, "is_quantized", False):
        return None
    try:
        layers = decoder_layers(model.llm)
    except ConfigError:
        return None
    try:
        llm = copy_first_layers(model.llm, layers, _LAYERS)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    short = copy.copy(model)
    short._modules = {**model._modules, "llm": llm}
    return short


def _difference(
    tested: Loss, reference: Loss, model: MiniGPT4, samples: Sequence[TrainingSample], features: Tensor
) -> float:
    """Relative difference of two losses' gradients."""
    parameters = [parameter for _, parameter in model.trained_parameters()]
    gradients = []
    for loss in (tested, reference):
        total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        # Samples with the same instruction, whose rows share a prompt.
        instructions = dict.fromkeys(sample.instruction for sample in samples)
        for part in ([n for n, sample in enumerate(samples) if sample.instruction == one] for one in instructions):
            parts = torch.autograd.grad(loss([samples[n] for n in part], features[part]), parameters)
            total = [one + other for one, other in zip(total, parts, strict=True)]
        gradients.append(torch.cat([one.reshape(-1) for one in total]))
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def _short(error: BaseException) -> str:
    return error_text(error)
