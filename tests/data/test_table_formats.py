"""Tables and JSON as people have them: what each is read as, and what the summary reports."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captune.data.delimited import delimited_rows
from captune.data.ids import id_text
from captune.data.importers.table import Columns, table_rows
from captune.data.importing import Summary, prepare
from captune.data.manifest import Sample, read_manifest
from captune.data.rows import Row
from captune.data.tar_parquet import InlineImages
from captune.data.text_files import SourceFile
from captune.errors import DataError


def imported(
    folder: Path, name: str, content: str | bytes, columns: Columns | None = None, check: Any = "none", **options: Any
) -> tuple[list[Sample], Summary, list[str]]:
    """The samples of a table, the summary, and the notes."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    reading = SourceFile(path, options.pop("encoding", None))
    rows = table_rows(reading, columns or Columns(), **options)
    summary = prepare(rows, source=name, images=folder, out=folder / "m.jsonl", check=check)
    return read_manifest(folder / "m.jsonl"), summary, [*reading.notes, *summary.notes]


def captions(samples: list[Sample]) -> dict[str, list[str]]:
    return {sample.image: list(sample.captions) for sample in samples}


# Quotation marks


def test_marks_in_a_tsv_are_text(tmp_path: Path) -> None:
    texts = ['"stop', "a green ball", 'go"', 'she said " hello', '"no parking" sign', '"whole"']
    lines = ["image\tcaption", *(f"{n}.jpg\t{text}" for n, text in enumerate(texts))]
    samples, summary, notes = imported(tmp_path, "t.tsv", "\n".join(lines))
    assert [sample.captions for sample in samples] == [(text,) for text in texts]
    assert summary.problems.counts == {"quoted": 1}  # "whole" may be CSV quoting, so it is reported
    assert notes == []


def test_marks_of_a_tsv_that_quotes_as_csv(tmp_path: Path) -> None:
    text = '"image"\t"caption"\n"1.jpg"\t"a ""red"" dog"\n'
    samples, _, notes = imported(tmp_path, "t.tsv", text)
    assert captions(samples) == {"1.jpg": ['a "red" dog']}
    assert "quotation marks around cells are no text, as the header shows" in notes[0]
    text = 'image\tcaption\n1.jpg\t"a ""red"" dog"\n'
    assert captions(imported(tmp_path, "t.tsv", text, quoting="csv")[0]) == {"1.jpg": ['a "red" dog']}


def test_a_stray_mark_in_a_csv_costs_its_row_only(tmp_path: Path) -> None:
    rows = ['"stop', "a green ball", 'go"', 'a " b', '"no" sign', '"open', "x"]
    text = "image,caption\n" + "".join(f"{number}.jpg,{row}\n" for number, row in enumerate(rows, 1))
    samples, summary, _ = imported(tmp_path, "t.csv", text)
    assert captions(samples) == {"2.jpg": ["a green ball"], "3.jpg": ['go"'], "4.jpg": ['a " b'], "7.jpg": ["x"]}
    assert [problem.line for problem in summary.problems.first] == [2, 6, 7]
    assert all("--quoting none" in problem.message for problem in summary.problems.first if problem.line != 6)
    samples, summary, _ = imported(tmp_path, "t.csv", text, quoting="none")
    assert len(samples) == 7
    assert not summary.problems


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('a.jpg,"A dog,\nwith a hat, red"\nb.jpg,x\n', [["a.jpg", "A dog,\nwith a hat, red"], ["b.jpg", "x"]]),
        ('7,"A dog,\nhat, red"\n8,x\n', [["7", "A dog,\nhat, red"], ["8", "x"]]),
        ('a.jpg,"A dog ""x""\n\n"\n', [["a.jpg", 'A dog "x"\n\n']]),
    ],
)
def test_a_caption_may_have_lines(text: str, rows: list[list[str]]) -> None:
    assert [row for _, row in delimited_rows(text.split("\n"))] == rows


