"""`captune fetch`: what it prints, and how it ends when the file is wrong."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from captune import cli
from captune.cli.progress import download_progress
from captune.metrics.external.corenlp import JARS, find_models


def captune(*arguments: object) -> int:
    return cli.run(lambda: cli.call(cli.app, [str(argument) for argument in arguments]))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "corenlp.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        for name in JARS:
            bundle.writestr(f"stanford-corenlp-full-2015-12-09/{name}", name * 10)
    return path


def test_the_jars_are_printed(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checksum = "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()
    assert captune("fetch", "spice", "--to", tmp_path / "to", "--archive", archive, "--checksum", checksum) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [str(path) for path in find_models(tmp_path / "to")]


def test_another_file_is_refused(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert captune("fetch", "spice", "--to", tmp_path / "to", "--archive", archive) == 1
    err = capsys.readouterr().err
    assert "is not the file expected" in err
    assert err.count("\n") == 1
    assert list((tmp_path / "to").iterdir()) == []


def test_only_known_things_are_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert captune("fetch", "models") == 2
    assert "spice" in capsys.readouterr().err


def test_progress_is_one_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with download_progress() as show:
        for done in range(1001):
            show(done * 1_000_000, 1_000_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "1,000 MB of 1,000 MB (100%)"


def test_progress_without_a_length(capsys: pytest.CaptureFixture[str]) -> None:
    with download_progress() as show:
        show(100, None)
        show(200_000_000, None)
    assert capsys.readouterr().err.splitlines() == ["0 MB", "200 MB"]
