"""Tables of unknown layout: which columns, delimiter and encoding are guessed."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from captune.data import SourceFile
from captune.data.importers import Columns, guess_table, table_rows
from captune.errors import DataError

ROWS = [(f"IMG_{number}.JPG", "2026-05-01", f"Ein grüner Kreis auf „Grau“, Nummer {number}") for number in range(5)]


def write_table(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str, encoding: str
) -> Path:
    with path.open("w", newline="", encoding=encoding) as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerows([header, *rows])
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "header",
    [
        ("File Name", "Date", "Text"),
        ("image_path", "date", "Caption 1"),
        ("Datei", "Datum", "Bildunterschrift"),
        ("Fichier", "Date", "Légende"),
        ("A", "B", "C"),
    ],
)
def test_columns_delimiter_and_encoding(
    tmp_path: Path, encoding: str, delimiter: str, header: tuple[str, str, str]
) -> None:
    path = write_table(tmp_path / "t.csv", header, ROWS, delimiter, encoding)
    guess = guess_table(path)
    assert guess.columns == Columns(header[0], (header[2],))
    assert guess.is_certain is (header[0] != "A")
    assert guess.image_names == [row[0] for row in ROWS]
    assert [tuple(row) for row in guess.rows] == ROWS
    # The importer understands the table as it was shown.
    rows = list(table_rows(SourceFile(path), guess.columns))
    assert [(row.image, row.captions) for row in rows] == [(image, (text,)) for image, _, text in ROWS]  # type: ignore[union-attr]


def test_several_captions_and_splits(tmp_path: Path) -> None:
    rows = [(f"{n}.png", "train" if n else "test", f"a dog {n}", f"it runs {n}") for n in range(4)]
    path = write_table(tmp_path / "t.csv", ("picture", "Set", "caption_1", "caption_2"), rows, ",", "utf-8")
    assert guess_table(path).columns == Columns("picture", ("caption_1", "caption_2"), "Set")


def test_two_columns_of_text_are_not_certain(tmp_path: Path) -> None:
    rows = [(f"{n}.png", f"a dog runs {n}", f"two cats sleep {n}") for n in range(4)]
    path = write_table(tmp_path / "t.csv", ("file", "first", "second"), rows, ",", "utf-8")
    guess = guess_table(path)
    assert guess.columns is not None
    assert not guess.is_certain


def test_known_columns_are_taken(tmp_path: Path) -> None:
    rows = [(f"{n}.png", f"a dog runs {n}", f"two cats sleep {n}") for n in range(4)]
    path = write_table(tmp_path / "t.csv", ("file", "first", "second"), rows, ",", "utf-8")
    assert guess_table(path, captions=["second"]).columns == Columns("file", ("second",))


def test_a_table_without_images_has_no_columns(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "t.csv", ("name", "note"), [("Ann", "likes dogs"), ("Bob", "has a cat")], ",", "utf-8"
    )
    assert guess_table(path).columns is None


def test_a_first_line_that_is_a_row(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", ROWS[0], ROWS[1:], ",", "utf-8")
    assert not guess_table(path).has_header


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "A dog."}]}, "coco"),
        ({"annotations": [{"image_id": 1, "caption": "A dog."}], "images": []}, "coco"),
        ({"images": [{"filename": "a.jpg", "sentences": [{"raw": "A dog."}]}]}, "karpathy"),
        ({"a.jpg": "A dog.", "b.jpg": "A cat."}, "mapping"),
        ([{"image": "a.jpg", "conversations": [{"from": "gpt", "value": "A dog."}]}], "conversations"),
        ({"info": ["x"], "rows": [{"file_name": "a.jpg", "text": "A dog runs."}]}, "table"),
        ([{"file_name": "a.jpg", "text": ["A dog runs.", "It runs."]}], "table"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "text": "A dog runs."}]}, "table"),
    ],
)
def test_json_layouts(tmp_path: Path, content: object, kind: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps(content))
    guess = guess_table(tmp_path / "t.json")
    assert guess.kind == kind
    if kind == "table":
        assert guess.columns == Columns("file_name", ("text",))


def test_a_manifest_and_json_lines(tmp_path: Path) -> None:
    row = {"id": "a", "image": "a.jpg", "captions": ["A dog."], "split": "train"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    assert guess_table(tmp_path / "m.jsonl").kind == "manifest"
    (tmp_path / "h.jsonl").write_text('{"file_name": "a.jpg", "text": "A dog runs."}\n')
    assert guess_table(tmp_path / "h.jsonl").columns == Columns("file_name", ("text",))


def test_images_in_a_parquet_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'data'")
    table = pyarrow.table({"picture": [{"bytes": b"x", "path": "a.jpg"}], "text": ["A dog runs."]})
    parquet.write_table(table, tmp_path / "t.parquet")
    guess = guess_table(tmp_path / "t.parquet")
    assert guess.columns == Columns("picture", ("text",))
    assert guess.inline_images


def test_a_spreadsheet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"is a spreadsheet, which is not read; save it as CSV"):
        guess_table(tmp_path / "t.xlsx")
