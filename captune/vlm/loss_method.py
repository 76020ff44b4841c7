"""The choice of how a model's loss is computed, by comparing gradients at the start of a run.

No list of families is trusted. The gradient of each faster computation is compared with that of the model's own forward
on pixels, one row per caption, and the fastest one that agrees is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from captune.common import error_text
from captune.decoding import is_out_of_memory
from captune.errors import CaptuneError
from captune.model import copy_first_layers
from captune.vlm.image_features import ImageFeatures
from captune.vlm.model import ImageTextModel

__all__ = ["COMPUTATION_FILE", "EXACT", "EXACT_IN_HALF", "Computation", "ProbeSample", "choose_computation"]

logger = logging.getLogger(__name__)

COMPUTATION_FILE = "computation.json"
"""Name of the file in a run's folder that says how its losses are computed."""
EXACT = 1e-4
"""Largest relative difference of gradients that is due to rounding in float32."""
EXACT_IN_HALF = 0.3
_LAYERS = 2
"""Layers of a float32 copy of a model in a 16-bit format; more if these do not include every kind of layer."""


@dataclass(frozen=True)
class ProbeSample:
    """A sample on which computations are compared.

    Attributes:
        image: of the sample.
        captions: its targets.
        instruction: its prompt; None is the model's.
    """

    image: Image.Image
    captions: tuple[str, ...]
    instruction: str | None = None


@dataclass(frozen=True)
class Computation:
    """How the loss of an image's captions is computed.

    Attributes:
        features: whether stored image features replace the vision tower.
        packed: whether the captions of an image share one row.
        differences: for each computation that was tried, the relative difference of its gradient, or why it failed.
    """

    features: bool
    packed: bool
    differences: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Such as "features, packed row"."""
        return _name(self.features, self.packed)

    def describe(self) -> str:
        """The choice and its reasons in one line."""
        tried = "; ".join(f"{name}: {difference}" for name, difference in self.differences)
        return f"{self.name} ({tried})" if tried else self.name


def _name(features: bool, packed: bool) -> str:
    return f"{'features' if features else 'pixels'}, {'packed row' if packed else 'plain rows'}"


def choose_computation(
    model: ImageTextModel, samples: Sequence[ProbeSample], *, features: bool = True, packed: bool = True
) -> Computation:
    """Choose the fastest computation whose gradient equals that of the model's own forward.

    Args:
        model: in training mode, without dropout; its trained parts are set.
        samples: a few, preferably with the longest captions of a run and with images of several sizes.
        features: whether stored features may be used.
        packed: whether captions may share rows.

    Returns:
        The choice, with what was tried.
    """
    tried_model, allowed = model, EXACT
    if model.model.dtype in (torch.bfloat16, torch.float16):
        short = shortened_copy(model)
        tried_model, allowed = (model, EXACT_IN_HALF) if short is None else (short, EXACT)
    can_store = features and tried_model.find_features()
    if model is not tried_model and can_store:
        can_store = model.find_features()
    if can_store and model.features_depend_on_prompt and len({sample.instruction for sample in samples}) > 1:
        can_store = False
    can_pack = packed and model.decoder is not None
    reference = _gradient(tried_model, samples, features=False, packed=False)
    differences: list[tuple[str, str]] = []
    if packed and model.decoder is None:
        differences.append((_name(False, True), model.undivided))
    if features and not can_store:
        differences.append((_name(True, False), "image features cannot be stored"))
    for use_features, use_packed in ((True, True), (True, False), (False, True)):
        if (use_features and not can_store) or (use_packed and not can_pack):
            continue
        try:
            gradient = _gradient(tried_model, samples, features=use_features, packed=use_packed)
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, CaptuneError) as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            differences.append((_name(use_features, use_packed), f"fails ({error_text(error)[:100]})"))
            continue
        difference = float((gradient - reference).norm() / reference.norm())
        differences.append((_name(use_features, use_packed), f"{difference:.1e}"))
        # Written so that a NaN does not pass.
        if difference <= allowed:
            return Computation(use_features, use_packed, tuple(differences))
    return Computation(False, False, tuple(differences))


def _gradient(model: ImageTextModel, samples: Sequence[ProbeSample], *, features: bool, packed: bool) -> Tensor:
    """The gradient of the samples' loss, in float64."""
    parameters = [parameter for _, parameter in model.trained_parameters()]
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    for sample in samples:
        image: Image.Image | ImageFeatures = sample.image
        if features:
            image = model.encode(sample.image, sample.instruction)
        loss = model.loss(image, sample.captions, sample.instruction, packed=packed)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        total += torch.cat(
            [
                (torch.zeros_like(parameter) if gradient is None else gradient).detach().double().reshape(-1).cpu()
                for gradient, parameter in zip(gradients, parameters, strict=True)
            ]
        )
    return total


def shortened_copy(model: ImageTextModel) -> ImageTextModel | None:
    """A float32 copy of a model with the first layers of its decoder.

    Returns:
        None if there cannot be one: the layers are quantized or not in one list, or the copy does not fit into memory.
    """
    if model.decoder is None or getattr(model.model, "is_quantized", False):
        return None
    try:
        shorter = copy_first_layers(model.model, model.decoder.layers, _LAYERS)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    return model.copy_around(shorter)
