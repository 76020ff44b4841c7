"""The exception tree of captune.

    CaptuneError
    ├── InputError                the input of the user is wrong; the command line exits with code 2
    │   ├── ConfigError           a YAML or an override that does not make a `RunConfig`
    │   ├── DataError             annotations, manifests or images that cannot be used
    │   │   ├── RefusedImagesError    some images of a batch; the others are captioned
    │   │   │   └── NonFiniteScoresError    the model's scores of them are NaN or infinite
    │   │   ├── ImageTooLargeError    an image of more pixels than the limit
    │   │   └── ChangedTextError      a text that another program changed since it was read
    │   ├── MetricInputError      predictions and references that cannot be scored
    │   ├── WeightsError          a checkpoint that is broken or belongs to another model
    │   └── MissingExtraError     an optional part of captune is not installed
    └── ToolError                 captune or the machine failed; the command line exits with code 1
        ├── ExternalToolError     a subprocess (Java, ...) failed or ran out of time
        ├── TrainingError         a run that cannot continue
        └── StoppedError          a run that was stopped by a signal; the exit code is the signal's

Every message is one sentence that names the value, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "CaptuneError",
    "ChangedTextError",
    "ConfigError",
    "DataError",
    "ExternalToolError",
    "ImageTooLargeError",
    "InputError",
    "MetricInputError",
    "MissingExtraError",
    "NonFiniteScoresError",
    "RefusedImagesError",
    "StoppedError",
    "ToolError",
    "TrainingError",
    "WeightsError",
]


class CaptuneError(Exception):
    """Base of every error that captune raises on purpose."""

    exit_code: int = 1


class InputError(CaptuneError):
    """The input of the user is wrong."""

    exit_code: int = 2


class ConfigError(InputError):
    """A YAML file or a `key=value` override that does not make a valid configuration."""


class DataError(InputError):
    """Annotations, manifests or images that cannot be used."""


class RefusedImagesError(DataError):
    """A model or its processor refuses some images of a batch; the others are captioned.

    Args:
        captions: one for each image of the batch, None for a refused one.
        reasons: sentences why an image is refused, by its index in the batch; at least one.
        names: what the images are called, where they have names.
    """

    def __init__(self, captions: Sequence[Any], reasons: Mapping[int, str], names: Sequence[str] = ()) -> None:
        first = min(reasons)
        called = names[first] if names else f"the image with index {first}"
        super().__init__(
            f"{len(reasons)} of {len(captions)} images cannot be captioned; {called} is the first: {reasons[first]}"
        )
        self.captions = list(captions)
        self.reasons = dict(reasons)


class NonFiniteScoresError(RefusedImagesError):
    """The model's scores are NaN or infinite for some images of a batch; the others are captioned."""


class ChangedTextError(DataError):
    """A text file has another text than when it was read, so it is not replaced."""


class ImageTooLargeError(DataError):
    """An image of more pixels than the limit, refused by its header."""


class MetricInputError(InputError):
    """Predictions and references that cannot be scored."""


class WeightsError(InputError):
    """A checkpoint that is broken, incomplete or made for another model."""


class MissingExtraError(InputError):
    """An optional part of captune is not installed.

    Args:
        what: the requested command or function, as the subject of a sentence ("captune train").
        extra: the name of the extra that brings it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}'; install it with: pip install 'captune[{extra}]'")
        self.extra = extra


class ToolError(CaptuneError):
    """captune or the machine under it failed."""


class ExternalToolError(ToolError):
    """A subprocess that captune calls failed or ran out of time."""


class TrainingError(ToolError):
    """A training run that cannot continue."""


class StoppedError(ToolError):
    """A training run that was stopped by a signal and saved its state.

    Args:
        message: where it stopped and how to resume.
        signal_number: of the signal; the exit code is 128 more, as shells count.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
