"""A missing optional part, said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from captune.errors import MissingExtraError

__all__ = ["needs"]


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Turn a failing import in the block into a sentence that names the extra to install.

    Args:
        what: the command that was called.
        extra: the extra whose libraries the block imports.

    Raises:
        MissingExtraError: a library of another project is missing; captune's own faults pass through.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "captune").split(".")[0] == "captune":
            raise
        raise MissingExtraError(what, extra) from error
