"""Write the report of a folder in a separate process, next to a training that continues.

A thread of the training's process starts `python -m captune.report.background` and waits for it, which takes none of
the training's time: charts and page are made by the other process, at a lower priority, and without torch. Every
file is complete under its name at any time, so that a training that is killed leaves a valid folder.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from captune.common import first_line
from captune.report.thumbnails import write_thumbnails
from captune.report.write import write_report

__all__ = ["BackgroundReport"]

logger = logging.getLogger(__name__)

_SECONDS = 1800
"""Time after which a process that writes a report is killed."""


class BackgroundReport:
    """Writes thumbnails, table, charts and page of a folder with `scores.json`, one process at a time.

    Args:
        folder: with `scores.json`.
        images: image id -> its file, for thumbnails.
        exif_rotation: turn thumbnails upright as their EXIF data say.

    Attributes:
        seconds: processor time of the processes so far.
    """

    def __init__(self, folder: str | Path, images: Mapping[str, str | Path], *, exif_rotation: bool = True) -> None:
        self.seconds = 0.0
        self._order = {
            "folder": os.path.abspath(folder),
            "images": {image: os.path.abspath(file) for image, file in images.items()},
            "exif_rotation": exif_rotation,
        }
        self._lock = Lock()
        self._thread: Thread | None = None
        self._is_due = False
        self._error = ""

    def update(self) -> None:
        """Write the report of the scores as they are now; returns at once.

        While a process is writing, the next one begins when it has ended, with the scores of that moment.
        """
        with self._lock:
            self._is_due = True
            if self._thread is None:
                self._thread = Thread(target=self._work, name="captune report", daemon=True)
                self._thread.start()

    def finish(self) -> str:
        """Wait until the report of the last scores is written.

        Returns:
            Why it could not be written; empty if it is.
        """
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
        return self._error

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._is_due:
                    self._thread = None
                    return
                self._is_due = False
            self._error = self._run()

    def _run(self) -> str:
        """Why a process failed; empty if it did not."""
        package, paths = Path(__file__).parents[2], list(filter(None, [os.environ.get("PYTHONPATH")]))
        if package.name not in ("site-packages", "dist-packages"):
            # A working copy. Installed packages are found anyway, and would hide modules of the standard library here.
            paths.insert(0, str(package))
        try:
            # -P: the working directory may have files called like modules.
            done = subprocess.run(
                [sys.executable, "-P", "-m", __name__],
                input=json.dumps(self._order),
                env=os.environ | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return first_line(error)
        try:
            answer = json.loads(done.stdout.splitlines()[-1])
            self.seconds += answer["seconds"]
            return str(answer["error"])
        except (ValueError, LookupError, TypeError):
            printed = done.stderr.strip().splitlines()
            return f"the process that writes the report ended with {done.returncode}: {''.join(printed[-1:])}"


def _write(order: Mapping[str, Any]) -> str:
    """Write thumbnails and report; why it failed, empty if it did not."""
    try:
        write_thumbnails(order["folder"], order["images"], exif_rotation=order["exif_rotation"])
        write_report(order["folder"])
    except Exception as error:  # the training's process logs it
        logger.debug("The report failed.", exc_info=True)
        return first_line(error)
    return ""


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(10)
    failure = _write(json.load(sys.stdin))
    print(json.dumps({"error": failure, "seconds": sum(os.times()[:2])}))
