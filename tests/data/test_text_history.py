"""Texts next to images are replaced atomically, and their history contains what was replaced."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from captune.data import TextChange, apply_changes, history_path, read_history, read_text_file, text_path
from captune.data import text_history as module
from captune.errors import ChangedTextError, DataError


def test_each_replaced_text_is_in_the_history(tmp_path: Path) -> None:
    path = text_path(tmp_path / "a.jpg")
    texts = [None, "caf\udce9", "two\r\n", "two\r\n", "三"]  # one is Latin-1
    for before, after in pairwise(texts):
        apply_changes(tmp_path, [TextChange(path.name, before, after, by="review", status="edited")])
        assert read_text_file(path) == after
    assert [change.before for change in read_history(tmp_path)["a.txt"]] == texts[:-1]
    apply_changes(tmp_path, [TextChange(path.name, "三", None, by="review")])
    assert not path.exists()
    assert all(change.time.endswith("+00:00") for change in read_history(tmp_path)["a.txt"])


def test_a_text_that_changed_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("mine")
    changes = [TextChange("a.txt", None, "new", by="review"), TextChange("b.txt", "other", "new", by="review")]
    with pytest.raises(ChangedTextError, match=r"b\.txt' was changed by another program"):
        apply_changes(tmp_path, changes)
    assert read_history(tmp_path) == {}
    assert [path.name for path in tmp_path.glob("*.txt")] == ["b.txt"]
    (tmp_path / "c.txt").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_text_file(tmp_path / "c.txt")


def test_an_incomplete_line_is_ignored_and_ended(tmp_path: Path) -> None:
    apply_changes(tmp_path, [TextChange("a.txt", None, "one", by="review")])
    with open(history_path(tmp_path), "ab") as stream:
        stream.write(b'{"file": "a.txt", "bef')
    apply_changes(tmp_path, [TextChange("a.txt", "one", "two", by="review")])
    assert [change.after for change in read_history(tmp_path)["a.txt"]] == ["one", "two"]


def test_a_kill_between_history_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "atomic_file", killed)
        with pytest.raises(KeyboardInterrupt):
            apply_changes(tmp_path, [TextChange("a.txt", "old", "new", by="review")])
    assert (tmp_path / "a.txt").read_text() == "old"
    assert read_history(tmp_path)["a.txt"][-1].before == "old"
