"""The documentation site: the pages that mkdocs builds, and those that are generated from the code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from captune.cli import app

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

from tools.documentation import PACKAGES, api_page, command_page

TERMS = ("prefill", "KV cache", "overfitting", "early stopping", "gradient accumulation", "out of memory", "QLoRA")


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=repository,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_site_loads_nothing_from_other_servers(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(https?:[^\" >]+)", text)
        loaded += re.findall(
            r"<link[^>]* rel=\"?(?:stylesheet|preconnect|preload)\"?[^>]* href=\"?(https?:[^\" >]+)", text
        )
        assert not loaded, page


def test_the_search_finds_the_terms_of_the_field(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    text = "\n".join(f"{entry['title']} {entry['text']}" for entry in index["docs"]).lower()
    assert [term for term in TERMS if term.lower() not in text] == []
    assert "train.early_stop" in text
    assert "--tokenize" in text


def test_links_are_named_by_titles_and_not_by_files(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.findall(r">([\w-]+\.md)</a>", page.read_text(encoding="utf-8")), page


def test_the_chinese_page_has_its_language(site: Path) -> None:
    page = (site / "zh" / "index.html").read_text(encoding="utf-8")
    assert page.count('<html lang="zh"') == 1
    assert '<html lang="en"' in (site / "index.html").read_text(encoding="utf-8")


def test_the_command_page_has_every_command_and_option() -> None:
    page = command_page()
    program: object = typer.main.get_command(app)
    names = re.findall(r"^## captune (.*)$", page, flags=re.MULTILINE)
    assert len(names) == len(set(names))
    groups = {name.split()[0] for name in names}
    assert groups == {name for name, command in program.commands.items() if not command.hidden}  # type: ignore[attr-defined]
    assert "`--document-frequencies" in page
    assert "prepare flickr30k" in page


@pytest.mark.parametrize("name", PACKAGES)
def test_the_api_page_has_every_public_name(name: str) -> None:
    module = __import__(name, fromlist=["__all__"])
    page = api_page(name)
    for public in module.__all__:
        if not public.startswith("__"):
            assert re.search(rf"\b{public}\b", page), public


def test_the_navigation_has_every_package(repository: Path) -> None:
    navigation = (repository / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r"api/([\w.]+)\.md", navigation) == list(PACKAGES)
