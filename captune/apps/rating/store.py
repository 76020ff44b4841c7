"""A study in one SQLite file: its design, its raters and all answers.

The file is in WAL mode with `synchronous=FULL`: a page is sent after the previous answer is on the disk, so neither a
killed server nor a power cut loses one. The key of an answer is its rater and position, so none is stored twice; undone
answers stay in `history`.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captune.apps.rating.study_design import Caption, Design, StudyOptions, Trial
from captune.errors import InputError

__all__ = ["DATABASE", "SCHEMA", "Answer", "Rater", "Store"]

SCHEMA = """
CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE image (place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, stratum INTEGER NOT NULL) STRICT;
CREATE TABLE caption (place INTEGER PRIMARY KEY, image INTEGER NOT NULL REFERENCES image, text TEXT NOT NULL,
                      systems TEXT NOT NULL) STRICT;
CREATE TABLE rater (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE trial (rater INTEGER NOT NULL REFERENCES rater, position INTEGER NOT NULL, part TEXT NOT NULL,
                    kind TEXT NOT NULL, image INTEGER NOT NULL REFERENCES image, captions TEXT NOT NULL,
                    expected INTEGER, repeats INTEGER, PRIMARY KEY (rater, position)) STRICT, WITHOUT ROWID;
CREATE TABLE answer (rater INTEGER NOT NULL, position INTEGER NOT NULL, value TEXT NOT NULL, seconds REAL,
                     time REAL NOT NULL, PRIMARY KEY (rater, position),
                     FOREIGN KEY (rater, position) REFERENCES trial) STRICT, WITHOUT ROWID;
CREATE TABLE history (serial INTEGER PRIMARY KEY, rater INTEGER NOT NULL, position INTEGER NOT NULL,
                      event TEXT NOT NULL, value TEXT NOT NULL, time REAL NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Rater:
    """A person with a link.

    Attributes:
        number: from 0.
        name: that the study's owner knows them by; raters never see it.
    """

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A rater's answer to one screen.

    Attributes:
        rater: number.
        position: of the screen.
        value: "first", "second" or "tie" as shown, or four digits from 1 to 5 in the order of `CRITERIA`.
        seconds: from the page's showing to the answer; None where the server was started anew in between.
        time: seconds since 1970.
    """

    rater: int
    position: int
    value: str
    seconds: float | None
    time: float


DATABASE = "study.sqlite"

FORMAT = 1


class Store:
    """An open study; safe to use from several threads, and by several processes at once.

    Args:
        folder: of the study.

    Raises:
        InputError: there is no study, or one of another format.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / DATABASE
        if not file.is_file():
            raise InputError(f"{folder} holds no study; give the folder of one, or a run to make one of.")
        self.folder = folder
        # Two connections: readers do not wait for the disk.
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
            folder: of the file, which only its owner can read.
            design: the drawn one.
            settings: further values as JSON.
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
                    (number, image, stratum)
                    for number, (image, stratum) in enumerate(zip(design.images, design.strata, strict=True))
                ],
            )
            connection.executemany(
                "INSERT INTO caption VALUES (?, ?, ?, ?)",
                [
                    (number, caption.image, caption.text, json.dumps(caption.systems))
                    for number, caption in enumerate(design.captions)
                ],
            )
            connection.commit()
        finally:
            connection.close()

    def close(self) -> None:
        """Close the file; the last process to do so merges the write-ahead log."""
        self._reader.close()
        self._writer.close()

    def setting(self, key: str) -> Any:
        """A stored setting of the study.

        Raises:
            KeyError: the name is unknown.
        """
        rows = self._rows("SELECT value FROM study WHERE key = ?", key)
        if not rows:
            raise KeyError(key)
        return json.loads(rows[0][0])

    @property
    def options(self) -> StudyOptions:
        """Options of the study."""
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
        """All raters."""
        return [Rater(number, name) for number, name in self._rows("SELECT number, name FROM rater ORDER BY number")]

    def add_raters(self, raters: Sequence[tuple[Rater, Sequence[Trial]]]) -> None:
        """Add raters with all of their screens.

        Raises:
            InputError: a number or name is used.
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
            raise InputError("A rater's name is taken already; give every rater another name.") from None

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
        """Number of screens that a rater has answered, which is the position of the next one."""
        return int(self._rows("SELECT COUNT(*) FROM answer WHERE rater = ?", rater)[0][0])

    def state(self) -> tuple[int, int]:
        """A value that changes with every answer, undo and new rater."""
        counts = self._rows("SELECT (SELECT COUNT(*) FROM history), (SELECT COUNT(*) FROM rater)")
        return tuple(counts[0])

    def answers(self) -> list[Answer]:
        """All answers that were not undone, by rater and position."""
        rows = self._rows("SELECT rater, position, value, seconds, time FROM answer ORDER BY rater, position")
        return [Answer(*row) for row in rows]

    def save_answer(self, rater: int, position: int, value: str, seconds: float | None) -> bool:
        """Store an answer on the disk.

        Returns:
            Whether it was the next one. A repeated answer (a second click, a reloaded page) changes nothing.
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
        """Remove an answer.

        Returns:
            Whether it was the last one; any other stays (a second click must not undo two).
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
        """The rater of a link; None for an unknown link."""
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
        """Whether a key opens the results, in constant time."""
        return hmac.compare_digest(key.encode("utf-8", "replace"), self.results_key.encode())

    def _mac(self, purpose: str) -> str:
        """A secret for one purpose: 132 bits of an HMAC under the study's secret."""
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
        """A transaction that is committed to the disk after the block, or rolled back on an error."""
        with self._writes:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")
