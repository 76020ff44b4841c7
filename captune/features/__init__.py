"""Features of images: the output of the frozen vision encoder and Q-Former, computed once and stored on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.features.encode import UnreadableImage, encode_images, encode_missing
    from captune.features.identity import TowerIdentity, tower_identity
    from captune.features.prepare import StoredImages, features_of, store_root
    from captune.features.store import FeatureStore, StoredFeatures

__all__ = [
    "FeatureStore",
    "StoredFeatures",
    "StoredImages",
    "TowerIdentity",
    "UnreadableImage",
    "encode_images",
    "encode_missing",
    "features_of",
    "store_root",
    "tower_identity",
]

__getattr__ = lazy_names(
    __name__,
    {
        "encode": ["UnreadableImage", "encode_images", "encode_missing"],
        "identity": ["TowerIdentity", "tower_identity"],
        "prepare": ["StoredImages", "features_of", "store_root"],
        "store": ["FeatureStore", "StoredFeatures"],
    },
)
