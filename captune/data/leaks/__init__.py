"""The leak guard: whether images that a model is evaluated on were among those it was trained on.

fingerprints.py   a digest of a file's bytes and perceptual hashes of its picture; their store; close hashes
pixels.py         whether two files show the same picture
guard.py          the three questions in one call: between image lists, between manifests, within one data set
"""

from __future__ import annotations

from captune.data.leaks.fingerprints import default_store
from captune.data.leaks.guard import ImageFile, Leak, LeakReport, compare_manifests, find_leaks, leak_issues

__all__ = [
    "ImageFile",
    "Leak",
    "LeakReport",
    "compare_manifests",
    "default_store",
    "find_leaks",
    "leak_issues",
]
