"""Weight files: strict loading, safetensors headers, fingerprints, peft adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.weights.files import (
        SAFETENSORS_DTYPES,
        TOWER_PREFIXES,
        stored_tensors,
        weight_files,
    )
    from captune.weights.fingerprint import (
        TensorFingerprint,
        combine_fingerprints,
        frozen_fingerprint,
        full_hash,
        quantized_names,
        sampled_hash,
        tensor_fingerprints,
    )
    from captune.weights.folder_checks import (
        adapter_settings_hash,
        base_model_of,
        has_image_processor,
        holds_adapter,
        refuse_pointer,
        refuse_pointers,
        require_complete_model,
    )
    from captune.weights.peft_adapter import (
        adapter_tensors,
        attach_adapter,
        find_adapter,
        load_adapter_tensors,
        read_adapter,
    )
    from captune.weights.safetensors_header import parse_header, read_header, weights_differ
    from captune.weights.strict import (
        check_keys,
        check_values,
        load_strictly,
        missing_library,
        quiet,
        read_config,
        unreadable_reason,
    )

__all__ = [
    "SAFETENSORS_DTYPES",
    "TOWER_PREFIXES",
    "TensorFingerprint",
    "adapter_settings_hash",
    "adapter_tensors",
    "attach_adapter",
    "base_model_of",
    "check_keys",
    "check_values",
    "combine_fingerprints",
    "find_adapter",
    "frozen_fingerprint",
    "full_hash",
    "has_image_processor",
    "holds_adapter",
    "load_adapter_tensors",
    "load_strictly",
    "missing_library",
    "parse_header",
    "quantized_names",
    "quiet",
    "read_adapter",
    "read_config",
    "read_header",
    "refuse_pointer",
    "refuse_pointers",
    "require_complete_model",
    "sampled_hash",
    "stored_tensors",
    "tensor_fingerprints",
    "unreadable_reason",
    "weight_files",
    "weights_differ",
]

__getattr__ = lazy_names(
    __name__,
    {
        "files": [
            "SAFETENSORS_DTYPES",
            "TOWER_PREFIXES",
            "stored_tensors",
            "weight_files",
        ],
        "fingerprint": [
            "TensorFingerprint",
            "combine_fingerprints",
            "frozen_fingerprint",
            "full_hash",
            "quantized_names",
            "sampled_hash",
            "tensor_fingerprints",
        ],
        "peft_adapter": [
            "adapter_tensors",
            "attach_adapter",
            "find_adapter",
            "load_adapter_tensors",
            "read_adapter",
        ],
        "folder_checks": [
            "adapter_settings_hash",
            "base_model_of",
            "has_image_processor",
            "holds_adapter",
            "refuse_pointer",
            "refuse_pointers",
            "require_complete_model",
        ],
        "safetensors_header": ["parse_header", "read_header", "weights_differ"],
        "strict": [
            "check_keys",
            "check_values",
            "load_strictly",
            "missing_library",
            "quiet",
            "read_config",
            "unreadable_reason",
        ],
    },
)
