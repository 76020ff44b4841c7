"""Tar files as streams of members, in bounded memory whatever an archive claims of itself."""

from __future__ import annotations

import tarfile
from typing import IO, Self

__all__ = ["MAX_MEMBER", "open_tar", "too_large"]

MAX_MEMBER = 256 << 20
"""Bytes of the largest member that is read; a larger one is no photograph but a broken or hostile file."""

_MAX_HEADER = 1 << 20
_EXTENDED = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
)


def open_tar(file: IO[bytes]) -> tarfile.TarFile:
    """Open a tar, packed or not, as a stream: one member at a time is read, and no index is made of the others.

    Args:
        file: at its start.

    Raises:
        tarfile.TarError, EOFError, OSError, zlib.error: it is no tar, or broken. So does iterating over the members.
    """
    return tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member)


def too_large(member: tarfile.TarInfo, limit: int = MAX_MEMBER) -> str | None:
    """A sentence about a member that unfolds to more than a limit, or None.

    The size is that of the member when it is read; a sparse or packed one may take a few bytes in the archive.
    """
    if member.size <= limit:
        return None
    return f"the member '{member.name}' has {member.size >> 20:,} MB, and {limit >> 20} MB is the limit."


class _Member(tarfile.TarInfo):
    """A member whose header is refused where Python would read gigabytes for a name, or end without a word."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A member from its header of 512 bytes."""
        try:
            member = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            # Behind the first member Python takes a damaged header for the end of the archive.
            raise tarfile.ReadError(f"the header of a member is damaged ({error})") from error
        if member.type in _EXTENDED and member.size > _MAX_HEADER:
            raise tarfile.ReadError(f"the name of a member claims {member.size >> 20:,} MB")
        return member
