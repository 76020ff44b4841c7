"""What all tests share: the folder of goldens beside the repository, or a reason to skip."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real captions and recorded outputs that lies beside a developer's checkout."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "captions").is_dir():
        pytest.skip("needs the folder '../shared' with recorded outputs, which is not beside this checkout")
    return folder
