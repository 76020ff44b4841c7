"""Features of images under a transformers model: any number of tensors of any shape for each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias, overload

import torch
from PIL import Image
from torch import Tensor

from captune.data import load_image
from captune.features.shards import has_finite_values
from captune.vlm import ImageFeatures

__all__ = ["FeatureBatch", "PixelSource", "VariableShape"]

_Item: TypeAlias = ImageFeatures | Image.Image


class FeatureBatch(Sequence[_Item]):
    """Features of several images, or the images, as `ImageTextModel.loss` takes them.

    Args:
        images: B features or RGB images.
    """

    def __init__(self, images: Sequence[_Item]) -> None:
        self._images = tuple(images)

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[_Item]:
        return iter(self._images)

    @overload
    def __getitem__(self, key: int) -> _Item: ...

    @overload
    def __getitem__(self, key: slice | Sequence[int]) -> FeatureBatch: ...

    def __getitem__(self, key: int | slice | Sequence[int]) -> _Item | FeatureBatch:
        """One image, or a batch of several."""
        if isinstance(key, int):
            return self._images[key]
        if isinstance(key, slice):
            return FeatureBatch(self._images[key])
        return FeatureBatch([self._images[index] for index in key])

    def to(self, device: torch.device) -> FeatureBatch:
        """The same batch with its features on a device; images stay as they are."""
        return FeatureBatch([item.to(device) if isinstance(item, ImageFeatures) else item for item in self._images])

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return sum(item.nbytes for item in self._images if isinstance(item, ImageFeatures))


class PixelSource:
    """Images that are read from their files when they are indexed, in place of stored features.

    Args:
        files: N image files.
        exif_rotation: apply the EXIF rotation of images.
    """

    def __init__(self, files: Sequence[Path], exif_rotation: bool = True) -> None:
        self._files, self._exif_rotation = tuple(files), exif_rotation

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: slice | Sequence[int]) -> FeatureBatch:
        """B images in mode RGB.

        Raises:
            DataError: one cannot be read; names the file.
        """
        files = self._files[rows] if isinstance(rows, slice) else [self._files[index] for index in rows]
        return FeatureBatch([load_image(file, exif=self._exif_rotation) for file in files])

    def every(self, step: int, first: int = 0) -> PixelSource:
        """Every `step`-th image, beginning with image `first`."""
        return PixelSource(self._files[first::step], self._exif_rotation)


@dataclass(frozen=True)
class VariableShape:
    """Features of images with different shapes. A shard of N images has

    sizes       (N, 2)      width and height of the images
    shapes.T    (N, D)      shape of the T-th tensor of each image; -1 fills the rows of tensors with fewer dimensions
    values.T    (V,)        their values, one image after another
    """

    def pack(self, images: FeatureBatch) -> dict[str, Tensor]:
        """See `ShardFormat`."""
        features = [image for image in images if isinstance(image, ImageFeatures)]
        packed = {"sizes": torch.tensor([image.size for image in features])}
        for number, tensors in enumerate(zip(*(image.tensors for image in features), strict=True)):
            dimensions = max(tensor.ndim for tensor in tensors)
            shapes = [[*tensor.shape, *[-1] * (dimensions - tensor.ndim)] for tensor in tensors]
            packed[f"shapes.{number}"] = torch.tensor(shapes).view(len(tensors), dimensions)
            packed[f"values.{number}"] = torch.cat([tensor.reshape(-1) for tensor in tensors])
        return packed

    def open(self, tensors: Mapping[str, Tensor], count: int) -> Callable[[int], ImageFeatures]:
        """See `ShardFormat`."""
        sizes = tensors["sizes"]
        if sizes.shape != (count, 2):
            raise ValueError(f"it holds sizes of shape {list(sizes.shape)}")
        parts = []
        for number in range(sum(name.startswith("values.") for name in tensors)):
            values, rows = tensors[f"values.{number}"], tensors[f"shapes.{number}"].tolist()
            shapes = [tuple(length for length in row if length >= 0) for row in rows]
            ends = list(accumulate(map(math.prod, shapes), initial=0))
            if len(shapes) != count or values.shape != (ends[-1],):
                raise ValueError(f"it holds values of shape {list(values.shape)} for shapes of {ends[-1]:,} values")
            parts.append((values, shapes, ends))

        def image(row: int) -> ImageFeatures:
            kept = (values[ends[row] : ends[row + 1]].view(shapes[row]) for values, shapes, ends in parts)
            width, height = sizes[row].tolist()
            return ImageFeatures(tuple(kept), (width, height))

        return image

    def batch(self, images: Sequence[ImageFeatures]) -> FeatureBatch:
        """See `ShardFormat`."""
        return FeatureBatch([ImageFeatures(tuple(t.clone() for t in image.tensors), image.size) for image in images])

    def is_finite(self, batch: FeatureBatch) -> bool:
        """See `ShardFormat`."""
        tensors = (tensor for image in batch if isinstance(image, ImageFeatures) for tensor in image.tensors)
        return all(map(has_finite_values, tensors))
