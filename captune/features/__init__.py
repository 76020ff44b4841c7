"""The frozen part's output, computed once per image and kept on disk, for every run that follows."""

from __future__ import annotations

from captune.data.content_hash import content_ids
from captune.features.encode import UnreadableImage, encode_images, encode_missing
from captune.features.identity import TowerIdentity, tower_identity
from captune.features.prepare import SingleProcess, StoredImages, features_of, store_root
from captune.features.store import FeatureStore, StoredFeatures

__all__ = [
    "FeatureStore",
    "SingleProcess",
    "StoredFeatures",
    "StoredImages",
    "TowerIdentity",
    "UnreadableImage",
    "content_ids",
    "encode_images",
    "encode_missing",
    "features_of",
    "store_root",
    "tower_identity",
]
