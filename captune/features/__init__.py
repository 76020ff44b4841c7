"""The frozen part's output, computed once per image and kept on disk, for every run that follows."""

from __future__ import annotations

from captune.features.contents import content_ids
from captune.features.encode import Broken, encode_missing
from captune.features.identity import TowerIdentity, tower_identity
from captune.features.prepare import Alone, StoredImages, features_of, store_root
from captune.features.store import FeatureStore, StoredFeatures

__all__ = [
    "Alone",
    "Broken",
    "FeatureStore",
    "StoredFeatures",
    "StoredImages",
    "TowerIdentity",
    "content_ids",
    "encode_missing",
    "features_of",
    "store_root",
    "tower_identity",
]
