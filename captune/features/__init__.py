"""Features of images: the output of a model's frozen parts before its decoder, computed once and stored on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.features.encode import UnreadableImage, encode_images, encode_missing
    from captune.features.identity import TowerIdentity, tower_identity
    from captune.features.prepare import StoredImages, features_of
    from captune.features.store import FeatureStore, StoredFeatures
    from captune.features.vlm_encoding import (
        StoreChoice,
        choose_store,
        forecast_bytes,
        image_features_of,
        image_pixels_of,
    )
    from captune.features.vlm_features import FeatureBatch, PixelSource
    from captune.features.vlm_identity import ImageTextIdentity, feature_identity

__all__ = [
    "FeatureBatch",
    "FeatureStore",
    "ImageTextIdentity",
    "PixelSource",
    "StoreChoice",
    "StoredFeatures",
    "StoredImages",
    "TowerIdentity",
    "UnreadableImage",
    "choose_store",
    "encode_images",
    "encode_missing",
    "feature_identity",
    "features_of",
    "forecast_bytes",
    "image_features_of",
    "image_pixels_of",
    "tower_identity",
]

__getattr__ = lazy_names(
    __name__,
    {
        "encode": ["UnreadableImage", "encode_images", "encode_missing"],
        "identity": ["TowerIdentity", "tower_identity"],
        "vlm_features": ["FeatureBatch", "PixelSource"],
        "vlm_encoding": [
            "StoreChoice",
            "choose_store",
            "forecast_bytes",
            "image_features_of",
            "image_pixels_of",
        ],
        "vlm_identity": ["ImageTextIdentity", "feature_identity"],
        "prepare": ["StoredImages", "features_of"],
        "store": ["FeatureStore", "StoredFeatures"],
    },
)
