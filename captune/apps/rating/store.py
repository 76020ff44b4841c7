"""A study in one SQLite file: what was drawn, who rates, and every answer.

The file is in WAL mode with `synchronous=FULL`: a page is sent when the answer before it is on the disk, so neither a
killed server nor a power cut loses one. An answer's key is its rater and position, so none is there twice; what was
undone stays in `history`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captune.apps.rating.design import Caption, Design, StudyOptions
from captune.apps.rating.tables import SCHEMA, Answer, Rater
from captune.apps.rating.trials import Trial
from captune.errors import InputError

__all__ = ["DATABASE", "Store"]

DATABASE = "study.sqlite"

FORMAT = 1


class Store:
    """An open study; safe to use from several threads, and by several processes at once.

    Args:
        folder: of the study.

    Raises:
        InputError: there is no study, or one that another captune made.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / DATABASE
        if not file.is_file():
            raise InputError(f"{folder} holds no study; give the folder of one, or a run to make one of.")
        self.folder = folder
        # Two connections: who reads does not wait for the disk.
        self._writes, self._reads = threading.Lock(), threading.Lock()
        try:
            self._writer, self._reader = (
                sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=30) for _ in range(2)
            )
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.execute("PRAGMA foreign_keys = ON")
            version = self.setting("format")
            self._secret = bytes.fromhex(self.setting("secret"))
        except (sqlite3.DatabaseError, KeyError) as error:
            raise InputError(f"{file} is no study of captune ({error}); give another folder.") from None
        if version != FORMAT:
            raise InputError(f"{file} has format {version}, but this captune reads format {FORMAT}.")

    @classmethod
    def create(cls, folder: Path, design: Design, settings: Mapping[str, Any]) -> None:
        """Write a new study's file; raters are added by `add_raters`.

        Args:
            folder: that will hold it; only its owner can read the file.
            design: what was drawn.
            settings: further facts, as JSON values.
        """
        file = folder / DATABASE
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = sqlite3.connect(file)
        try:
            connection.executescript(SCHEMA)
            facts = {
                **settings,
                "format": FORMAT,
                "secret": secrets.token_hex(32),
                "options": asdict(design.options),
            }
            connection.executemany(
                "INSERT INTO study VALUES (?, ?)", [(key, json.dumps(value)) for key, value in facts.items()]
            )
            connection.executemany(
                "INSERT INTO image VALUES (?, ?, ?)",
                [
                    (place, image, stratum)
                    for place, (image, stratum) in enumerate(zip(design.images, design.strata, strict=True))
                ],
            )
            connection.executemany(
                "INSERT INTO caption VALUES (?, ?, ?, ?)",
                [
                    (place, caption.image, caption.text, json.dumps(caption.systems))
                    for place, caption in enumerate(design.captions)
                ],
            )
            connection.commit()
        finally:
            connection.close()

    def close(self) -> None:
        """Close the file; the last one to do so folds the log of writes into it."""
        self._reader.close()
        self._writer.close()

    def setting(self, key: str) -> Any:
        """A fact of the study.

        Raises:
            KeyError: there is none of that name.
        """
        rows = self._rows("SELECT value FROM study WHERE key = ?", key)
        if not rows:
            raise KeyError(key)
        return json.loads(rows[0][0])

    @property
    def options(self) -> StudyOptions:
        """What the study was drawn with."""
        return StudyOptions(**self.setting("options"))

    def images(self) -> list[tuple[str, int]]:
        """Id and stratum of every image, in the study's order."""
        return [
            (str(name), int(stratum)) for name, stratum in self._rows("SELECT id, stratum FROM image ORDER BY place")
        ]

    def captions(self) -> list[Caption]:
        """Every caption, in the study's order."""
        rows = self._rows("SELECT image, text, systems FROM caption ORDER BY place")
        return [Caption(image, text, tuple(json.loads(systems))) for image, text, systems in rows]

    def raters(self) -> list[Rater]:
        """Everybody with a link."""
        return [Rater(number, name) for number, name in self._rows("SELECT number, name FROM rater ORDER BY number")]

    def add_raters(self, raters: Sequence[tuple[Rater, Sequence[Trial]]]) -> None:
        """Add people with all of their screens.

        Raises:
            InputError: a number or name is taken.
        """
        try:
            with self._writing() as connection:
                for rater, trials in raters:
                    connection.execute("INSERT INTO rater VALUES (?, ?)", (rater.number, rater.name))
                    connection.executemany(
                        "INSERT INTO trial VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        [
                            (
                                rater.number,
                                position,
                                trial.part,
                                trial.kind,
                                trial.image,
                                json.dumps(trial.captions),
                                trial.expected,
                                trial.repeats,
                            )
                            for position, trial in enumerate(trials)
                        ],
                    )
        except sqlite3.IntegrityError:
            raise InputError("A rater's name is taken already; give every rater a name of their own.") from None

    def trials(self, rater: int) -> list[Trial]:
        """Every screen of a rater."""
        rows = self._rows(
            "SELECT part, kind, image, captions, expected, repeats FROM trial WHERE rater = ? ORDER BY position", rater
        )
        return [
            Trial(part, kind, image, tuple(json.loads(captions)), expected, repeats)
            for part, kind, image, captions, expected, repeats in rows
        ]

    def answered(self, rater: int) -> int:
        """How many screens a rater has answered; the next one has this position."""
        return int(self._rows("SELECT COUNT(*) FROM answer WHERE rater = ?", rater)[0][0])

    def state(self) -> tuple[int, int]:
        """Changes with every answer that is given or undone, and with every new rater."""
        counts = self._rows("SELECT (SELECT COUNT(*) FROM history), (SELECT COUNT(*) FROM rater)")
        return tuple(counts[0])

    def answers(self) -> list[Answer]:
        """Every answer that stands, by rater and position."""
        rows = self._rows("SELECT rater, position, value, seconds, time FROM answer ORDER BY rater, position")
        return [Answer(*row) for row in rows]

    def give(self, rater: int, position: int, value: str, seconds: float | None) -> bool:
        """Keep an answer; when this returns it is on the disk.

        Returns:
            Whether it was the next one. An answer that was given already (a second click, a page that was reloaded)
            changes nothing.
        """
        with self._writing() as connection:
            done = connection.execute("SELECT COUNT(*) FROM answer WHERE rater = ?", (rater,)).fetchone()[0]
            if done != position:
                return False
            now = time.time()
            connection.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?)", (rater, position, value, seconds, now))
            self._log(connection, rater, position, "given", value, now)
        return True

    def undo(self, rater: int, position: int) -> bool:
        """Take back an answer.

        Returns:
            Whether it was the last one; any other stays (a second click on undo must not undo twice).
        """
        with self._writing() as connection:
            done = connection.execute("SELECT COUNT(*) FROM answer WHERE rater = ?", (rater,)).fetchone()[0]
            if done == 0 or done - 1 != position:
                return False
            key = (rater, position)
            value = connection.execute("SELECT value FROM answer WHERE rater = ? AND position = ?", key).fetchone()[0]
            connection.execute("DELETE FROM answer WHERE rater = ? AND position = ?", key)
            self._log(connection, rater, position, "undone", value, time.time())
        return True

    def token(self, rater: int) -> str:
        """The secret part of a rater's link."""
        return f"{rater}-{self._mac(f'rater {rater}')}"

    def rater_of(self, token: str) -> int | None:
        """Whose link it is; None for nobody's."""
        match = re.fullmatch(r"(\d{1,6})-([A-Za-z0-9_-]{22})", token)
        if match is None or not hmac.compare_digest(match[2], self._mac(f"rater {int(match[1])}")):
            return None
        number = int(match[1])
        return number if self._rows("SELECT 1 FROM rater WHERE number = ?", number) else None

    @property
    def results_key(self) -> str:
        """The secret of the results pages."""
        return self._mac("results")

    def is_results_key(self, key: str) -> bool:
        """Whether a key opens the results; takes as long for a wrong one as for the right one."""
        return hmac.compare_digest(key.encode("utf-8", "replace"), self.results_key.encode())

    def _mac(self, purpose: str) -> str:
        """A secret for one purpose: 132 bits of an HMAC under the study's own secret."""
        digest = hmac.new(self._secret, purpose.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode()[:22]

    @staticmethod
    def _log(connection: sqlite3.Connection, rater: int, position: int, event: str, value: str, now: float) -> None:
        connection.execute(
            "INSERT INTO history (rater, position, event, value, time) VALUES (?, ?, ?, ?, ?)",
            (rater, position, event, value, now),
        )

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._reads:
            return self._reader.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when the block is left, or never was."""
        with self._writes:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")
