"""The structure of the package, file by file: no circles, rooms used through their faces, meaningful identifiers."""

from __future__ import annotations

import pytest
from measures import Package, circles, forbidden

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


def test_no_identifier_without_meaning(package: Package) -> None:
    names = {name: forbidden(module.tree) for name, module in package.modules.items()}
    assert {name: dict(counts) for name, counts in names.items() if counts} == {}
