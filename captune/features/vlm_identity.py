"""The identity of a transformers model's image features: what they depend on besides the image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import PIL
import torch
import transformers
from torch import Tensor

from captune.features.vlm_features import VariableShape
from captune.vlm import ImageTextModel

__all__ = ["ImageTextIdentity", "feature_identity"]

FORMAT = "image-text-1"
_PROBE_SIZE = (64, 64)
_NO_SETTINGS = (
    "_name_or_path",
    "architectures",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""Entries of configurations on which features do not depend, or which the hash of the weights includes."""
_NO_IMAGE_SETTINGS = ("auto_map", "chat_template", "processor_class", "tokenizer", "video_processor")


@dataclass(frozen=True)
class ImageTextIdentity:
    """The identity of features.

    Attributes:
        weights: hash of every bit of the tensors that features depend on.
        settings: hash of the model's configuration without that of its decoder.
        processor: classes of the processor and of its image processor, with their backend.
        image_settings: hash of the image processor's settings, pixel limits among them.
        transform: version of Pillow, and whether the EXIF rotation is applied.
        library: version of transformers, and of torchvision if its functions transform images.
        dtype: of the model.
        prompt: hash of the prompt that features depend on; empty if they depend on none.
    """

    weights: str
    settings: str
    processor: str
    image_settings: str
    transform: str
    library: str
    dtype: str
    prompt: str

    def describe(self) -> dict[str, str]:
        """Content of the store's header."""
        return {"format": FORMAT, **asdict(self)}

    @property
    def key(self) -> str:
        """16 hexadecimal digits, the folder's name."""
        return _hash(self.describe())[:16]

    @property
    def form(self) -> VariableShape:
        """How features are packed into shards."""
        return VariableShape()


def feature_identity(
    model: ImageTextModel, *, exif_rotation: bool = True, instruction: str | None = None
) -> ImageTextIdentity:
    """The identity of a loaded model's image features.

    Args:
        model: whose features were found (`ImageTextModel.find_features`).
        exif_rotation: whether the EXIF rotation of images is applied.
        instruction: on which features depend if `model.features_depend_on_prompt`; by default the model's.
    """
    processor, images = model.processor, model.processor.image_processor
    settings = processor.to_dict() if hasattr(processor, "to_dict") else {}
    settings["image_processor"] = images.to_dict()
    classes = " ".join(_class_name(type(part)) for part in (processor, images))
    library = f"transformers-{transformers.__version__}"
    if "Torchvision" in classes:
        library += f" torchvision-{version('torchvision')}"
    return ImageTextIdentity(
        weights=_weights(model.feature_tensors()),
        settings=_hash(_without_decoder(model.model.config)),
        processor=classes,
        image_settings=_hash(_without(settings, _NO_IMAGE_SETTINGS)),
        # Pillow's resize differs between releases by a grey level.
        transform=f"pillow-{PIL.__version__}{'-upright' * exif_rotation}",
        library=library,
        dtype=str(model.model.dtype).removeprefix("torch."),
        prompt=_prompt(model, instruction) if model.features_depend_on_prompt else "",
    )


def _weights(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(values)
    return digest.hexdigest()[:32]


def _without_decoder(config: Any) -> Any:
    """A model's configuration without the settings of its decoder."""
    text = config.get_text_config(decoder=True)
    parts = {name for name in config.sub_configs if getattr(config, name, None) is text}
    return _without(config.to_dict(), (*_NO_SETTINGS, *parts))


def _without(value: Any, names: tuple[str, ...]) -> Any:
    """Settings without the named entries, at every depth."""
    if isinstance(value, Mapping):
        return {str(name): _without(item, names) for name, item in value.items() if name not in names}
    return [_without(item, names) for item in value] if isinstance(value, (list, tuple)) else value


def _class_name(kind: type) -> str:
    """Name of a class, with the backend of an image processor, such as "CLIPImageProcessorPil(PilBackend)"."""
    backend = next((base.__name__ for base in kind.__mro__ if base.__name__.endswith("Backend")), "")
    return f"{kind.__name__}({backend})" if backend else kind.__name__


def _prompt(model: ImageTextModel, instruction: str | None) -> str:
    """Hash of the ids of a prompt, as the tokenizers make them."""
    inputs = model.conversation.prompt_of_size(_PROBE_SIZE, instruction).inputs
    return _hash({name: value.tolist() for name, value in inputs.items() if not value.is_floating_point()})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]
