"""Tables of unknown layout: which columns, delimiter and encoding are guessed."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from captune.cli.guessed_columns import describe_guess
from captune.data import SourceFile
from captune.data.importers import Columns, guess_table, table_rows
from captune.data.importers.delimited_layout import guess_encoding
from captune.data.text_files import raw_lines
from captune.data.windows_text import western_language
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


CAPTIONS = {
    "zh": [
        "一只棕色的狗在草地上奔跑",
        "两个孩子在沙滩上玩耍",
        "一位老人坐在公园的长椅上看报纸",
        "厨房的桌子上放着一盘水果",
    ],
    "zh-tw": [
        "一隻棕色的狗在草地上奔跑",
        "兩個孩子在沙灘上玩耍",
        "一位老人坐在公園的長椅上看報紙",
        "女孩抱著一隻白色的小貓",
    ],
    "ja": [
        "茶色の犬が草原を走っている",
        "二人の子供が砂浜で遊んでいます",
        "赤いバスが道端に停まっている",
        "女の子が白い猫を抱いている",
    ],
    "ko": [
        "갈색 개가 잔디밭을 달리고 있다",
        "두 아이가 해변에서 놀고 있다",
        "빨간 버스가 길가에 서 있다",
        "소녀가 흰 고양이를 안고 있다",
    ],
    "ru": ["Коричневая собака бежит по траве", "Двое детей играют на пляже", "Красный автобус стоит у дороги"],
    "pl": ["Brązowy pies biegnie po trawie", "Dwoje dzieci bawi się na plaży", "Dziewczynka trzyma białego kota"],
    "el": ["Ένας καφέ σκύλος τρέχει στο γρασίδι", "Δύο παιδιά παίζουν στην παραλία", "Ένα κόκκινο λεωφορείο"],
    "de": ["Ein brauner Hund läuft über die Wiese", "Ein Bus hält am „Straßenrand“", "Ein älterer Mann"],
}


def captions_table(language: str) -> str:
    rows = [f"IMG_{number}.jpg,{text}\r\n" for number, text in enumerate(CAPTIONS[language])]
    return "".join(["image,caption\r\n", *rows])


@pytest.mark.parametrize(
    ("language", "encoding", "guessed"),
    [
        ("zh", "gb18030", "gb18030"),
        ("zh", "gb2312", "gb18030"),
        ("zh-tw", "big5", "big5"),
        ("ja", "shift_jis", "cp932"),
        ("ja", "euc_jp", "euc_jp"),
        ("ko", "euc_kr", "cp949"),
        ("ru", "cp1251", "cp1251"),
        ("ru", "koi8_r", "koi8_r"),
        ("pl", "cp1250", "cp1250"),
        ("el", "cp1253", "cp1253"),
        *[(language, encoding, encoding) for language in CAPTIONS for encoding in ("utf-16-le", "utf-16-be")],
        # Recognized without a guess: by the bytes, or by the byte order mark.
        *[(language, encoding, None) for language in CAPTIONS for encoding in ("utf-8", "utf-8-sig", "utf-16")],
        ("de", "cp1252", None),
    ],
)
def test_encodings_are_guessed(tmp_path: Path, language: str, encoding: str, guessed: str | None) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(captions_table(language).encode(encoding))
    assert guess_encoding(path) == guessed
    guess = guess_table(path)
    assert guess.encoding == guessed
    assert [row[1] for row in guess.rows] == CAPTIONS[language]
    if guessed is not None:
        assert guess.notes[0].startswith(f"the text seems to be {guessed} (")
    rows = table_rows(SourceFile(path, guess.encoding), Columns())
    assert [row.captions for row in rows] == [(text,) for text in CAPTIONS[language]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [
        captions_table("zh").encode("gb18030") + captions_table("ja").encode(),
        captions_table("ru").encode("cp1251") + captions_table("zh").encode(),
        captions_table("zh").encode("gb18030") + captions_table("ru").encode("cp1251"),
        captions_table("ja").encode("cp932") + captions_table("ru").encode("koi8_r"),
        captions_table("zh").encode() + b"x.jpg,\xd2\xbb\n",
        captions_table("ru").encode().decode("latin-1").encode(),
        random.Random(0).randbytes(5000),
        b"image,caption\na.jpg," + bytes(byte | 128 for byte in random.Random(1).randbytes(2000)),
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256)) * 10,
    ],
    ids=["zh+ja", "ru+zh", "zh+ru", "ja+ru", "one broken line", "encoded twice", "random", "random text", "jpeg"],
)
def test_text_that_is_not_of_one_encoding_is_not_guessed(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    assert guess_encoding(tmp_path / "t.csv") is None


WINDOWS_CAPTIONS = {
    "English": ["A café in the sun and a dog", "“Stop” is on the sign — in red", "A plain one"],
    "French": [
        "Un chien noir court dans l’herbe",
        "Un homme est assis près de l’église",
        "L’été des élèves à l’école",
    ],
    "Spanish": ["Un niño pequeño juega en la montaña", "¿Qué hace el perro?", "Dos señoras con un café"],
    "Portuguese": ["Um cão preto corre na 1ª praia", "As crianças não estão no chão", "Uma maçã e um limão"],
    "Italian": ["Un cane è in città", "Il caffè è sulla tavola", "La ragazza è più alta di lui"],
    "Dutch": ["Een café met een blauwe deur", "Twee financiële mensen op een stoel"],
    "Swedish": ["En svart hund är på ängen", "Två barn som äter glass i en båt"],
    "Danish or Norwegian": ["En sort hund løber på en mark", "Et barn med et rødt æble i en båd"],
    "Finnish": ["Koira juoksee pellolla ja mies istuu", "Kaksi lasta leikkii ja äiti hymyilee"],
}
OTHER_CAPTIONS = [
    ("cp1254", ["Siyah köpek çimde koşuyor", "İki çocuk ışıkta oynuyor", "Yeşil ağaç ve bir kadın"]),
    ("iso8859-9", ["Kırmızı bir otobüs yolda", "Kız beyaz bir kediyi tutuyor"]),
    ("cp1250", ["Egy fekete kutya fut a zöld fűben", "Két gyerek játszik a tengerparton, nő őket"]),
    ("cp1250", ["Un câine negru aleargă pe iarbă", "Doi copii se joacă pe plajă în fața mării".replace("ț", "ţ")]),
    ("cp1250", ["O femeie ş un om de la ş"]),  # few letters, and words of Portuguese
    ("cp1257", ["Juodas šuo bėga per žolę", "Du vaikai žaidžia paplūdimyje"]),
    ("cp1258", ["Con chó đang chạy trên bãi cỏ".translate({0x1EA1: "a", 0xE3: "a", 0x1ECF: "o"})]),
    ("cp850", ["Ein schwarzer Hund läuft über die Wiese", "Ein Mädchen mit einem älteren Mann"]),
]


def table_of(texts: list[str], encoding: str) -> bytes:
    return "".join(["image,caption\n", *(f"IMG_{n}.jpg,{text}\n" for n, text in enumerate(texts))]).encode(encoding)


@pytest.mark.parametrize("language", WINDOWS_CAPTIONS)
def test_languages_of_windows_1252_are_not_guessed(tmp_path: Path, language: str) -> None:
    (tmp_path / "t.csv").write_bytes(table_of(WINDOWS_CAPTIONS[language], "cp1252"))
    assert western_language(raw_lines(SourceFile(tmp_path / "t.csv"))) == language
    guess = guess_table(tmp_path / "t.csv")
    assert guess.encoding is None
    assert [row[1] for row in guess.rows] == WINDOWS_CAPTIONS[language]


@pytest.mark.parametrize(("encoding", "texts"), OTHER_CAPTIONS)
def test_other_languages_are_never_read_as_windows_1252_without_a_confirmation(
    tmp_path: Path, encoding: str, texts: list[str]
) -> None:
    (tmp_path / "t.csv").write_bytes(table_of(texts, encoding))
    assert western_language(raw_lines(SourceFile(tmp_path / "t.csv"))) is None
    guess = guess_table(tmp_path / "t.csv")
    assert guess.encoding is not None
    if guess.encoding == "cp1252":
        assert "cp1254 is Turkish, cp1250 Hungarian or Romanian" in guess.notes[0]


def test_the_rows_of_a_guess_show_its_letters(tmp_path: Path) -> None:
    """The first row beyond ASCII is among the rows, however late it comes."""
    texts = ["A dog"] * 900 + ["犬が走る", "猫がいる", "A cat"]
    (tmp_path / "t.csv").write_bytes(table_of(texts, "cp932"))
    guess = guess_table(tmp_path / "t.csv")
    assert guess.encoding is not None
    assert guess.columns is not None
    (shown,) = [line for line in describe_guess(guess, guess.columns) if "IMG_" in line]
    assert "IMG_900.jpg" in shown
    assert not shown.isascii()


def test_short_captions_that_are_utf8_by_chance(tmp_path: Path) -> None:
    rows = [*CAPTIONS["zh"], "联通"]
    (tmp_path / "t.csv").write_bytes("".join(f"a.jpg,{text}\n" for text in rows).encode("gb18030"))
    assert guess_encoding(tmp_path / "t.csv") == "gb18030"


def test_the_encoding_of_a_packed_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(captions_table("ja").encode("cp932")))
    assert guess_table(tmp_path / "t.csv.gz").encoding == "cp932"


@pytest.mark.parametrize("text", ["b", "b.", "-", ".jpg", "bc.jpg;"])
def test_a_long_text_without_spaces_takes_linear_time(text: str) -> None:
    """A quadratic search would take an hour for these."""
    line = ("é " + text * (1_000_000 // len(text))).encode("cp1252")
    assert western_language([line]) is None
