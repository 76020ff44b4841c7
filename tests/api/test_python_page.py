"""docs/python.md: its code runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_the_code_of_the_page_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (repository / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert Path("runs/photos/report.html").is_file()
    assert Path("runs/both/scores.json").is_file()
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert (repository / "docs" / link).exists(), link