def test_a_mark_that_is_never_closed_is_given_up_after_some_hundred_lines() -> None:
    lines = ["image,caption", 'a.jpg,"x', *["y"] * 2000, "b.jpg,z"]
    rows = list(delimited_rows(lines))
    assert isinstance(rows[1][1], DataError)
    assert rows[-1] == (2003, ["b.jpg", "z"])
    assert len(rows) == 2003


# What divides columns, and encodings


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ('image;caption\n1.jpg;"a, ""b"""\n', "columns are divided by semicolons, as the header shows"),
        ('image|caption\n1.jpg|"a, ""b"""\n', "columns are divided by bars, as the header shows"),
        ('sep=;\r\nimage;caption\r\n1.jpg;"a, ""b"""\r\n', None),
    ],
)
def test_what_divides_columns_is_seen_and_noted(tmp_path: Path, text: str, note: str | None) -> None:
    samples, summary, notes = imported(tmp_path, "t.csv", text)
    assert captions(samples) == {"1.jpg": ['a, "b"']}
    assert notes == ([] if note is None else [note])
    assert not summary.problems


def test_columns_of_other_names_are_listed_whatever_divides_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the columns are: picture, text"):
        imported(tmp_path, "t.csv", "picture;text\n1.jpg;a\n")


def test_windows_1252_is_read_and_noted(tmp_path: Path) -> None:
    text = "image,caption\n1.jpg,plain\n2.jpg,un café “à gauche” — 5 €\n"
    samples, summary, notes = imported(tmp_path, "t.csv", text.encode("cp1252"))
    assert captions(samples)["2.jpg"] == ["un café “à gauche” — 5 €"]
    assert "the file is not UTF-8 (line 3, byte 0xe9 at column 13) and is read as Windows-1252" in notes[0]
    assert not summary.problems


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("gb18030", "一只狗在草地上"), ("shift_jis", "犬が走る"), ("cp1251", "собака бежит"), ("big5", "一隻狗")],
)
def test_other_encodings_are_not_taken_for_windows_1252(tmp_path: Path, encoding: str, text: str) -> None:
    table = f"image,caption\n1.jpg,{text}\n2.jpg,plain\n".encode(encoding)
    samples, summary, notes = imported(tmp_path, "t.csv", table)
    assert captions(samples) == {"2.jpg": ["plain"]}
    assert "--encoding names another encoding" in summary.problems.first[0].message
    assert notes == []
    assert captions(imported(tmp_path, "t.csv", table, encoding=encoding)[0])["1.jpg"] == [text]


