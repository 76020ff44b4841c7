"""Importer of webdataset tars: members that share a key are one sample, `000123.jpg` beside `000123.txt` or `.json`.

The text holds one caption a line; the JSON a string or a list under "caption" or "captions". Tars are read as streams,
member by member, so that one of any size needs the memory of one sample. Links, devices, names that lead out of the
folder and members too large are said and passed over.
Source: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from captune.data.embedded import EmbeddedImages
from captune.data.formats import is_image_name
from captune.data.importing import Row
from captune.data.left_out import LeftOut, is_companion
from captune.data.manifest import check_image_name
from captune.data.problems import Problem
from captune.data.tars import MAX_MEMBER, open_tar, too_large
from captune.data.text import MAX_LINE, parse_json
from captune.errors import DataError

__all__ = ["WebDatasetReading"]

_NAME = re.compile(r"((?:.*/)?[^/.][^/.]*)(\.[^/]+)")
_FIELDS = ("caption", "captions")


@dataclass
class _Sample:
    """The members of one key so far."""

    key: str
    image: tuple[str, bytes] | None = None
    captions: list[str] = field(default_factory=list)
    problem: str | None = None


class WebDatasetReading:
    """Tars and how much of them is read.

    Args:
        source: a tar, packed or not, or a folder of them, which are read in the order of their names.
        embedded: where the images are written to.
        split: what the images are given.

    Attributes:
        left_out: the members that are not read, once the rows were.

    Raises:
        DataError: no such file, or a folder without tars.
    """

    def __init__(self, source: str | os.PathLike[str], embedded: EmbeddedImages, *, split: str = "train") -> None:
        self._source = Path(source)
        self._embedded = embedded
        self.left_out = LeftOut()
        self._split = split
        if self._source.is_dir():
            found = (path for path in self._source.iterdir() if re.search(r"\.tar(\.\w+)?$|\.tgz$", path.name))
            self._tars = sorted(path for path in found if path.is_file())
        else:
            self._tars = [self._source] if self._source.is_file() else []
        if not self._tars:
            what = "holds no .tar file" if self._source.is_dir() else "is not there"
            raise DataError(f"'{source}' {what}; give a tar file, or a folder of them.")
        self._sizes = [path.stat().st_size for path in self._tars]
        self._done = 0
        self._open: object = None

    @property
    def share(self) -> float:
        """How much is read, from 0 to 1, in whole tars and bytes of the one that is open."""
        tell = getattr(self._open, "tell", None)
        here = tell() if tell is not None and not getattr(self._open, "closed", True) else 0
        return min(1.0, (sum(self._sizes[: self._done]) + here) / max(1, sum(self._sizes)))

    def rows(self) -> Iterator[Row | Problem]:
        """The samples in the order of the tars; the id is the key.

        Yields:
            a row a sample whose image was written to the folder, or what is wrong with a member.

        Raises:
            DataError: a file is no tar, or broken.
        """
        for number, path in enumerate(self._tars):
            self._done = number
            with open(path, "rb") as file:
                self._open = file
                try:
                    with open_tar(file) as tar:
                        yield from self._of_tar(tar, str(path))
                except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise
                    raise DataError(f"'{path}' is no whole tar file: {error}.") from error
        self._done = len(self._tars)

    def _of_tar(self, tar: tarfile.TarFile, name: str) -> Iterator[Row | Problem]:
        sample: _Sample | None = None
        for member in tar:
            if member.isdir():
                continue
            found = _NAME.fullmatch(member.name.removeprefix("./"))
            try:
                check_image_name(member.name)
                if not member.isreg():
                    raise DataError(f"the member {member.name!r} is a link or a device, which is not followed.")
                if found is None:
                    raise DataError(f"the member {member.name!r} has no key and ending, such as 000123.jpg.")
            except DataError as error:
                yield Problem(name, 0, "path", str(error))
                continue
            key, ending = found[1], found[2].lower()
            if sample is None or sample.key != key:
                if sample is not None:
                    yield from self._finished(sample, name)
                sample = _Sample(key)
            self._take(sample, tar, member, ending)
        if sample is not None:
            yield from self._finished(sample, name)

    def _take(self, sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> None:
        """Add what a member holds; a member of another kind is passed over."""
        # Of `a.seg.png`, webdataset's ending is all that follows the first dot: it is no picture of the sample.
        is_image = ending.count(".") == 1 and is_image_name(f"_{ending}")
        if not is_image and ending not in (".txt", ".json"):
            if not is_companion(ending):
                self.left_out.add(member.name)
            return
        if reason := too_large(member, MAX_MEMBER if is_image else MAX_LINE):
            sample.problem = reason
            return
        stream = tar.extractfile(member)
        data = b"" if stream is None else stream.read()
        if is_image:
            sample.image = (ending, data)
            return
        try:
            text = data.decode("utf-8-sig")
            sample.captions += _json_captions(text) if ending == ".json" else _text_captions(text)
        except ValueError as error:
            what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error}"
            sample.problem = f"the member '{member.name}' {what}."

    def _finished(self, sample: _Sample, name: str) -> Iterator[Row | Problem]:
        """A sample with all its members as a row; its image is written only now."""
        problem = sample.problem
        if problem is None and sample.image is None:
            problem = f"the sample '{sample.key}' has no image."
        if problem is not None:
            yield Problem(name, 0, "malformed", problem)
            return
        assert sample.image is not None
        if not sample.captions:
            yield Problem(name, 0, "empty", f"the sample '{sample.key}' has no caption.")
            return
        ending, data = sample.image
        file = self._embedded.add(data, sample.key.replace("/", "_") + ending)
        yield Row(0, file, tuple(sample.captions), self._split, sample.key)


def _text_captions(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _json_captions(text: str) -> list[str]:
    """The captions of a JSON object; none where it has no field for them, since a text may lie beside it."""
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("a JSON object is expected")
    for name in _FIELDS:
        value = content.get(name)
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and all(isinstance(caption, str) for caption in value):
            return value
        if value is not None:
            raise ValueError(f"'{name}' must be a string or a list of strings")
    return []
