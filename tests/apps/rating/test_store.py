"""Answers on disk: once each, whatever is killed, clicked twice or done at the same time."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from simulated_raters import MakeStudy, opinion

from captune.apps.rating.create import add_raters, create_study
from captune.apps.rating.store import DATABASE, Store
from captune.apps.rating.study_design import StudyOptions
from captune.apps.rating.study_items import StudyItems
from captune.errors import InputError


def test_an_answer_is_kept_once(make_study: MakeStudy) -> None:
    store = make_study()
    assert store.save_answer(0, 0, "first", 1.0)
    assert not store.save_answer(0, 0, "second", 1.0), "a second click changes nothing"
    assert not store.save_answer(0, 5, "first", 1.0), "no rater skips a screen"
    assert store.save_answer(0, 1, "tie", None)
    assert [(a.rater, a.position, a.value) for a in store.answers()] == [(0, 0, "first"), (0, 1, "tie")]


def test_undo_takes_back_the_last_answer_once(make_study: MakeStudy) -> None:
    store = make_study()
    for position in range(3):
        store.save_answer(1, position, "first", 1.0)
    assert store.undo(1, 2)
    assert not store.undo(1, 2), "a second click on undo does not undo twice"
    assert not store.undo(1, 0)
    assert not store.undo(0, 0)
    assert store.answered(1) == 2
    assert store.save_answer(1, 2, "second", 1.0)
    events = sqlite3.connect(store.folder / DATABASE).execute("SELECT event, value FROM history").fetchall()
    assert events[-2:] == [("undone", "first"), ("given", "second")]


def test_links_are_secret_and_checked_completely(make_study: MakeStudy) -> None:
    store, other = make_study(), make_study()
    token = store.token(1)
    assert store.rater_of(token) == 1
    assert other.rater_of(token) is None, "a link belongs to one study"
    for wrong in ("", "1", "1-", token[:-1], token + "a", "2" + token[1:], "01" + token[1:], "²" + token[1:], "9" * 99):
        assert store.rater_of(wrong) in (None, *([1] if wrong == "01" + token[1:] else []))
    assert store.is_results_key(store.results_key)
    for wrong in ("", store.results_key[:-1], token, "\udc80", "é"):
        assert not store.is_results_key(wrong)
    assert len({store.results_key, *(store.token(rater) for rater in range(3))}) == 4


def test_only_the_owner_may_read_the_file(make_study: MakeStudy) -> None:
    store = make_study()
    assert store.folder.stat().st_mode & 0o077 == 0
    assert (store.folder / DATABASE).stat().st_mode & 0o077 == 0


def test_simultaneous_answers_of_many_threads(make_study: MakeStudy) -> None:
    store = make_study(raters=8, judgements=3)

    def rate(rater: int) -> int:
        chance = random.Random(rater)
        kept = 0
        for position in range(len(store.trials(rater))):
            value = opinion(store, rater, position, chance)
            # Everybody clicks twice.
            kept += store.save_answer(rater, position, value, 1.0) + store.save_answer(rater, position, value, 1.0)
        return kept

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(rate, range(8)))
    assert kept == [len(store.trials(rater)) for rater in range(8)]
    assert len(store.answers()) == sum(kept)


KILLED = """
import os, sys
from pathlib import Path
from captune.apps.rating.store import Store
store = Store(Path(sys.argv[1]))
for position in range(100):
    assert store.save_answer(0, position, "first", 1.0)
    print(position, flush=True)
    if position == 7:
        # A transaction is open when the process dies.
        store._writer.execute("BEGIN IMMEDIATE")
        store._writer.execute("INSERT INTO answer VALUES (0, 8, 'second', 1.0, 0.0)")
        os.kill(os.getpid(), 9)
"""


def test_a_killed_process_loses_no_answer_that_it_confirmed(make_study: MakeStudy) -> None:
    store = make_study(images=10)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9
    confirmed = [int(line) for line in done.stdout.split()]
    assert confirmed == list(range(8))
    assert [answer.position for answer in store.answers()] == confirmed
    assert store.save_answer(0, 8, "tie", None)


def test_more_raters_later(make_study: MakeStudy) -> None:
    store = make_study(names=("Ada", "Grace"))
    before = [store.trials(rater.number) for rater in store.raters()]
    add_raters(store, 5, ("Katherine",))
    assert [rater.name for rater in store.raters()] == ["Ada", "Grace", "rater 3", "Katherine", "rater 5"]
    assert [store.trials(number) for number in range(3)] == before
    assert store.trials(3) != before[0]
    assert abs(len(store.trials(3)) - len(before[0])) <= 2
    with pytest.raises(InputError, match="another name"):
        add_raters(store, 6, ("Ada",))
    with pytest.raises(InputError, match="5 raters already"):
        add_raters(store, 4)
    with pytest.raises(InputError, match="1 to 100 characters"):
        add_raters(store, 6, (" ",))
    assert len(store.raters()) == 5


def test_a_study_is_never_written_over(make_study: MakeStudy, items: StudyItems) -> None:
    folder = make_study().folder
    with pytest.raises(InputError, match="exists already"):
        create_study(folder, items, StudyOptions(images=2))


def test_a_study_that_fails_leaves_nothing(items: StudyItems, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another name"):
        create_study(tmp_path / "study", items, StudyOptions(images=2), ("Ada", "Ada"))
    assert os.listdir(tmp_path) == []


def test_folders_that_are_no_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no study"):
        Store(tmp_path)
    (tmp_path / DATABASE).write_bytes(b"something else entirely " * 100)
    with pytest.raises(InputError, match="no study of captune"):
        Store(tmp_path)
