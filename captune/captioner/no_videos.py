"""Processors of models that also take videos, without what videos need: torchvision."""

from __future__ import annotations

from typing import Any

from transformers.image_processing_utils import BaseImageProcessor

from captune.errors import InputError

__all__ = ["NoVideos", "images_only"]


class NoVideos(BaseImageProcessor):  # type: ignore[misc]  # transformers has no types here
    """Takes the place of a processor of videos; it has the settings that the folder holds for one."""

    model_input_names: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> None:
        """No setting, where the folder holds none: chat templates are rendered with some of them."""
        if name.startswith("_"):
            raise AttributeError(name)

    def __call__(self, videos: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse.

        Raises:
            InputError: always.
        """
        raise InputError("Videos need torchvision, which is not installed; captune captions images.")


def images_only(kind: Any) -> Any:
    """A class of processors that takes `NoVideos`, which transformers would refuse for its type.

    Args:
        kind: a class of processors, such as `Qwen2VLProcessor`.

    Returns:
        The same class, but for that; it keeps its name, which transformers writes into files.
    """

    def check(self: Any, argument_name: str, argument: Any) -> Any:
        if isinstance(argument, NoVideos):
            return NoVideos
        return kind.check_argument_for_proper_class(self, argument_name, argument)

    made = type(kind.__name__, (kind,), {"check_argument_for_proper_class": check, "__module__": kind.__module__})
    return made
