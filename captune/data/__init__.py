"""Samples, the JSON Lines manifest, importers of caption files, and image decoding."""

from __future__ import annotations

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
