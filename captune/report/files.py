"""Writing a file so that its final name never shows half of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ToolError(
            f"{path} cannot be written ({error.strerror or error}); free the place or choose another folder."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path
