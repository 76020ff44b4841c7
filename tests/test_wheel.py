"""The installed package alone: from a folder of photos to a shared model, by the commands that captune suggests."""

from __future__ import annotations

import csv
import os
import re
import shlex
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from programs import Finished, run_program

import captune

COLORS = {"red": (200, 40, 30), "green": (40, 160, 60), "blue": (50, 70, 200), "yellow": (220, 200, 40)}
ENDINGS = ("jpg", "heic", "png", "jpeg")
ROTATED = 6
"""EXIF orientation of a phone that was held upright."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The content of the wheel, as pip installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run_program(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=repository)
    assert built.code == 0, built.err
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def draw_photos(folder: Path) -> None:
    """40 photos as JPEG, also rotated, HEIC and PNG, and a table of captions as a German Excel writes it."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    rows = []
    for number in range(40):
        color = list(COLORS)[number % 4]
        shape = ("square", "circle")[number // 4 % 2]
        noise = draws.integers(90, 255, (96, 128, 3), np.uint8)
        image = Image.fromarray(noise)
        x, y = (int(value) for value in draws.integers(5, 60, 2))
        box = (x, y, x + 40, y + 30)
        pencil = ImageDraw.Draw(image)
        (pencil.rectangle if shape == "square" else pencil.ellipse)(box, fill=COLORS[color])
        name = f"IMG_{number:04d}.{ENDINGS[number // 3 % 4]}"
        exif = Image.Exif()
        exif[0x112] = ROTATED if number % 2 else 1
        image.save(folder / name, **({"exif": exif} if name.endswith(("jpg", "jpeg")) else {}))
        rows.append((name, f"A {color} {shape}."))
        rows += [(name, f"There is a {shape}, which is {color}.")] if number % 5 == 0 else []
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, delimiter=";").writerows([("File Name", "Text"), *rows])


class Terminal:
    """A person who runs the suggested commands, with the installed package only."""

    def __init__(self, installed: Path, folder: Path) -> None:
        self.installed, self.folder = installed, folder
        self.commands: list[str] = []

    def run(self, command: str) -> Finished:
        """Run a line such as `captune train photos.yaml`."""
        program, *words = shlex.split(command)
        assert program == "captune"
        self.commands.append(command)
        done = run_program(
            sys.executable, "-m", "captune", *words, cwd=self.folder, PYTHONPATH=os.fspath(self.installed)
        )
        assert done.code == 0, f"{command}: {done.err}"
        assert "Traceback" not in done.err
        return done

    @staticmethod
    def suggested(done: Finished) -> str:
        """The command of the line that begins with Next."""
        match = re.search(r"^Next.*?: (captune .*)$", done.err, re.MULTILINE)
        assert match is not None, done.err
        return match[1]


def test_from_photos_to_a_shared_model_by_suggested_commands(installed: Path, tmp_path: Path) -> None:
    draw_photos(tmp_path / "photos")
    person = Terminal(installed, tmp_path)
    started = person.run("captune init photos --yes")
    assert "rotated by EXIF and will be read upright" in started.err
    trained = person.run(person.suggested(started))
    reported = person.run(person.suggested(trained))
    page = tmp_path / "runs" / "photos" / "report.html"
    assert str(page.relative_to(tmp_path)) in reported.err
    assert "Tuning helped" in page.read_text(encoding="utf-8")
    pushed = person.run(person.suggested(reported))
    caption = person.suggested(pushed)

    # The suggested command, from another folder.
    shared = shlex.split(caption)[2]
    assert caption == f"captune caption {shared} photo.jpg"
    person.folder = tmp_path / "elsewhere"
    person.folder.mkdir()
    named = person.run(f"captune caption ../{shared} ../photos/IMG_0000.jpg")
    assert re.search("red|green|blue|yellow|square|circle", named.out)
    person.run(f"captune caption ../{shared} ../photos --out captions.jsonl")
    assert [command.split()[1] for command in person.commands] == [
        *("init", "train", "report", "push", "caption", "caption")
    ]


def test_the_wheel_has_everything_that_commands_read(installed: Path) -> None:
    package = installed / "captune"
    for name in ("toy/pretrained/model.safetensors", "toy/pretrained_vlm/model.safetensors", "py.typed"):
        assert (package / name).is_file(), name
    done = run_program(
        sys.executable, "-c", "import captune; print(captune.__file__)", PYTHONPATH=os.fspath(installed), cwd=installed
    )
    assert Path(done.out.strip()).is_relative_to(installed)
    # Of the archive: running the package writes bytecode next to it.
    (wheel,) = installed.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".pyc", ".ipynb"))]


def test_the_page_of_the_package_index_has_no_relative_link(installed: Path, repository: Path) -> None:
    markdown = pytest.importorskip("readme_renderer.markdown")
    (file,) = installed.glob("captune-*.dist-info/METADATA")
    metadata = Parser().parsestr(file.read_text(encoding="utf-8"))
    page = markdown.render(metadata.get_payload())
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert len(links) > 20
    assert not [link for link in links if not link.startswith(("https://", "#"))]
    assert not re.findall(r"\]\(.*|\[[\w./]+\.md\]", page)  # a link without its target
    # Files and folders of this repository exist.
    targets = [link.partition("/main/")[2] for link in links if "/captune/captune/" in link]
    assert not [name for name in targets if not (repository / name).exists()]


def test_the_release_has_one_version_everywhere(installed: Path, repository: Path) -> None:
    (file,) = installed.glob("captune-*.dist-info/METADATA")
    metadata = Parser().parsestr(file.read_text(encoding="utf-8"))
    version = metadata["Version"]
    assert version == captune.__version__
    matrix = re.findall(r"python: \[(.*)\]", (repository / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    tested = {version for versions in matrix for version in re.findall(r"[\d.]+", versions)}
    classified = [name.rpartition(" ")[2] for name in metadata.get_all("Classifier", [])]
    assert {name for name in classified if re.fullmatch(r"3\.\d+", name)} == tested
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", changes, re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    assert titles[1] == f"[{version}] - {citation['date-released']}"
    assert citation["version"] == version
    # Every title of a version is a link, as keepachangelog.com describes.
    assert set(re.findall(r"^\[(.+)\]: https://", changes, re.MULTILINE)) == {
        title.partition("]")[0].removeprefix("[") for title in titles
    }


def test_the_source_distribution_has_tests_and_documents(repository: Path, tmp_path: Path) -> None:
    built = run_program(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=repository)
    assert built.code == 0, built.err
    (archive,) = tmp_path.glob("captune-*.tar.gz")
    with tarfile.open(archive) as stream:
        members = {name.partition("/")[2]: size for name, size in ((m.name, m.size) for m in stream.getmembers())}
    for name in ("CHANGELOG.md", "docs/index.md", "mkdocs.yml", "tests/conftest.py", "train_configs/toy.yaml"):
        assert name in members
    assert not [name for name in members if name.startswith((".git/", ".venv", "runs/", "site/")) or name == ".git"]
    assert sorted(name for name, size in members.items() if size > 2**20) == [
        "captune/toy/pretrained/model.safetensors",
        "captune/toy/pretrained_vlm/model.safetensors",
    ]