def test_a_bad_byte_among_utf8_costs_its_row(tmp_path: Path) -> None:
    table = b"image,caption\n1.jpg,ok\n" + b"2.jpg,caf\xe9\n" + "3.jpg,été\n".encode()
    samples, summary, notes = imported(tmp_path, "t.csv", table)
    assert captions(samples) == {"1.jpg": ["ok"], "3.jpg": ["été"]}
    assert [(problem.line, problem.rows) for problem in summary.problems.first] == [(3, 1)]
    assert notes == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_excel_unicode_text(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("e") else ""
    text = mark + 'image\tcaption\r\n1.jpg\t"a dog, ""red"""\r\n2.jpg\tcafé 狗\r\n'
    samples, _, notes = imported(tmp_path, "t.txt", text.encode(encoding), quoting="csv")
    assert captions(samples) == {"1.jpg": ['a dog, "red"'], "2.jpg": ["café 狗"]}
    assert notes[0] == f"the file is {encoding[:6].upper()} text, by its byte order mark"


def test_no_such_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no encoding 'utf-9'"):
        imported(tmp_path, "t.csv", "image,caption\n", encoding="utf-9")


# JSON


ROWS = [{"image": "1.jpg", "caption": "A dog."}, {"image": "2.jpg", "caption": "A cat."}]
BOTH = {"1.jpg": ["A dog."], "2.jpg": ["A cat."]}


@pytest.mark.parametrize(
    "document",
    [
        ROWS,
        {"info": {"year": 2024}, "data": ROWS, "licenses": [{"id": 1}]},
        {"1.jpg": "A dog.", "2.jpg": ["A cat."]},
        {"image": {"0": "1.jpg", "1": "2.jpg"}, "caption": {"0": "A dog.", "1": "A cat."}},
        {"7": ROWS[0], "8": ROWS[1]},
        {"1.jpg": {"caption": "A dog."}, "2.jpg": {"caption": ["A cat."]}},
        {"train": ROWS[:1], "validation": ROWS[1:]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_layouts_of_json(tmp_path: Path, document: Any, indent: int | None) -> None:
    samples, summary, notes = imported(tmp_path, "t.json", json.dumps(document, indent=indent))
    assert captions(samples) == BOTH
    assert not summary.problems
    by_name = isinstance(document, dict) and "validation" in document
    assert [sample.split for sample in samples] == ["train", "val" if by_name else "train"]
    assert any("'licenses'" in note for note in notes) == ("licenses" in document)


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.ndjson"])
def test_json_lines_under_any_name(tmp_path: Path, name: str) -> None:
    text = "\n".join(json.dumps({**row, "score": float("nan")}) for row in ROWS)
    assert captions(imported(tmp_path, name, text)[0]) == BOTH
    assert captions(imported(tmp_path, name, json.dumps(ROWS[0]))[0]) == {"1.jpg": ["A dog."]}


def test_bad_entries_of_an_array_are_named(tmp_path: Path) -> None:
    text = json.dumps([*ROWS, {"image": "3.jpg"}, 7, {"image": 4, "caption": "x"}])
    text = text[:-1] + ', {"image": "5.jpg", "caption": "a", "caption": "b"}]'
    samples, summary, _ = imported(tmp_path, "t.json", text)
    assert captions(samples) == BOTH
    assert [problem.message for problem in summary.problems.first] == [
        "entry 3: 'caption' is missing.",
        "entry 4: a JSON object is expected.",
        "entry 5: 'image' must be the name of a file, not int.",
        "entry 6: the key 'caption' is given twice.",
    ]


def test_json_without_rows_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t.json' has no list of objects with 'image'; its lists are 'rows'\."):
        imported(tmp_path, "t.json", json.dumps({"rows": [{"file": "1.jpg"}], "n": 3}))


@pytest.mark.parametrize("numbers", [False, True])
def test_the_annotations_of_minigpt4(tmp_path: Path, numbers: bool) -> None:
    for name in ("2.jpg", "3.png", "4.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    ids: list[Any] = [2, 3, 4.0, 9] if numbers else ["2", "3", "4.jpg", "9"]
    text = json.dumps({"annotations": [{"image_id": image_id, "caption": "A dog."} for image_id in ids]})
    samples, summary, notes = imported(tmp_path, "filter_cap.json", text, check="exist")
    assert [sample.image for sample in samples] == ["2.jpg", "3.png", "4.jpg"]
    assert [problem.kind for problem in summary.problems.first] == ["missing"]
    assert any("as in MiniGPT-4's data" in note for note in notes)


@pytest.mark.parametrize(
    "cell",
    [
        '["A dog.", "It\'s red."]',
        """['A dog.', "It's red."]""",  # as pandas writes a list
        """['A dog.' "It's red."]""",  # and an array of numpy
        """['A dog.'\n "It's red."]""",
    ],
)
def test_a_list_of_captions_in_a_cell(tmp_path: Path, cell: str) -> None:
    quoted = cell.replace('"', '""')
    samples, summary, _ = imported(tmp_path, "t.csv", f'image,caption\n1.jpg,"{quoted}"\n2.jpg,[sic] dog\n3.jpg,[1]\n')
    assert captions(samples) == {"1.jpg": ["A dog.", "It's red."], "2.jpg": ["[sic] dog"], "3.jpg": ["[1]"]}
    assert not summary.problems


# Conversations

QUESTION, ANSWER = "<image>\nDescribe it.", "A dog."
TURNS = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
MORE = [{"from": "human", "value": "Colour?"}, {"from": "gpt", "value": "Red."}]
MESSAGES = [
    {"role": "system", "content": "You help."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe it."}]},
    {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
]


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "7", "image": "1.jpg", "conversations": TURNS},
        {"images": ["1.jpg"], "conversations": TURNS},
        {"images": ["1.jpg"], "messages": MESSAGES},
        {
            "images": ["1.jpg"],
            "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}],
        },
        {"images": ["1.jpg"], "query": QUESTION, "response": ANSWER},
        {"images": ["1.jpg"], "instruction": QUESTION, "input": "", "output": ANSWER},
        {"images": [{"path": "1.jpg"}], "messages": MESSAGES},
    ],
)
@pytest.mark.parametrize("lines", [True, False])
def test_a_conversation_is_a_caption(tmp_path: Path, entry: dict[str, Any], lines: bool) -> None:
    text = json.dumps(entry) if lines else json.dumps([entry], indent=1)
    samples, summary, notes = imported(tmp_path, "t.jsonl" if lines else "t.json", text)
    assert captions(samples) == {"1.jpg": [ANSWER]}
    assert not summary.problems
    assert "'Describe it.' 1 times" in notes[0]


def test_further_turns_are_counted_or_read(tmp_path: Path) -> None:
    text = json.dumps([{"image": "1.jpg", "conversations": TURNS + MORE}])
    samples, summary, _ = imported(tmp_path, "t.json", text)
    assert captions(samples) == {"1.jpg": [ANSWER]}
    (problem,) = summary.problems.first
    assert (problem.kind, problem.message) == ("unused", "entry 1: 1 further answer of the conversation left out.")
    samples, summary, _ = imported(tmp_path, "t.json", text, turns="all")
    assert captions(samples) == {"1.jpg": [ANSWER, "Red."]}
    assert not summary.problems


def test_conversations_that_are_no_captions_are_named(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"image": "1.jpg", "conversations": TURNS},
        {"conversations": TURNS},
        {"images": ["1.jpg", "2.jpg"], "conversations": TURNS},
        {"image": "3.jpg", "conversations": TURNS[:1]},
        {"image": "3.jpg", "conversations": ["x"]},
        {"image": "3.jpg", "messages": [{"role": "user", "content": 7}]},
    ]
    samples, summary, _ = imported(tmp_path, "t.json", json.dumps(entries))
    assert captions(samples) == {"1.jpg": [ANSWER]}
    assert [problem.message.partition(": ")[2] for problem in summary.problems.first] == [
        "the conversation has no image.",
        "the conversation has 2 images, and one is expected.",
        "the conversation has no answer.",
        "turn 1 is no object.",
        "turn 1 must have a role ('from' or 'role') and text ('value' or 'content').",
    ]
    with pytest.raises(DataError, match=r"no image of 't\.json' can be used"):
        imported(tmp_path, "t.json", json.dumps(entries[1:]))


# Ids and names


def test_ids_are_text_or_whole_numbers() -> None:
    assert [id_text(value, "id") for value in ("a", "007", 5, 391895.0, 2**70)] == [
        "a",
        "007",
        "5",
        "391895",
        str(2**70),
    ]
    for value in (1.5, float("nan"), float("inf"), True, None, [1]):
        with pytest.raises(TypeError, match="'id' must be text or a whole number, not"):
            id_text(value, "id")
    with pytest.raises(TypeError, match="can have lost digits"):
        id_text(2.0**60, "id")


def test_ids_that_pandas_made_floats(tmp_path: Path) -> None:
    lines = [json.dumps({**row, "n": n}) for row, n in zip([*ROWS, ROWS[0]], (391895.0, 1.5, 391895), strict=True)]
    samples, summary, _ = imported(tmp_path, "t.jsonl", "\n".join(lines), Columns(id="n"))
    assert [(sample.id, len(sample.captions)) for sample in samples] == [("391895", 2)]
    assert summary.problems.first[0].message == "'n' must be text or a whole number, not 1.5."
    text = "image,caption,n\n1.jpg,a,391895.0\n2.jpg,b,\n3.jpg,c,v1.0\n"
    samples, summary, notes = imported(tmp_path, "t.csv", text, Columns(id="n"))
    assert [sample.id for sample in samples] == ["391895", "v1.0"]
    assert [problem.message for problem in summary.problems.first] == ["the id of '2.jpg' is empty."]
    assert notes == ["ids that pandas wrote as '391895.0' are read as '391895'"]


def test_an_image_with_two_ids_is_a_problem(tmp_path: Path) -> None:
    text = "image,caption,n\n1.jpg,a,5\n1.jpg,b,6\n2.jpg,c,7\n1.jpg,d,5\n"
    samples, summary, _ = imported(tmp_path, "t.csv", text, Columns(id="n"))
    assert [(sample.id, sample.captions) for sample in samples] == [("5", ("a", "d")), ("7", ("c",))]
    (problem,) = summary.problems.first
    assert (problem.line, problem.message) == (3, "'1.jpg' has the id '6' here, and '5' on line 2.")


@pytest.mark.parametrize(
    ("name", "file", "note"),
    [
        ("sub\\x.png", "sub/x.png", "image names are paths of Windows"),
        ("C:\\data\\sub\\x.png", "sub/x.png", "image names are paths of Windows"),
        ("d:/data/x.png", "x.png", "image names are paths of Windows"),
        ("\\\\server\\share\\x.png", "x.png", "image names are paths of Windows"),
        (unicodedata.normalize("NFC", "café.png"), unicodedata.normalize("NFD", "café.png"), "another Unicode form"),
        (unicodedata.normalize("NFD", "ñ/é.png"), unicodedata.normalize("NFC", "ñ/é.png"), "another Unicode form"),
        ("photos/x.png", "x.png", "image names begin with the name of the image folder"),
    ],
)
def test_names_that_are_spelt_otherwise_than_files(tmp_path: Path, name: str, file: str, note: str) -> None:
    images = tmp_path / "photos"
    (images / file).parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / file)
    row = Row(1, name, ("A dog.",), "train")
    out = tmp_path / "m.jsonl"
    summary = prepare([row], source="t.csv", images=images, out=out)
    assert [sample.image for sample in read_manifest(out)] == [f"photos/{file}"]
    (sentence,) = summary.notes
    assert note in sentence


@pytest.mark.parametrize("name", ["..\\x.png", "C:\\..\\..\\x.png", "C:..\\x.png", "/etc/passwd", "\\\\a\\..\\x.png"])
@pytest.mark.parametrize("check", ["none", "exist"])
def test_paths_of_windows_do_not_lead_out_of_the_folder(tmp_path: Path, name: str, check: Any) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    row = Row(1, name, ("A dog.",), "train")
    with pytest.raises(DataError, match="leads out of the image folder"):
        prepare([row], source="t.csv", images=tmp_path / "photos", out=tmp_path / "m.jsonl", check=check)


def test_float_ids_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    from pyarrow import parquet

    table = pyarrow.table({"image": ["1.jpg", "2.jpg"], "caption": ["a", "b"], "n": [391895.0, float("nan")]})
    parquet.write_table(table, tmp_path / "t.parquet")
    rows = list(table_rows(SourceFile(tmp_path / "t.parquet"), Columns(id="n"), inline_images=InlineImages(tmp_path)))
    assert rows[1] == Row(1, "1.jpg", ("a",), "train", "391895")
    assert "must be text or a whole number, not nan" in str(rows[0])
