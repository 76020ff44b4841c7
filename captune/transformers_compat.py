"""What captune uses of transformers' internals, and what differs between its supported releases, in one place.

transformers 5.24 renames the KV cache of every forward and output from `past_key_values` to `cache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch.utils.checkpoint import checkpoint
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import cached_file

__all__ = [
    "CACHE_ARGUMENT",
    "CACHE_ARGUMENTS",
    "StoredNameMapping",
    "attention_implementation",
    "fetch_file",
    "has_auto_class",
    "kv_cache_of",
    "model_from_config",
    "processor_class",
    "set_activation_checkpointing",
    "use_attention",
]

CACHE_ARGUMENT: Final = (
    "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
)
"""How a model's `forward` names its KV cache."""
CACHE_ARGUMENTS: Final = ("cache", "past_key_values", "past_key_value", "layer_past")
"""How decoder layers name the KV cache, in any supported release."""


def kv_cache_of(output: Any) -> Any:
    """The KV cache that a forward returned."""
    return getattr(output, CACHE_ARGUMENT)


def has_auto_class(auto_class: Any, config: Any) -> bool:
    """Whether an auto class, such as `AutoModelForCausalLM`, has a model for a configuration."""
    return type(config) in auto_class._model_mapping


def processor_class(config: Any) -> Any:
    """The class of processors that belongs to a model's configuration.

    Raises:
        KeyError: there is none.
    """
    return PROCESSOR_MAPPING[type(config)]


def model_from_config(model_class: Any, config: Any) -> Any:
    """A model with random weights, of a class that is not an auto class."""
    return model_class._from_config(config)


def set_activation_checkpointing(layer: Any, enabled: bool) -> None:
    """Set whether a `GradientCheckpointingLayer` recomputes its activations in the backward pass while training."""
    layer.gradient_checkpointing = enabled
    layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def attention_implementation(config: Any) -> str:
    """The attention function of the decoder in a model's configuration, such as "sdpa" or "eager"."""
    return str(config.get_text_config(decoder=True)._attn_implementation)


@contextmanager
def use_attention(config: Any, name: str) -> Iterator[None]:
    """Use another attention function within the block.

    Args:
        config: of the model.
        name: of a function in transformers' `AttentionInterface`.
    """
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def fetch_file(model: str | Path, name: str, *, require_connection: bool = True, **hub_options: Any) -> Path | None:
    """A file of a model's folder, or of a hub id, from which it is downloaded if it is not cached.

    Args:
        model: folder or hub id.
        name: of the file.
        require_connection: raise an error if the hub cannot be reached; otherwise the file counts as missing.
        hub_options: `revision`, `token`, `cache_dir`, ...

    Returns:
        Its path; None if the model has no such file.

    Raises:
        OSError: there is no such model, or the hub cannot be reached.
    """
    path = cached_file(
        str(model),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=require_connection,
        **hub_options,
    )
    return None if path is None else Path(path)


class StoredNameMapping:
    """Maps names of tensors in a model's files to its own names, as the library does while it loads them.

    Args:
        model: after loading.
        renamings_only: leave out the rules by which the library computes a tensor from several.
    """

    def __init__(self, model: Any, *, renamings_only: bool = False) -> None:
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        others = [entry for entry in mapping if not isinstance(entry, WeightRenaming)]
        self._converters = [] if renamings_only else others
        self._prefix = getattr(model, "base_model_prefix", "")
        self._state = model.state_dict(keep_vars=True)

    def __call__(self, name: str) -> tuple[str, bool]:
        """The model's name of a tensor in a file, and whether the library computes the tensor from several."""
        renamed, converter = rename_source_key(name, self._renamings, self._converters, self._prefix, self._state)
        return renamed, converter is not None
