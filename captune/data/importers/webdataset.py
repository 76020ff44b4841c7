"""Importer of webdataset tars: members that share a key are one sample, `000123.jpg` and `000123.txt` or `.json`.

The text holds one caption a line; the JSON a string or a list under "caption" or "captions". Where a sample has both,
as img2dataset writes them, the captions are those of the text. A key that is twice in one tar is a problem. Tars are
read as streams, member by member, so that one of any size needs the memory of one sample. Links, devices, names that
lead out of the folder and members too large are reported and skipped.
Source: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from captune.data.ids import SeenIds
from captune.data.image_files import SkippedFiles, is_companion
from captune.data.image_formats import is_image_name
from captune.data.issues import Issue
from captune.data.json_stream import parse_json
from captune.data.manifest import check_image_name
from captune.data.rows import Row
from captune.data.tar_parquet import MAX_MEMBER, InlineImages, open_tar, too_large
from captune.data.text_files import MAX_LINE
from captune.errors import DataError

__all__ = ["WebDatasetSource"]

_NAME = re.compile(r"((?:.*/)?[^/.][^/.]*)(\.[^/]+)")
_FIELDS = ("caption", "captions")
_TAR = re.compile(r"\.tar(\.\w+)?$|\.tgz$")


@dataclass
class _Sample:
    """The members of one key so far."""

    key: str
    image: tuple[str, bytes] | None = None
    texts: dict[str, list[str]] = field(default_factory=dict)  # ending to captions
    endings: set[str] = field(default_factory=set)
    unread: int = 0
    problem: str | None = None

    @property
    def captions(self) -> list[str]:
        """Those of the text, which img2dataset repeats in its JSON; as one where the JSON knows it has lines."""
        text, entries = self.texts.get(".txt") or [], self.texts.get(".json") or []
        return entries if not text or _words(text) == _words(entries) else text

    @property
    def rows(self) -> int:
        """Captions, and members that could not be read, which are lost where the sample is left out."""
        return sum(map(len, self.texts.values())) + self.unread


class WebDatasetSource:
    """Tars and how much of them is read.

    Args:
        source: a tar, packed or not, or a folder of them, which are read in the order of their names.
        inline_images: where the images are written to.
        split: what the images are given.

    Attributes:
        skipped: the members that are not read, once the rows were.

    Raises:
        DataError: no such file, or a folder without tars.
    """

    def __init__(self, source: str | os.PathLike[str], inline_images: InlineImages, *, split: str = "train") -> None:
        self._source = Path(source)
        self._inline_images = inline_images
        self.skipped = SkippedFiles()
        self._split = split
        if self._source.is_dir():
            paths = (path for path in self._source.iterdir() if _TAR.search(path.name))
            self._tars = sorted(path for path in paths if path.is_file())
        else:
            self._tars = [self._source] if self._source.is_file() else []
        if not self._tars:
            what = "holds no .tar file" if self._source.is_dir() else "is not there"
            raise DataError(f"'{source}' {what}; give a tar file, or a folder of them.")
        self.notes: list[str] = []
        self._keys = SeenIds()
        self._sharing: set[int] = set()  # tars that have a key of another one
        self._sizes = [path.stat().st_size for path in self._tars]
        self._done = 0
        self._open: object = None

    @property
    def share(self) -> float:
        """How much is read, from 0 to 1, in complete tars and bytes of the open one."""
        tell = getattr(self._open, "tell", None)
        here = tell() if tell is not None and not getattr(self._open, "closed", True) else 0
        return min(1.0, (sum(self._sizes[: self._done]) + here) / max(1, sum(self._sizes)))

    def rows(self) -> Iterator[Row | Issue]:
        """The samples in the order of the tars; the id is the key.

        Where a key is in several tars, all ids of these tars begin with the tar's name (`shard-00001/0007`), as in
        `captune caption`. That is known when all tars are read; until then the rows of several tars are on the disk.

        Yields:
            a row a sample whose image was written to the folder, or what is wrong with a member.

        Raises:
            DataError: a file is no tar, or broken.
            OSError: no room for the rows.
        """
        if len(self._tars) == 1:
            yield from self._read()
            return
        with tempfile.TemporaryFile("w+", encoding="utf-8") as kept:
            for row in self._read():
                if isinstance(row, Issue):
                    yield row
                else:
                    kept.write(json.dumps([self._done, row.image, row.captions, row.id]) + "\n")
            kept.seek(0)
            for number, image, captions, key in map(json.loads, kept):
                name = f"{self._name(number)}/{key}" if number in self._sharing else key
                yield Row(0, image, tuple(captions), self._split, name)
        if self._sharing:
            names = f"of {len(self._sharing)} tars begin with their names, {self._name(min(self._sharing))}/..."
            self.notes.append(f"keys are in several tars, so ids {names}")

    def _name(self, number: int) -> str:
        """A tar's name without its ending."""
        return _TAR.sub("", self._tars[number].name)

    def _read(self) -> Iterator[Row | Issue]:
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
                    raise DataError(f"'{path}' is no complete tar file: {error}.") from error
        self._done = len(self._tars)

    def _of_tar(self, tar: tarfile.TarFile, name: str) -> Iterator[Row | Issue]:
        sample: _Sample | None = None
        for member in tar:
            if member.isdir():
                continue
            match = _NAME.fullmatch(member.name.removeprefix("./"))
            try:
                check_image_name(member.name)
                if not member.isreg():
                    raise DataError(f"the member {member.name!r} is a link or a device, which is not followed.")
                if match is None:
                    raise DataError(f"the member {member.name!r} has no key and ending, such as 000123.jpg.")
            except DataError as error:
                yield Issue(name, 0, "path", str(error), int(member.name.lower().endswith((".txt", ".json"))))
                continue
            key, ending = match[1], match[2].lower()
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
            if not is_companion(member.name):
                self.skipped.add(member.name)
            return
        if reason := too_large(member, MAX_MEMBER if is_image else MAX_LINE):
            sample.problem = reason
            sample.unread += not is_image
            return
        stream = tar.extractfile(member)
        data = b"" if stream is None else stream.read()
        if ending in sample.endings and sample.problem is None:
            sample.problem = f"the member '{member.name}' is in the tar twice, so its sample is left out."
        sample.endings.add(ending)
        if is_image:
            if sample.image is not None and sample.problem is None:
                sample.problem = f"the sample '{sample.key}' has two images, '{sample.image[0]}' and '{ending}'."
            sample.image = (ending, data)
            return
        try:
            text = data.decode("utf-8-sig")
            captions = _json_captions(text) if ending == ".json" else _text_captions(text)
            sample.texts[ending] = sample.texts.get(ending, []) + captions
        except ValueError as error:
            what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error}"
            sample.problem = f"the member '{member.name}' {what}."
            sample.unread += 1

    def _finished(self, sample: _Sample, name: str) -> Iterator[Row | Issue]:
        """A sample with all its members as a row; its image is written only now."""
        problem, captions = sample.problem, sample.captions
        if problem is None and sample.image is None:
            problem = f"the sample '{sample.key}' has no image."
        if problem is not None:
            yield Issue(name, 0, "malformed", problem, sample.rows)
            return
        assert sample.image is not None
        if not captions:
            yield Issue(name, 0, "empty", f"the sample '{sample.key}' has no caption.", 0)
            return
        first = self._keys.line_of(sample.key)
        if first == self._done:
            message = f"the key '{sample.key}' is in the tar already; its second sample is left out."
            yield Issue(name, 0, "duplicate", message, len(captions))
            return
        known = [_words([caption]) for caption in captions]
        for text in sample.texts.get(".json") or []:
            if _words([text]) not in known:
                message = f"the .json of '{sample.key}' has another caption than its .txt, which is kept."
                yield Issue(name, 0, "unused", message)
        unique_key = sample.key
        if first is None:
            self._keys.add(unique_key, self._done)
        else:
            self._sharing |= {first, self._done}
            unique_key = f"{self._name(self._done)}/{unique_key}"
        ending, data = sample.image
        file = self._inline_images.add(data, unique_key.replace("/", "_") + ending)
        yield Row(0, file, tuple(captions), self._split, sample.key)


def _text_captions(text: str) -> list[str]:
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


def _words(captions: list[str]) -> list[str]:
    return " ".join(captions).split()


def _json_captions(text: str) -> list[str]:
    """The captions of a JSON object; none where it has no field for them, since there may be a text with captions."""
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
