"""Which captioner a path or hub id is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from captune.captioner.interface import Captioner
from captune.captioner.minigpt4 import MiniGPT4Captioner
from captune.captioner.processor_loading import complete_settings, load_processor
from captune.captioner.transformers_model import TransformersCaptioner
from captune.config import ModelConfig
from captune.errors import ConfigError, WeightsError
from captune.hub import resolve_model
from captune.model import MiniGPT4Config
from captune.model.adapter import is_adapter
from captune.model.loading import compute_dtype, load_model, named_device, pick_device
from captune.weights.strict import load_strictly

__all__ = ["load_captioner"]


def load_captioner(
    path: str | Path,
    *,
    dtype: str,
    device: str | None,
    instruction: str | None,
    fast_decode: bool,
    exif_rotation: bool = True,
) -> Captioner:
    """Load a captioner; see `Captioner.from_pretrained`."""
    name = str(path)
    if instruction is not None and not instruction.strip():
        raise ConfigError("The instruction is empty; give what is to be asked of an image, or leave it out.")
    place = pick_device(int(os.environ.get("LOCAL_RANK", "0"))) if device is None else named_device(device)
    resolved = resolve_model(name)
    config = None if is_adapter(resolved) else _config(resolved, name)
    if config is None or isinstance(config, MiniGPT4Config):
        given: dict[str, Any] = {} if instruction is None else {"instruction": instruction}
        model = load_model(ModelConfig(path=name, dtype=dtype, **given), place)
        return MiniGPT4Captioner(
            model, name=name, instruction=instruction, fast_decode=fast_decode, exif_rotation=exif_rotation
        )
    from transformers import AutoModelForImageTextToText

    processor = load_processor(resolved, config, name)
    loaded = load_strictly(
        AutoModelForImageTextToText.from_pretrained,
        resolved,
        f"The model {name}",
        dtype=compute_dtype(dtype, place),
        trust_remote_code=False,
    )
    complete_settings(processor, loaded)
    return TransformersCaptioner(
        loaded.to(place).eval(),
        processor,
        name=name,
        instruction=instruction,
        fast_decode=fast_decode,
        exif_rotation=exif_rotation,
    )


def _config(resolved: str, name: str) -> Any:
    """The configuration of a model that takes images and text.

    Raises:
        WeightsError: there is none, or it is one of another kind of model.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(resolved, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{name} holds no model that captune or transformers knows; expected a captune model, a checkpoint of a "
            "run, or an image-text-to-text model of transformers."
        ) from error
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise WeightsError(
            f"{name} is a {config.model_type}, which does not caption images; give an image-text-to-text model."
        )
    return config
