"""The original's `datasets:`, of which captune reads the batch size and names the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from captune.lavis.keys import DATASET_KEYS, PLAIN_DATASETS, VISION_KEYS
from captune.lavis.reader import Reader

__all__ = ["main_dataset", "read_datasets"]


def read_datasets(reader: Reader, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The datasets by name, each with its settings; what has no counterpart is noted."""
    if not given:
        raise reader.error("datasets is empty; expected one")
    found = {}
    for name, settings in given.items():
        place = f"datasets.{name}"
        if not isinstance(settings, dict):
            raise reader.error(f"{place} is {settings!r}; expected its settings")
        reader.known(place, settings, DATASET_KEYS)
        _processors(reader, place, settings, name)
        if "sample_ratio" in settings and len(given) == 1:
            reader.dead(f"{place}.sample_ratio", "there is one dataset")
        if "build_info" in settings:
            reader.note(f"{place}.build_info: make a manifest of it with `captune prepare`.")
        found[name] = settings
    if len(found) > 1:
        reader.note(
            f"datasets: {len(found)} are mixed; captune trains on the captions of one manifest, data.train. The "
            f"batch size is that of {main_dataset(found)}."
        )
    reader.note(
        "datasets: images and captions come from the manifest data.train, which `captune prepare` writes; a sample "
        "is one image with one caption, as in the original (train.captions_per_image above 1 is faster)."
    )
    return found


def _processors(reader: Reader, place: str, settings: dict[str, Any], dataset: str) -> None:
    for kind in ("vis_processor", "text_processor"):
        splits = settings.get(kind) or {}
        reader.known(f"{place}.{kind}", splits, ("train", "eval", "test"))
        for split in splits:
            if split != "train":
                reader.dead(f"{place}.{kind}.{split}", "training reads train alone")
    vision = (settings.get("vis_processor") or {}).get("train") or {}
    reader.known(f"{place}.vis_processor.train", vision, VISION_KEYS)
    for key in ("min_scale", "max_scale"):
        if key in vision:
            reader.dead(f"{place}.vis_processor.train.{key}", "its transform crops nothing")
    if {"mean", "std"} & set(vision):
        raise reader.error(f"{place}.vis_processor.train gives mean or std; captune normalises as the towers learnt")
    if settings.get("text_processor"):
        if dataset == "cc_sbu_align" or "grounded" in dataset:
            reader.dead(f"{place}.text_processor", "this dataset does not apply it to captions")
        else:
            reader.note(f"{place}.text_processor is not applied: captions are learnt as they are written.")


def main_dataset(datasets: Iterable[str]) -> str:
    """The dataset whose batch size counts."""
    names = list(datasets)
    return next((name for name in names if "caption" in name or name in PLAIN_DATASETS), names[0])
