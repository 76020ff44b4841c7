"""The notebooks: each runs from top to bottom in under a minute, and its outputs hold no warning and no error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="needs nbclient")
nbformat = pytest.importorskip("nbformat", reason="needs nbformat")

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PROGRAM = """
import sys, nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""
NOTEBOOKS = ["score", "tune_hub_model", "tune_own_photos"]


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def test_every_notebook_is_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_without_outputs(name: str) -> None:
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_without_warnings(name: str, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name.lower()) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")}
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path), **folders}
    variables["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    # In another process, which has its kernel's event loop to itself.
    subprocess.run(
        [sys.executable, "-c", PROGRAM, FOLDER / f"{name}.ipynb", tmp_path / "executed.ipynb"],
        cwd=tmp_path,
        env={**os.environ, **variables},
        check=True,
        timeout=300,
    )
    notebook = nbformat.read(tmp_path / "executed.ipynb", 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = ["".join(output.get("data", {}).get("text/plain", output.get("text", ""))) for output in outputs]
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result"}, texts
    pages = [output.data.get("text/html", "") for output in outputs]
    for text in (*texts, *pages):
        assert "Warning" not in text
        assert "Traceback" not in text
    assert any("<table" in page for page in pages)
    if name.startswith("tune"):
        assert any("data:image/jpeg" in page for page in pages), "images with captions"
        assert any("data:image/png" in page and "<table" in page for page in pages), "table with chart"
        assert any("epoch2" in page and "CIDEr" in page for page in pages), "progress"
        assert not any("<progress" in page for page in pages), "a bar that remains"
