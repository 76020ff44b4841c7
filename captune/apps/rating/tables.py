"""The tables of a study's file, and the records that come out of them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SCHEMA", "Answer", "Rater"]

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
    """What a rater said on one screen.

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
