"""Libraries that a model of transformers needs and captune does not bring."""

from __future__ import annotations

import re

from captune.common import error_text
from captune.errors import InputError, MissingExtraError

__all__ = ["missing_library"]


def missing_library(what: str, error: ImportError) -> InputError:
    """What transformers says of a library that a model needs, as one sentence.

    Args:
        what: needs it, as the beginning of the sentence.
        error: of the import.
    """
    text = str(error)
    if "num2words" in text:
        return MissingExtraError(what, "smolvlm")
    if "torchvision" in text.lower():
        return InputError(
            f"{what} needs torchvision, which is not installed; install the torchvision that belongs to your build of "
            "torch."
        )
    if named := re.search(r"`pip install ([\w.-]+)`", text):
        return InputError(f"{what} needs {named[1]}, which is not installed; install it with: pip install {named[1]}")
    return InputError(f"{what} needs a library that is not installed: {error_text(error)}")
