"""The identity of features: what they depend on besides the image.

These are the weights and settings of the towers, the transform and the number format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL
import torch

from captune.config import ModelConfig
from captune.data import cached_digest
from captune.features.shards import FixedShape
from captune.hub import ResolvedModel, locate_base, resolve_model
from captune.model import MiniGPT4Config, compute_dtype, is_checkpoint, load_config_and_processor
from captune.run_checkpoints import read_record
from captune.weights import TOWER_PREFIXES, stored_tensors, weight_files

__all__ = ["TowerIdentity", "tower_identity"]

FORMAT = 1
UPRIGHT = "-upright"
"""Suffix of a transform that applies the EXIF rotation; earlier releases did not."""

_SETTINGS = ("vision_config", "qformer_config", "query_tokens", "patches_per_token", "vision_norm_eps", "pixel_mean")
_IRRELEVANT = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")


@dataclass(frozen=True)
class TowerIdentity:
    """The identity of features.

    Attributes:
        weights: hash of every value of the towers' weights.
        settings: hash of the towers' settings.
        transform: how an image becomes pixels.
        dtype: of the features.
        tokens: Q, tokens of an image.
        width: F, their width.
    """

    weights: str
    settings: str
    transform: str
    dtype: torch.dtype
    tokens: int
    width: int

    def describe(self) -> dict[str, Any]:
        """Content of the store's header."""
        return {
            "format": FORMAT,
            "weights": self.weights,
            "settings": self.settings,
            "transform": self.transform,
            "dtype": str(self.dtype).removeprefix("torch."),
            "tokens": self.tokens,
            "width": self.width,
        }

    @property
    def form(self) -> FixedShape:
        """How features are packed into shards."""
        return FixedShape(self.tokens, self.width, self.dtype)

    @property
    def as_stored(self) -> TowerIdentity:
        """The same towers on images that are not turned upright."""
        return replace(self, transform=self.transform.removesuffix(UPRIGHT))

    @property
    def key(self) -> str:
        """16 hexadecimal digits, the folder's name."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]


def tower_identity(
    model: ModelConfig | ResolvedModel, device: torch.device, root: Path, *, exif_rotation: bool = True
) -> TowerIdentity:
    """The identity of the features of a configuration's model, without loading it.

    Args:
        model: which model, in which number format; a configuration is resolved first.
        device: where it would run; decides the number format.
        root: folder of the store, where hashes of large files are cached.
        exif_rotation: whether the EXIF rotation of images is applied.

    Raises:
        WeightsError: the model is missing or broken.
    """
    source = resolve_model(model)
    config, _ = load_config_and_processor(source)
    dtype = compute_dtype(source.dtype, device)
    return TowerIdentity(
        weights=_weights(source, dtype, root),
        settings=_settings(config),
        # Pillow's resize differs between releases by a grey level.
        transform=f"bicubic-{config.vision_config.image_size}-pillow-{PIL.__version__}{UPRIGHT * exif_rotation}",
        dtype=dtype,
        tokens=config.image_tokens,
        width=config.feature_size,
    )


def _weights(source: ResolvedModel, dtype: torch.dtype, root: Path) -> str:
    """Hash of the towers' weights in the number format of computation; computed once per file."""
    digest = hashlib.sha256()
    for file, prefixes in _files(source):

        def of_file(file: Path = file, prefixes: tuple[str, ...] = prefixes) -> bytes:
            file_digest = hashlib.sha256()
            for name, tensor in stored_tensors(file, prefixes):
                file_digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
                computing = tensor.to(dtype) if tensor.is_floating_point() else tensor
                values: Any = computing.reshape(-1).view(torch.uint8).numpy()
                file_digest.update(values)
            return file_digest.digest()[:16]

        digest.update(cached_digest(file, f"towers-{dtype}", root, of_file))
    return digest.hexdigest()[:32]


def _files(source: ResolvedModel) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The weight files of the towers, and the prefixes of their tensors' names."""
    if source.kind == "parts":
        for file in weight_files(source.vision):
            yield file, ("",)
        return
    path = source.path
    while is_checkpoint(path):
        record = read_record(Path(path))
        if record.parts is not None:
            for file in weight_files(record.parts["vision"]):
                yield file, ("",)
            return
        path = locate_base(record.model, Path(path), record.relative_model)
    for file in weight_files(path):
        yield file, TOWER_PREFIXES


def _settings(config: MiniGPT4Config) -> str:
    def plain(value: Any) -> Any:
        if not hasattr(value, "to_dict"):
            return value
        return {key: item for key, item in value.to_dict().items() if key not in _IRRELEVANT}

    settings = {name: plain(getattr(config, name)) for name in (*_SETTINGS, "pixel_std")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:32]
