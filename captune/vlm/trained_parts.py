"""Names of the parts of a transformers model that are trained: the decoder's linear layers, the projector, all text.

`decoder` is the path of the text decoder in the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from captune.errors import WeightsError
from captune.vlm.image_features import TOWERS

__all__ = ["language_prefixes", "linear_layers", "projector_path", "target_pattern"]

ALL_LINEAR = "all-linear"
_PROJECTORS = (
    "multi_modal_projector",
    "connector",
    "merger",
    "aligner",
    "language_projection",
    "resampler_model",
    "image_projection",
    "embed_vision",
    "projector",
)
"""Names of the module between vision tower and decoder, by family."""
_VISION = (*TOWERS, *_PROJECTORS, "visual_projection", "perceiver_resampler")
"""Names of modules that are no part of the text decoder, also where they are inside of the module of its layers."""
_LINEAR = (nn.Linear, Conv1D)


def linear_layers(model: Any, decoder: str, targets: Sequence[str], name: str) -> list[str]:
    """Names of the decoder's linear layers.

    Args:
        model: the model.
        decoder: path of the text decoder.
        targets: last parts of the names, or "all-linear".
        name: of the model in messages.

    Raises:
        WeightsError: the decoder has no layers with some of these names.
    """
    linear = [
        layer
        for layer, module in model.get_submodule(decoder).named_modules()
        if isinstance(module, _LINEAR)
        and not any(word in layer for word in ("vision", "visual", "lm_head"))
        and not set(layer.split(".")) & set(_VISION)
    ]
    head = model.get_output_embeddings()
    linear = [layer for layer in linear if model.get_submodule(f"{decoder}.{layer}") is not head]
    if tuple(targets) != (ALL_LINEAR,):
        linear = [layer for layer in linear if layer.rpartition(".")[2] in targets]
        missing = set(targets) - {layer.rpartition(".")[2] for layer in linear}
        if missing:
            raise WeightsError(
                f"LoRA finds no layers {', '.join(sorted(missing))} in the decoder of {name}; set "
                f"train.lora.targets to names of its linear layers, or to [{ALL_LINEAR}]."
            )
    return [f"{decoder}.{layer}" for layer in linear]


def target_pattern(model: Any, decoder: str, layers: Sequence[str]) -> str:
    """A regular expression of layers' names for an adapter's settings.

    It holds the last part of the decoder's path only, so that it also fits releases of transformers in which the path
    before it differs.
    """
    ends = "|".join(sorted({re.escape(layer.rpartition(".")[2]) for layer in layers}))
    short = rf".*\b{re.escape(decoder.rpartition('.')[2])}\b.*\.({ends})"
    linear = [layer for layer, module in model.named_modules() if isinstance(module, _LINEAR)]
    if {layer for layer in linear if re.fullmatch(short, layer)} == set(layers):
        return short
    return "|".join(re.escape(layer) for layer in layers)


def projector_path(model: Any, decoder: str, name: str) -> str:
    """Name of the module between vision tower and decoder.

    Raises:
        WeightsError: the model has none that is known by its name.
    """
    for path, _ in model.named_modules():
        if path.rpartition(".")[2] in _PROJECTORS and not path.startswith(f"{decoder}."):
            return str(path)
    raise WeightsError(f"{name} has no projector under a known name, so it cannot be trained.")


def language_prefixes(model: Any, decoder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Beginnings of the names of the language model's weights, and of those of vision modules."""
    modules = dict(model.named_modules())
    # An encoder at the top is the tower of a `VisionEncoderDecoderModel` or Pix2Struct.
    vision = [name for name in modules if name.rpartition(".")[2] in _VISION or name == "encoder"]
    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    tops = [decoder]
    tops += [name for name, module in modules.items() if any(module is part for part in parts) and name]
    for index, top in enumerate(tops):
        # The outermost module without vision, such as a language model with encoder, decoder and head.
        parents = [".".join(top.split(".")[:depth]) for depth in range(1, top.count(".") + 2)]
        tops[index] = next((name for name in parents if not any(other.startswith(f"{name}.") for other in vision)), top)
    return tuple(f"{name}." for name in tops), tuple(f"{name}." for name in vision)
