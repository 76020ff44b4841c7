"""What all tests share: the folder of goldens next to the repository, or a reason to skip."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save the measured coverage: pytest-xdist kills a worker that takes more than 10 seconds to exit."""
    is_worker = hasattr(session.config, "workerinput")
    if is_worker and "coverage" in sys.modules and (measurement := sys.modules["coverage"].Coverage.current()):
        measurement.save()


@pytest.fixture(scope="session", autouse=True)
def separate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is remembered of image files out of the user's own cache, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts() -> None:
    """Restore Ctrl-C: a shell ignores it in background jobs, and the tested programs would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium: one for all tests of a process, since Playwright cannot run twice at the same time."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := which(name))), None)
    if chromium is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real captions and recorded outputs next to a developer's checkout."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "captions").is_dir():
        pytest.skip("needs the folder '../shared' with recorded outputs, which is not next to this checkout")
    return folder


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes in the layout of Flickr30k with their manifest: 24 to train on, 4 to validate, 12 to test."""
    from captune.data.importers.flickr import flickr30k_rows
    from captune.data.importing import prepare
    from captune.data.text_files import SourceFile
    from captune.toy import write_flickr30k

    folder = tmp_path_factory.mktemp("toy") / "flickr30k"
    written = write_flickr30k(folder, train=24, val=4, test=12, seed=7)
    reading = SourceFile(written.annotations)
    prepare(
        flickr30k_rows(reading),
        source=str(written.annotations),
        images=written.images,
        out=folder / "manifest.jsonl",
    )
    reading.close()
    return folder


@pytest.fixture
def toy_checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of the toy model."""
    from captune.hub import locate_model
    from captune.model import MiniGPT4, save_trained
    from captune.run_checkpoints import CheckpointRecord

    model = MiniGPT4.from_pretrained(locate_model("toy"))
    state = {name: tensor + 0.1 for name, tensor in model.trained_state().items()}
    record = CheckpointRecord("toy", model.frozen_fingerprint(), "Describe.", "v0", "###", "hash", 0, 1, 42, "0.1")
    (tmp_path / "checkpoint").mkdir()
    save_trained(tmp_path / "checkpoint", state, record)
    return tmp_path / "checkpoint"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a family to a folder with a tiny model of it, saved on first use."""
    folders: dict[str, Path] = {}

    def save(name: str) -> Path:
        from vision_families import save_family

        if name not in folders:
            folders[name] = save_family(name, tmp_path_factory.mktemp("family"))
        return folders[name]

    return save
