"""What differs between the supported releases of transformers, in one place.

transformers 5.24 renames the KV cache of every forward and output from `past_key_values` to `cache`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from transformers.modeling_outputs import CausalLMOutputWithPast

__all__ = ["CACHE_ARGUMENT", "CACHE_ARGUMENTS", "kv_cache_of"]

CACHE_ARGUMENT: Final = (
    "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
)
"""How a model's `forward` names its KV cache."""
CACHE_ARGUMENTS: Final = ("cache", "past_key_values", "past_key_value", "layer_past")
"""How decoder layers name the KV cache, in any supported release."""


def kv_cache_of(output: Any) -> Any:
    """The KV cache that a forward returned."""
    return getattr(output, CACHE_ARGUMENT)
