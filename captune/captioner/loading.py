"""Loading of captioning backends: complete models, checkpoints of runs and peft adapters."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from captune.captioner.minigpt4 import MiniGPT4Backend
from captune.captioner.model_inputs import probe_images
from captune.captioner.processor import complete_settings, load_processor, processor_folder, set_pixel_limits
from captune.captioner.transformers_model import TransformersBackend
from captune.common import error_text
from captune.decoding import DecodingOptions
from captune.errors import ConfigError, WeightsError
from captune.hub import (
    ResolvedModel,
    checkpoint_base,
    locate_model,
    missing_base,
    processor_base,
    require_available,
    resolve_model,
)
from captune.model import (
    MiniGPT4Config,
    compute_dtype,
    default_device,
    fetch_checkpoint,
    load_model,
    load_tuned,
    parse_device,
    tuned_instruction,
)
from captune.run_checkpoints import RECORD, CheckpointRecord, read_record, trained_hash
from captune.transformers_compat import has_auto_class
from captune.weights import (
    adapter_settings_hash,
    attach_adapter,
    base_model_of,
    find_adapter,
    full_hash,
    has_image_processor,
    load_strictly,
    read_adapter,
    read_config,
    unreadable_reason,
)

logger = logging.getLogger(__name__)

__all__ = ["image_text_config", "load_backend", "probe_scores", "require_effect"]


def load_backend(
    path: str | Path,
    *,
    dtype: str,
    device: str | None,
    instruction: str | None,
    fast_decode: bool,
    exif_rotation: bool = True,
    base: str | Path | None = None,
) -> MiniGPT4Backend | TransformersBackend:
    """Load a captioner; see `Captioner.from_pretrained`."""
    name = str(path)
    if instruction is not None and not instruction.strip():
        raise ConfigError("The instruction is empty; give a text, or omit it.")
    target = default_device(int(os.environ.get("LOCAL_RANK", "0"))) if device is None else parse_device(device)
    settings: dict[str, Any] = {
        "name": name,
        "instruction": instruction,
        "fast_decode": fast_decode,
        "exif_rotation": exif_rotation,
    }
    source = replace(resolve_model(name), dtype=dtype, base="" if base is None else str(base))
    checkpoint = fetch_checkpoint(source.path) if source.kind in ("checkpoint", "hub") else None
    if checkpoint is not None:
        record = read_record(checkpoint)
        if record.kind == "transformers":
            return _load_tuned(checkpoint, record, dtype, target, settings, source.base)
        return MiniGPT4Backend(load_model(source, target), **settings)
    adapter = find_adapter(source.path)
    if adapter is None:
        config = image_text_config(source.path, name)
        folder = Path(source.path)
        is_complete = isinstance(config, MiniGPT4Config) or not folder.is_dir() or has_image_processor(folder)
        if source.base and is_complete:
            raise ConfigError(
                f"{name} is a complete model; a base model is for checkpoints and adapters, so leave it out."
            )
        if isinstance(config, MiniGPT4Config):
            return MiniGPT4Backend(load_model(source, target), **settings)
        settings["instruction"] = instruction or tuned_instruction(config)
        return _load_transformers(source, config, name, target, settings)
    return _load_adapter(adapter, dtype, target, settings, source.base)


def _load_adapter(
    adapter: Path, dtype: str, device: torch.device, settings: dict[str, Any], base_model: str
) -> MiniGPT4Backend | TransformersBackend:
    """Load a peft adapter of any program with its base model."""
    base, base_name = _resolve_base(adapter, base_model)
    base = replace(base, dtype=dtype)
    state = read_adapter(adapter)
    config = None if base.kind == "checkpoint" else image_text_config(base.path, base_name)
    if config is None or isinstance(config, MiniGPT4Config):
        model = load_model(base, device)
        tuned = MiniGPT4Backend(model, **settings)
        wrapped = attach_adapter(model, adapter, state)
        batch = tuned.processor(probe_images()[:1], answers=["A photo."]).to(device)
        pixels = batch.pop("pixel_values").to(model.vision.embeddings.patch_embedding.weight.dtype)
        require_effect(wrapped, adapter, lambda: model(**batch, pixel_values=pixels).logits)
        tuned.fingerprint += f"-{full_hash(state.items())}-{adapter_settings_hash(adapter)}"
        return tuned
    backend = _load_transformers(
        base, config, base_name, device, settings, adapter, lambda model: attach_adapter(model, adapter, state)
    )
    backend.fingerprint += f"-{full_hash(state.items())}-{adapter_settings_hash(adapter)}"
    return backend


def _load_tuned(
    checkpoint: Path,
    record: CheckpointRecord,
    dtype: str,
    device: torch.device,
    settings: dict[str, Any],
    base_model: str,
) -> TransformersBackend:
    """Load a checkpoint of a run with its base model, a transformers model."""
    base, base_name = checkpoint_base(checkpoint, record, base_model)
    base = replace(base, dtype=dtype)
    config = image_text_config(base.path, base_name)
    settings = {**settings, "instruction": settings["instruction"] or record.instruction or None}
    backend = _load_transformers(
        base,
        config,
        base_name,
        device,
        settings,
        checkpoint,
        lambda model: load_tuned(model.requires_grad_(False), checkpoint)[1],
    )
    backend.fingerprint += f"-{trained_hash(checkpoint)}"
    return backend


def _load_transformers(
    source: ResolvedModel,
    config: Any,
    what: str,
    device: torch.device,
    settings: dict[str, Any],
    tuned: Path | None = None,
    attach: Callable[[Any], Any] = lambda _model: None,
) -> TransformersBackend:
    """Load a transformers model.

    Args:
        source: the model, its number format and pixel limits.
        config: its configuration.
        what: the model in messages.
        device: of the model.
        settings: of the backend.
        tuned: folder of trained tensors.
        attach: loads these into the model; returns peft's wrapper, or None.
    """
    from transformers import AutoModelForImageTextToText

    if tuned is None:
        processor = _processor_of(source, config, settings["name"])
    else:
        folder = processor_folder(tuned, source.path)
        if folder == source.path and not (tuned / RECORD).is_file():
            logger.warning("%s holds no processor; that of its base model %s is used.", settings["name"], source.name)
        processor = load_processor(folder, config, settings["name"])
    set_pixel_limits(processor, source)
    model = load_strictly(
        AutoModelForImageTextToText.from_pretrained,
        source.path,
        f"The model {what}",
        dtype=compute_dtype(source.dtype, device),
        trust_remote_code=False,
    )
    wrapped = attach(model)
    complete_settings(processor, model)
    backend = TransformersBackend(model.to(device).eval(), processor, **settings)
    if wrapped is not None and tuned is not None:
        require_effect(wrapped, tuned, lambda: probe_scores(backend))
    return backend


def _processor_of(source: ResolvedModel, config: Any, name: str) -> Any:
    """The processor of a complete model, or of the model that it was trained from, if it was saved without one."""
    folder = Path(source.path)
    try:
        return load_processor(source.path, config, name)
    except WeightsError:
        if not folder.is_dir() or has_image_processor(folder):
            raise
    base = source.base or processor_base(folder)
    try:
        located = locate_model(base)
        require_available(located)
    except WeightsError as error:
        raise missing_base(f"{name}, which holds no processor,", base, "", error) from error
    logger.warning("%s holds no processor; that of the model %s is used.", name, base)
    return load_processor(located, config, base)


def _resolve_base(adapter: Path, base_model: str = "") -> tuple[ResolvedModel, str]:
    """The base model of a peft adapter, and its name in messages.

    Raises:
        WeightsError: it does not exist, or is an adapter itself.
    """
    name, revision = (base_model, None) if base_model else base_model_of(adapter)
    try:
        base = resolve_model(name)
        require_available(base.path)
        if revision is not None and base.kind == "hub":
            base = resolve_model(snapshot_download(name, revision=revision))
    except Exception as error:  # the hub's library raises errors of several kinds
        raise missing_base(f"The adapter {adapter}", name, "", WeightsError(error_text(error))) from error
    if find_adapter(base.path) is not None:
        raise WeightsError(
            f"The base model {name} of the adapter {adapter} is an adapter itself; merge that one into its own base "
            "model first."
        )
    return base, f"{name} (base model of the adapter {adapter})"


def probe_scores(backend: TransformersBackend) -> Tensor:
    """Logits of the first token of two captions, from the LM head if `generate` uses no logits processors (Janus)."""
    try:
        return backend.first_scores(probe_images(), backend.prompt(None))
    except WeightsError:
        head = backend.model.get_output_embeddings()
        if head is None:
            raise
    outputs: list[Tensor] = []
    hook = head.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        backend.generate(probe_images(), None, DecodingOptions(max_new_tokens=1))
    finally:
        hook.remove()
    return torch.cat([scores[:, -1] for scores in outputs])


def require_effect(wrapped: Any, adapter: str | Path, scores: Callable[[], Tensor]) -> None:
    """Require that an adapter changes the logits of the first token.

    Raises:
        WeightsError: it does not.
    """
    adapter = Path(adapter)
    with torch.inference_mode():
        tuned = scores()
        with wrapped.disable_adapter():
            plain = scores()
    if torch.equal(tuned, plain):
        raise WeightsError(
            f"The adapter {adapter} changes no score of its base model, so its captions are the base model's; give "
            "a trained adapter, or the base model itself."
        )


def image_text_config(path: str, name: str) -> Any:
    """The configuration of a model that takes images and text.

    Raises:
        WeightsError: there is none, or the model does not caption images.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = read_config(AutoConfig.from_pretrained, path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not Path(path).is_dir():
            raise WeightsError(f"The model {name} cannot be loaded: {unreadable_reason(path, error)}") from error
        raise WeightsError(
            f"{name} holds no model that captune or transformers supports; expected a captune model, a checkpoint of a "
            "run, or an image-text-to-text model of transformers."
        ) from error
    if not has_auto_class(AutoModelForImageTextToText, config):
        raise WeightsError(
            f"{name} is a {config.model_type}, which does not caption images; give an image-text-to-text model."
        )
    return config
