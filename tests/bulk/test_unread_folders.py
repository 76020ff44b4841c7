"""A folder without read permission is reported, and not skipped as if it were empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from captune.bulk import read_inputs
from captune.data.importers.folder import FolderSource
from captune.errors import DataError


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one below it that `os.walk` cannot enter; tests of root could enter a real one."""

    def walk(folder: object, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
        yield str(folder), ["locked"], ["a.jpg"]
        onerror(PermissionError(13, "Permission denied", f"{folder}/locked"))

    monkeypatch.setattr("os.walk", walk)
    return tmp_path


def test_captioning(locked: Path) -> None:
    with pytest.raises(DataError, match=r"locked' cannot be read \(Permission denied\)"):
        read_inputs([str(locked)])


def test_preparing(locked: Path) -> None:
    with pytest.raises(DataError, match=r"locked' cannot be read \(Permission denied\)"):
        list(FolderSource(locked).rows())
