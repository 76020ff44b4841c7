"""Images that come inside the annotations (parquet, Hugging Face data sets, tar files), written to a folder."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from pathlib import Path

from captune.data.first_seen import FirstSeen
from captune.data.manifest import safe_join
from captune.data.partial import partial_file
from captune.errors import DataError

__all__ = ["MAX_IMAGE", "EmbeddedImages"]

MAX_IMAGE = 256 << 20
"""Largest image file in bytes; a larger one is no photograph but a broken or hostile file."""

_LONGEST_NAME = 200  # bytes; file systems stop at 255
_ENDINGS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


class EmbeddedImages:
    """The folder that images are written to. Nothing is ever written outside of it, and no link in it is followed.

    A file that is there already is never replaced by other bytes: it may belong to another manifest, or to the user.

    Args:
        folder: made when the first image comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = FirstSeen()

    def add(self, data: bytes, name: str | None = None) -> str:
        """Write an image.

        Args:
            data: the bytes of the image file.
            name: as the data set calls it; its folders are dropped. The name of another image, or of a file with
                other bytes that is there already, and no name at all, become a hash of the bytes.

        Returns:
            name of the file in the folder; the same bytes under the same name are written once.

        Raises:
            DataError: too large, or no name for a file.
            OSError: from the file system.
        """
        if len(data) > MAX_IMAGE:
            raise DataError(f"the image has {len(data) >> 20} MB, and {MAX_IMAGE >> 20} MB is the limit.")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        mark = int.from_bytes(digest[:7], "big")
        ending = next((ending for start, ending in _ENDINGS.items() if data.startswith(start)), ".img")
        chosen = posixpath.basename((name or "").replace("\\", "/"))
        if len(os.fsencode(chosen)) > _LONGEST_NAME:
            chosen = ""
        before = self._names.line_of(chosen) if chosen else mark + 1
        if before is None and _holds_other_bytes(safe_join(self.folder, chosen), data):
            before = mark + 1
        if before is not None and before != mark:
            chosen = digest.hex() + ending
            before = self._names.line_of(chosen)
        if before is None:
            self._write(safe_join(self.folder, chosen), data)
            self._names.add(chosen, mark)
        return chosen

    def _write(self, target: Path, data: bytes) -> None:
        """A file that is whole or not there; the same bytes are not written again."""
        if os.path.lexists(target) and not _holds_other_bytes(target, data):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with partial_file(target, "xb") as (stream, partial):
            try:
                with stream:
                    stream.write(data)
                os.replace(partial, target)
            except OSError as error:
                partial.unlink(missing_ok=True)
                error.filename = str(target)
                raise


def _holds_other_bytes(target: Path, data: bytes) -> bool:
    """Whether a name is taken by a link, a folder or a file of other bytes."""
    try:
        state = target.lstat()
    except OSError:
        return False
    return not (stat.S_ISREG(state.st_mode) and state.st_size == len(data) and target.read_bytes() == data)
