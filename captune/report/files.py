"""Writing a file so that its final name never shows half of it."""

from __future__ import annotations

from pathlib import Path

from captune.data.atomic import atomic_file
from captune.errors import ToolError

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write under a temporary name in the same folder, then rename.

    Args:
        path: the final name; its folder is made when absent.
        content: all of the file; text is written as UTF-8, with lone surrogates as `\\udXXX`.

    Returns:
        `path`.

    Raises:
        ToolError: the file cannot be written; what stood under `path` before still does.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        with atomic_file(path, "wb") as stream:
            stream.write(data)
    except OSError as error:
        raise ToolError(
            f"{path} cannot be written ({error.strerror or error}); free the place or choose another folder."
        ) from None
    return path
