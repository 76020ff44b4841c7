"""Samples, the JSON Lines manifest, importers of caption files, and image decoding.

Public names are imported on first use, so that scoring, which reads text only, does not import Pillow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captune.data.atomic import atomic_file, atomic_folder
    from captune.data.manifest import (
        Sample,
        iter_manifest,
        manifest_hash,
        read_manifest,
        resolve_image,
        write_manifest,
    )

__all__ = [
    "Sample",
    "atomic_file",
    "atomic_folder",
    "iter_manifest",
    "manifest_hash",
    "read_manifest",
    "resolve_image",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'captune.data' has no attribute '{name}'")
    module = "atomic" if name.startswith("atomic") else "manifest"
    return getattr(import_module(f"captune.data.{module}"), name)
