"""What may be written: no input and no unrelated file is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from captune.data.outputs import check_output, check_output_folder, is_own_output, output_file
from captune.errors import InputError


def write(path: Path, text: str, command: str = "score") -> None:
    check_output(path, command=command)
    with output_file(path, command=command) as stream:
        stream.write(text)


def spelled(tmp_path: Path, source: Path) -> list[Path]:
    """The same file under other names."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "symbolic").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "folder").symlink_to(tmp_path)
    return [
        source,
        tmp_path / "sub" / ".." / source.name,
        tmp_path / "symbolic",
        tmp_path / "hard",
        tmp_path / "folder" / source.name,
        Path(os.path.relpath(source)),
    ]


def test_an_input_is_not_an_output_under_any_name(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("captions of people")
    for out in spelled(tmp_path, source):
        with pytest.raises(InputError, match="is read here; give --out another name"):
            check_output(out, command="score", reads=[source], overwrite=True)


def test_an_output_is_not_an_output_of_a_command_that_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "a", "text")
    with pytest.raises(InputError, match="is read here"):
        check_output(tmp_path / "a", command="score", reads=[tmp_path / "a"])


def test_a_command_replaces_its_output(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    for text in ("first", "second", "second", "third"):
        write(out, text)
    assert out.read_text() == "third"


def with_hand(path: Path) -> None:
    path.write_text(path.read_text() + "corrected by hand")


def with_other_command(path: Path) -> None:
    path.unlink()
    write(path, "manifest", "prepare")


def without_record(path: Path) -> None:
    for record in (path.parent / ".captune").iterdir():
        record.unlink()


def with_damaged_record(path: Path) -> None:
    for record in (path.parent / ".captune").iterdir():
        record.write_text("{")


def moved_in_its_place(path: Path) -> None:
    (path.parent / "else").write_text("of somebody else")
    (path.parent / "else").replace(path)


@pytest.mark.parametrize(
    "change", [with_hand, with_other_command, without_record, with_damaged_record, moved_in_its_place]
)
def test_what_the_command_did_not_write_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    out = tmp_path / "out.txt"
    write(out, "first")
    change(out)
    before = out.read_bytes()
    with pytest.raises(InputError, match="captune score did not write it") as refused:
        write(out, "second")
    assert "--overwrite" not in str(refused.value)
    with pytest.raises(InputError, match="pass --overwrite"):
        check_output(out, command="score", overwrite=False)
    check_output(out, command="score", overwrite=True)
    assert out.read_bytes() == before


def test_a_picture_is_never_replaced(tmp_path: Path) -> None:
    picture = tmp_path / "photo.JPG"
    picture.write_bytes(b"pixels")
    with pytest.raises(InputError, match=r"photo\.JPG' has the name of a picture.*give --problems another name"):
        check_output(picture, command="prepare", overwrite=True, option="--problems")


def test_streams_empty_files_and_new_files_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "empty", tmp_path / "pipe", tmp_path / "new", Path("/dev/null"), Path("/dev/stdout")):
        check_output(path, command="score", reads=[tmp_path])


def test_a_kill_between_record_and_rename_leaves_the_old_file_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.txt"
    write(out, "first")
    with monkeypatch.context() as patched:
        patched.setattr("captune.data.atomic.shutil.copymode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(out, "second")
    assert out.read_text() == "first"
    assert is_own_output(out, "score")
    write(out, "third")
    assert out.read_text() == "third"


def test_an_output_that_cannot_be_written_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        write(tmp_path / ("x" * 300), "text")
    assert list(tmp_path.iterdir()) == []


def test_any_file_name_has_a_record(tmp_path: Path) -> None:
    for name in ("x" * 240, os.fsdecode(b"caf\xe9"), "a\nb"):
        write(tmp_path / name, "first")
        write(tmp_path / name, "second")


def test_a_folder_of_output_is_and_contains_no_input(tmp_path: Path) -> None:
    inside = tmp_path / "model" / "weights"
    inside.mkdir(parents=True)
    for folder in (tmp_path / "model", tmp_path, inside / ".." / "weights"):
        with pytest.raises(InputError, match="is read here"):
            check_output_folder(folder, reads=[tmp_path / "nowhere", inside])
    check_output_folder(tmp_path / "other", reads=[inside])
    check_output_folder(inside, reads=[tmp_path / "model"])
