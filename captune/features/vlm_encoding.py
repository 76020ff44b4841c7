"""Encoding of images by a transformers model: into the store, or not at all if the disk has too little room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image

from captune.captioner import probe_images
from captune.common import error_text
from captune.data import check_image, content_ids, load_image, prefetch_map
from captune.decoding import is_out_of_memory
from captune.distributed import DistributedContext
from captune.errors import CaptuneError, DataError, WeightsError
from captune.features.encode import SHARD, UnreadableImage
from captune.features.prepare import (
    StoredImages,
    check_disk,
    content_of,
    free_space,
    readable_images,
    stored_images,
)
from captune.features.store import FeatureStore, StoredFeatures
from captune.features.vlm_features import FeatureBatch, PixelSource
from captune.features.vlm_identity import feature_identity
from captune.hub import ResolvedModel
from captune.vlm import ImageFeatures, ImageTextModel

__all__ = ["StoreChoice", "choose_store", "forecast_bytes", "image_features_of", "image_pixels_of"]

_SHARD_BYTES = 1 << 27
"""A shard is written when it has so many bytes, or `SHARD` images; a killed run computes at most those again."""
_SAMPLE = 8
_AHEAD = 16
"""Images that are decoded ahead."""


def image_features_of(
    model: ImageTextModel,
    source: ResolvedModel,
    files: Sequence[Path],
    root: Path,
    group: DistributedContext,
    *,
    exif_rotation: bool = True,
    instruction: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> StoredImages[StoredFeatures[FeatureBatch]]:
    """Stored features of image files, in their order; the tower runs only for those that are missing.

    Args:
        model: computes them, one image at a time, so that an image's features do not depend on others.
        source: of the model, for messages.
        files: N image files.
        root: folder of all stores.
        group: the processes that divide the work.
        exif_rotation: apply the EXIF rotation of images.
        instruction: on which features depend if `model.features_depend_on_prompt`; by default the model's.
        on_progress: called with (done, missing) while the tower runs.

    Raises:
        WeightsError: features cannot be stored.
        DataError: the disk has too little room, or the store is not shared by all machines.
        OSError: the disk is full.
    """
    store = _store(model, source, root, exif_rotation, instruction)

    def encode(contents: Sequence[bytes], missing: list[int]) -> list[UnreadableImage]:
        size, _ = forecast_bytes(
            model, [files[n] for n in missing], exif_rotation=exif_rotation, instruction=instruction
        )
        check_disk(store.folder, len(missing), size)
        unreadable = _encode_missing(
            model, files, contents, store, group.shard(missing), exif_rotation, instruction, on_progress
        )
        return [item for items in group.all_gather(unreadable) for item in items]

    return stored_images(store, files, root, group, encode)


def _store(
    model: ImageTextModel, source: ResolvedModel, root: Path, exif_rotation: bool, instruction: str | None
) -> FeatureStore[FeatureBatch]:
    if model.losses.feature_call is None:
        model.find_features()
    if model.losses.feature_call is None or model.features_are_trained():
        raise WeightsError(
            f"The image features of {source.name} cannot be stored; set train.feature_store to false to compute them "
            "in every step."
        )
    return FeatureStore(root, feature_identity(model, exif_rotation=exif_rotation, instruction=instruction))


def _encode_missing(
    model: ImageTextModel,
    files: Sequence[Path],
    contents: Sequence[bytes],
    store: FeatureStore[FeatureBatch],
    missing: Sequence[int],
    exif_rotation: bool,
    instruction: str | None,
    on_progress: Callable[[int, int], None] | None,
) -> list[UnreadableImage]:
    """Compute and store features; returns the images without features."""
    unreadable: list[UnreadableImage] = []
    shard: list[tuple[bytes, ImageFeatures]] = []
    size = 0

    def write() -> None:
        if shard:
            store.add([content for content, _ in shard], FeatureBatch([features for _, features in shard]))
            shard.clear()

    def read(index: int) -> Image.Image | DataError:
        return _image(files[index], exif_rotation)

    for done, (index, image) in enumerate(prefetch_map(missing, read, ahead=_AHEAD), start=1):
        features = _encoded(model, image, files[index], instruction)
        if isinstance(features, ImageFeatures):
            shard.append((contents[index], features))
            size += features.nbytes
        else:
            unreadable.append(UnreadableImage(index, features))
        if len(shard) >= SHARD or size >= _SHARD_BYTES:
            write()
            size = 0
        if on_progress is not None:
            on_progress(done, len(missing))
    write()
    return unreadable


def _image(file: Path, exif_rotation: bool) -> Image.Image | DataError:
    try:
        return load_image(file, exif=exif_rotation)
    except DataError as error:
        return error


def _encoded(
    model: ImageTextModel, image: Image.Image | DataError, file: Path, instruction: str | None
) -> ImageFeatures | str:
    """The features of an image on the CPU, or why it has none.

    Raises:
        WeightsError: an ordinary image has none either.
    """
    if isinstance(image, DataError):
        return str(image)
    try:
        features = model.encode(image, instruction).to(torch.device("cpu"))
    except CaptuneError:
        raise
    except Exception as error:  # processors and models of hundreds of families raise anything
        reason = _refusal(model, error, lambda ordinary: model.encode(ordinary, instruction))
        return f"{model.name} refuses '{file}' ({reason})."
    if not all(tensor.isfinite().all() for tensor in features.tensors if tensor.is_floating_point()):
        return (
            f"the features of '{file}' are not numbers: a weight of the vision tower is broken, or its number format "
            "overflows (try model.dtype=float32)."
        )
    return features


def _refusal(model: ImageTextModel, error: Exception, run: Callable[[Image.Image], object]) -> str:
    """Why the processor or the model refuses an image, from the exception that it raised.

    Raises:
        WeightsError: it refuses an ordinary image as well.
    """
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        raise error
    reason = f"{type(error).__name__}: {error_text(error)}"
    try:
        run(probe_images()[0].resize((320, 240)))
    except Exception:  # an ordinary image fails too
        raise WeightsError(f"{model.name} cannot encode images with these settings ({reason}).") from error
    return reason


def image_pixels_of(
    model: ImageTextModel,
    files: Sequence[Path],
    root: Path,
    group: DistributedContext,
    *,
    exif_rotation: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> StoredImages[PixelSource]:
    """The images that can be read and processed, without features: they are read again when they are indexed.

    Args:
        model: whose processor may refuse images.
        files: N image files.
        root: folder of the cache of file contents.
        group: the processes that divide the work.
        exif_rotation: apply the EXIF rotation of images.
        on_progress: called with (done, files) while images are decoded.
    """
    contents, unreadable = content_of(files, root, group)
    without_content = {item.position for item in unreadable}
    indices = group.shard([index for index in range(len(files)) if index not in without_content])
    refusals: dict[tuple[int, int], str | None] = {}
    bad: list[UnreadableImage] = []
    for done, (index, size) in enumerate(prefetch_map(indices, lambda index: _size(files[index])), start=1):
        if isinstance(size, DataError):
            bad.append(UnreadableImage(index, str(size)))
        else:
            if size not in refusals:
                refusals[size] = _refusal_of_size(model, size)
            if refusals[size] is not None:
                bad.append(UnreadableImage(index, f"{model.name} refuses '{files[index]}' ({refusals[size]})."))
        if on_progress is not None:
            on_progress(done, len(indices))
    unreadable += [item for items in group.all_gather(bad) for item in items]
    return readable_images(
        contents, unreadable, lambda readable: PixelSource([files[n] for n in readable], exif_rotation)
    )


def _size(file: Path) -> tuple[int, int] | DataError:
    try:
        return check_image(file)
    except DataError as error:
        return error


def _refusal_of_size(model: ImageTextModel, size: tuple[int, int]) -> str | None:
    """Why the processor refuses images of a size; None if it does not."""
    try:
        model.conversation.prompt_of_size(size)
    except CaptuneError:
        raise
    except Exception as error:
        return _refusal(model, error, lambda ordinary: model.conversation.prompt_of_size(ordinary.size))
    return None


def forecast_bytes(
    model: ImageTextModel,
    files: Sequence[Path],
    sample: int = _SAMPLE,
    *,
    exif_rotation: bool = True,
    instruction: str | None = None,
) -> tuple[float, int]:
    """Bytes of stored features, measured on a few images.

    Args:
        model: whose features were found.
        files: N image files.
        sample: number of images that are encoded, at equal distances among the files.
        exif_rotation: apply the EXIF rotation of images.
        instruction: the prompt; by default the model's.

    Returns:
        Bytes per image, and of all N; 0 if none of the sample can be read.
    """
    sizes = []
    for file in [files[n * len(files) // sample] for n in range(sample)] if len(files) > sample else files:
        features = _encoded(model, _image(file, exif_rotation), file, instruction)
        if isinstance(features, ImageFeatures):
            sizes.append(features.nbytes)
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return mean, round(mean * len(files))


class StoreChoice(NamedTuple):
    """Whether features are stored.

    Attributes:
        stored: whether they are.
        reason: in one line.
    """

    stored: bool
    reason: str


def choose_store(
    model: ImageTextModel,
    source: ResolvedModel,
    files: Sequence[Path],
    root: Path,
    setting: Literal["auto"] | bool,
    *,
    exif_rotation: bool = True,
    instruction: str | None = None,
) -> StoreChoice:
    """Choose whether to store features.

    Args:
        model: computes them.
        source: of the model, for messages.
        files: all image files of a run.
        root: folder of all stores.
        setting: `train.feature_store`; auto stores features that take less than half of the disk's free space.
        exif_rotation: apply the EXIF rotation of images.
        instruction: on which features depend if `model.features_depend_on_prompt`; by default the model's.

    Raises:
        WeightsError: `setting` is true, and features cannot be stored.
        DataError: `setting` is true, and the disk has too little room.
    """
    if setting is False:
        return StoreChoice(False, "Image features are not stored: train.feature_store is false.")
    try:
        store = _store(model, source, root, exif_rotation, instruction)
        store.refresh()
        ids = content_ids(files, root)
        readable = [(file, content) for file, content in zip(files, ids, strict=True) if isinstance(content, bytes)]
        missing = [readable[n][0] for n in store.missing([content for _, content in readable])]
        size, total = forecast_bytes(model, missing, exif_rotation=exif_rotation, instruction=instruction)
    except WeightsError as error:
        if setting is True:
            raise
        return StoreChoice(False, f"Image features are not stored: {error}")
    if setting is True:
        check_disk(store.folder, len(missing), size)
    if setting is True or not missing:
        return StoreChoice(True, f"Image features are stored in {store.folder}.")
    free = free_space(store.folder)
    needs = f"{len(missing):,} images take {total / 1e9:.1f} GB, {size / 1e6:.2f} MB each; {free / 1e9:.1f} GB are free"
    if 2 * total < free:
        return StoreChoice(True, f"Image features are stored in {store.folder}: {needs}.")
    return StoreChoice(
        False,
        f"Image features are not stored, and the tower runs in every step: {needs} in {store.folder.parent}, and half "
        "of it may be used.",
    )
