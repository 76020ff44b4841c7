"""Weight files: strict loading, safetensors headers, fingerprints, peft adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.weights.files import (
        SAFETENSORS_DTYPES,
        TOWER_PREFIXES,
        parse_header,
        stored_tensors,
        weight_files,
    )
    from captune.weights.fingerprint import (
        TensorFingerprint,
        combine_fingerprints,
        full_hash,
        sampled_hash,
        tensor_fingerprints,
    )
    from captune.weights.folder_checks import refuse_pointer, refuse_pointers, require_complete_model
    from captune.weights.peft_adapter import attach_adapter, base_model_of, find_adapter, read_adapter
    from captune.weights.strict import (
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
    "attach_adapter",
    "base_model_of",
    "check_values",
    "combine_fingerprints",
    "find_adapter",
    "full_hash",
    "load_strictly",
    "missing_library",
    "parse_header",
    "quiet",
    "read_adapter",
    "read_config",
    "refuse_pointer",
    "refuse_pointers",
    "require_complete_model",
    "sampled_hash",
    "stored_tensors",
    "tensor_fingerprints",
    "unreadable_reason",
    "weight_files",
]

__getattr__ = lazy_names(
    __name__,
    {
        "files": [
            "SAFETENSORS_DTYPES",
            "TOWER_PREFIXES",
            "parse_header",
            "stored_tensors",
            "weight_files",
        ],
        "fingerprint": [
            "TensorFingerprint",
            "combine_fingerprints",
            "full_hash",
            "sampled_hash",
            "tensor_fingerprints",
        ],
        "peft_adapter": ["attach_adapter", "base_model_of", "find_adapter", "read_adapter"],
        "folder_checks": ["require_complete_model", "refuse_pointer", "refuse_pointers"],
        "strict": ["check_values", "load_strictly", "missing_library", "quiet", "read_config", "unreadable_reason"],
    },
)
