"""The walls of the house: who may import whom, and what a light command may not drag in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Room -> the rooms it may import, besides itself, `common`, `errors` and `parsing`; all others may not be imported.
WALLS: dict[str, set[str]] = {
    "common": set(),
    "errors": set(),
    "parsing": set(),
    "events": set(),
    "distributed": {"model"},
    "transformers_compat": set(),
    "weights": {"transformers_compat"},
    "run_checkpoints": {"config", "metrics"},
    "hub": {"config", "run_checkpoints", "weights"},
    "preflight": {"config", "data", "hub", "run_checkpoints"},
    "metrics": {"data", "weights"},
    "data": set(),
    "config": set(),
    "model": {"config", "data", "hub", "run_checkpoints", "transformers_compat", "weights"},
    "decoding": {"data", "model", "transformers_compat"},
    "captioner": {
        "config",
        "data",
        "decoding",
        "hub",
        "model",
        "preflight",
        "run_checkpoints",
        "transformers_compat",
        "weights",
    },
    "vlm": {
        "captioner",
        "config",
        "data",
        "decoding",
        "hub",
        "model",
        "run_checkpoints",
        "transformers_compat",
        "weights",
    },
    "bulk": {"captioner", "data", "decoding"},
    "features": {
        "captioner",
        "config",
        "data",
        "decoding",
        "distributed",
        "hub",
        "model",
        "run_checkpoints",
        "vlm",
        "weights",
    },
    "report": {"config", "data", "metrics"},
    "agreement": {"data", "metrics", "report"},
    "results": {"captioner", "report", "run_checkpoints"},
    "run_folders": {"config", "data", "events", "metrics", "report", "run_checkpoints"},
    "evaluation": {
        "captioner",
        "config",
        "data",
        "decoding",
        "distributed",
        "events",
        "features",
        "hub",
        "metrics",
        "model",
        "preflight",
        "report",
        "run_checkpoints",
        "vlm",
    },
    "training": {
        "captioner",
        "vlm",
        "config",
        "data",
        "decoding",
        "distributed",
        "evaluation",
        "events",
        "features",
        "metrics",
        "model",
        "hub",
        "preflight",
        "report",
        "results",
        "run_folders",
        "run_checkpoints",
        "transformers_compat",
        "weights",
    },
    "explain": {
        "config",
        "data",
        "decoding",
        "distributed",
        "evaluation",
        "model",
        "training",
        "transformers_compat",
        "vlm",
    },
    "toy": {"config", "data", "decoding", "metrics", "model"},
    "apps": {
        "agreement",
        "captioner",
        "config",
        "data",
        "decoding",
        "hub",
        "metrics",
        "model",
        "report",
        "run_checkpoints",
        "vlm",
    },
}
WALLS["api"] = {
    "results",
    "captioner",
    "config",
    "data",
    "evaluation",
    "events",
    "metrics",
    "preflight",
    "report",
    "run_checkpoints",
    "run_folders",
    "training",
}
WALLS["cli"] = set(WALLS)
WALLS["__main__"] = {"cli"}
WALLS["integrations"] = {
    "captioner",
    "config",
    "data",
    "decoding",
    "distributed",
    "evaluation",
    "events",
    "metrics",
    "model",
    "parsing",
    "report",
}


def modules(repository: Path) -> Iterator[Path]:
    yield from sorted((repository / "captune").rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """Rooms of captune that a file imports, wherever in the file the import is."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "captune" else [node.module]
            )
        rooms |= {name.split(".")[1] for name in names if name and name.startswith("captune.")}
    # `from captune import __version__` crosses no wall.
    return rooms - {"__version__"}


def room_of(path: Path, repository: Path) -> str:
    parts = path.relative_to(repository / "captune").parts
    return parts[0].removesuffix(".py")


def test_every_room_is_known_and_no_wall_is_crossed(repository: Path) -> None:
    crossed = []
    for path in modules(repository):
        room = room_of(path, repository)
        if room == "__init__":
            continue
        assert room in WALLS, f"{path}: a new room needs a line in WALLS"
        crossed += [
            f"{path.relative_to(repository)} imports captune.{other}"
            for other in imported_rooms(path) - WALLS[room] - {room, "common", "errors", "parsing"}
        ]
    assert not crossed


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        # One decoder, which opens an allow-list of formats; the others read what captune itself has encoded.
        (
            "Image.open(",
            {"data/image_formats.py", "data/images.py", "evaluation/corruptions.py", "captioner/jpeg_decoder.py"},
        ),
        ("yaml.safe_load(", set()),
        ("yaml.load(", set()),
    ],
)
def test_files_of_others_are_read_in_one_place(repository: Path, call: str, allowed: set[str]) -> None:
    package = repository / "captune"
    users = {path.relative_to(package).as_posix() for path in modules(repository) if call in path.read_text("utf-8")}
    assert users == allowed


def test_walls_have_no_circles() -> None:
    order: list[str] = []
    open_rooms = {room: set(others) - {room} for room, others in WALLS.items()}
    while open_rooms:
        free = [room for room, others in open_rooms.items() if not others - set(order)]
        assert free, f"these rooms need each other: {sorted(open_rooms)}"
        order += free
        open_rooms = {room: others for room, others in open_rooms.items() if room not in free}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("captune", {"torch", "numpy", "transformers"}),
        ("captune.cli", {"torch", "numpy", "transformers", "rich", "matplotlib", "pydantic"}),
        ("captune.metrics", {"torch", "transformers", "matplotlib"}),
        ("captune.data", {"torch", "transformers"}),
        ("captune.config", {"torch", "transformers"}),
        ("captune.report", {"torch", "transformers", "matplotlib"}),
        ("captune.run_folders", {"torch", "transformers", "matplotlib"}),
        ("captune.toy", {"torch", "transformers"}),
    ],
)
def test_light_imports(module: str, absent: set[str]) -> None:
    program = f"import {module}, sys; print(*sorted({absent!r} & set(sys.modules)))"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == []


def test_public_names_exist(repository: Path) -> None:
    """Every name in an `__all__` is defined in its file or importable from its package."""
    for path in modules(repository):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        listed = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
        ]
        if path.name != "__init__.py":
            assert listed or path.name == "__main__.py", f"{path}: no __all__"
        for names in listed:
            assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)), path
            text = path.read_text(encoding="utf-8")
            for name in names:
                assert text.count(name) > 1, f"{path}: {name} is in __all__ only"
