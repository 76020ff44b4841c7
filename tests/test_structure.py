"""The structure of the package, file by file: no circles, rooms used through their faces, meaningful identifiers."""

from __future__ import annotations

from pathlib import Path

import pytest
from measures import Package, circles, forbidden_by_file

# Inner files that other rooms may import past the face, with the reason.
EXCEPTIONS: dict[str, str] = {}


@pytest.fixture(scope="module")
def package() -> Package:
    return Package()


def test_no_circle_between_files(package: Package) -> None:
    assert package.circles() == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert circles(graph) == [["a", "b", "c"]]


def test_rooms_are_used_through_their_faces(package: Package) -> None:
    past = {(importer, target) for importer, target in package.past_faces() if target not in EXCEPTIONS}
    assert sorted(past) == []


def test_no_identifier_without_meaning() -> None:
    assert forbidden_by_file() == {}


@pytest.mark.parametrize("folder", ["captune/data", "tests/cli", "benchmarks", "tools/toy", "eval_scripts", ""])
def test_identifiers_without_meaning_are_found(folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "file.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("import os as own\n\ndef f(self, given):\n    self._FOUND = placed = given\n")
    assert forbidden_by_file(tmp_path) == {f"{folder}/file.py".lstrip("/"): {"own": 1, "given": 1, "_FOUND": 1}}
