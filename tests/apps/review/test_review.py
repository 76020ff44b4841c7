"""Reviewing without a browser: what is stored, what is refused, what can be taken back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from captune.apps.pages import LANGUAGES
from captune.apps.review import FileTexts, Review, SidecarTexts, review_application
from captune.apps.review.review import Replacement, StaleTextError
from captune.apps.review.server import MAX_BODY, PAGES
from captune.cli import app, call, run
from captune.data import CsvWriter, read_history
from captune.errors import DataError, InputError


def review_of(folder: Path) -> Review:
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png", ".webp"))
    return Review(SidecarTexts({path.relative_to(folder).as_posix(): str(path) for path in files}))


def save(review: Review, number: int, text: str, *, accept: bool = False) -> dict[str, Any]:
    return review.save(number, text, review.detail(number)["version"], accept=accept)


def counts(review: Review) -> tuple[int, ...]:
    by_filter = review.items("all", "")["counts"]
    return tuple(by_filter[name] for name in ("all", "open", "edited", "accepted", "empty"))


def test_accepting_editing_and_taking_back(photos: Path) -> None:
    review = review_of(photos)
    assert counts(review) == (4, 4, 0, 0, 1)
    assert save(review, 0, "sks, a red wall", accept=True)["status"] == "accepted"
    assert (photos / "a.txt").read_text() == "sks, a red wall\n"
    for text in ("sks, a", "sks, a dark", "sks, a dark wall\r\n"):  # as it is typed
        assert save(review, 1, text)["status"] == "edited"
    assert (photos / "b.txt").read_text() == "sks, a dark wall\n"
    assert save(review, 2, "new")["original"] is None  # d.jpg had no text
    assert counts(review) == (4, 1, 2, 1, 0)
    assert review_of(photos).items("accepted", "")["items"] == [(0, "a.jpg", "accepted")]  # a restarted server
    assert review.detail(1)["original"] == "sks, a green wall"
    assert review.undo() == {**review.detail(2), "text": "", "status": "open"}
    assert not (photos / "d.txt").exists()
    assert review.undo()["text"] == "sks, a green wall"  # type: ignore[index]
    assert review.undo()["status"] == "open"  # type: ignore[index]
    assert review.undo() is None
    assert counts(review) == (4, 4, 0, 0, 1)
    history = read_history(photos)["b.txt"]
    assert [change.after for change in history][-2:] == ["sks, a dark wall\n", "sks, a green wall\n"]


def test_a_save_that_changes_nothing_is_not_recorded(photos: Path) -> None:
    review = review_of(photos)
    assert save(review, 0, " sks, a red wall ")["status"] == "open"
    assert read_history(photos) == {}
    save(review, 0, "sks, a red wall", accept=True)
    save(review, 0, "sks, a red wall", accept=True)
    assert len(read_history(photos)["a.txt"]) == 1
    # An accepted text that is edited, here or elsewhere, is no longer accepted.
    save(review, 0, "other")
    assert review.detail(0)["status"] == "edited"
    save(review, 0, "other", accept=True)
    (photos / "a.txt").write_text("by an editor")
    assert review.detail(0)["status"] == "open"


def test_a_text_that_another_program_changed_is_not_replaced(photos: Path) -> None:
    review = review_of(photos)
    version = review.detail(0)["version"]
    (photos / "a.txt").write_text("by an editor\n")
    with pytest.raises(StaleTextError) as refused:
        review.save(0, "mine", version, accept=True)
    assert refused.value.detail["text"] == "by an editor"
    assert (photos / "a.txt").read_text() == "by an editor\n"
    review.save(0, "mine", refused.value.detail["version"], accept=False)
    assert (photos / "a.txt").read_text() == "mine\n"
    (photos / "a.txt").unlink()
    with pytest.raises(StaleTextError):
        review.undo()
    assert not (photos / "a.txt").exists()
    assert [change.before for change in read_history(photos)["a.txt"]] == ["by an editor\n"]


def test_bytes_that_are_not_utf8_are_kept(photos: Path) -> None:
    (photos / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9\r\n")
    review = review_of(photos)
    assert review.detail(0)["text"] == "caf\ufffd"
    save(review, 0, "caf\ufffd", accept=True)
    assert (photos / "a.txt").read_bytes() == b"\xef\xbb\xbfcaf\xe9\r\n"
    save(review, 0, "café")
    assert (photos / "a.txt").read_bytes() == "café\n".encode()
    review.undo()
    assert (photos / "a.txt").read_bytes() == b"\xef\xbb\xbfcaf\xe9\r\n"


def test_filters_and_search(photos: Path) -> None:
    review = review_of(photos)
    save(review, 0, "sks, Ä", accept=True)
    assert [name for _, name, _ in review.items("open", "SUB/")["items"]] == ["sub/c.webp"]
    assert [name for _, name, _ in review.items("all", "ä")["items"]] == ["a.jpg"]
    assert [name for _, name, _ in review.items("empty", "")["items"]] == ["d.jpg"]


def test_find_and_replace(photos: Path) -> None:
    review = review_of(photos)
    replacement = Replacement("SKS, a", r"ohwx \1,", match_case=False)
    preview = review.preview(replacement, "all", "wall")
    assert preview["count"] == 3
    assert preview["samples"][0] == {"name": "a.jpg", "before": "sks, a red wall", "after": r"ohwx \1, red wall"}
    assert (photos / "a.txt").read_text() == "sks, a red wall\n"
    with pytest.raises(InputError, match="3 captions match now, and the preview showed 2"):
        review.replace(replacement, "all", "wall", 2)
    assert review.replace(replacement, "all", "wall", 3) == 3
    assert (photos / "sub" / "c.txt").read_text() == "ohwx \\1, blue wall\n"
    assert counts(review) == (4, 1, 3, 0, 1)
    review.undo()
    assert (photos / "sub" / "c.txt").read_text() == "sks, a blue wall\n"
    assert counts(review) == (4, 4, 0, 0, 1)
    assert review.preview(Replacement("", "x"), "all", "")["count"] == 0


def rows_file(folder: Path) -> tuple[Path, list[str]]:
    lines = [
        '{"id": 1,  "image": "a.jpg", "caption": "one", "stopped": true}',
        '{"id": "x", "image": "b.png", "captions": ["two", "zwei"], "split": "train"}',
        '{"image": "sub/c.webp", "id": "三", "caption": "three"}',
    ]
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path, lines


def test_captions_of_a_file(photos: Path) -> None:
    path, lines = rows_file(photos)
    review = Review(FileTexts(path))
    assert [item[1] for item in review.items("all", "")["items"]] == ["1", "x (1)", "x (2)", "三"]
    assert review.image(3) == photos / "sub" / "c.webp"
    save(review, 2, "drei", accept=True)
    written = path.read_text(encoding="utf-8").split("\n")
    assert json.loads(written[1]) == {"id": "x", "image": "b.png", "captions": ["two", "drei"], "split": "train"}
    assert (written[0], written[2], written[3]) == (lines[0], lines[2], "")
    save(review, 0, "one", accept=True)
    assert Review(FileTexts(path)).items("accepted", "")["counts"]["accepted"] == 2
    version = review.detail(3)["version"]
    path.write_text(path.read_text(encoding="utf-8").replace("three", "drie"), encoding="utf-8")
    with pytest.raises(StaleTextError):
        review.save(3, "mine", version, accept=False)
    path.write_text(lines[0] + "\n")
    with pytest.raises(InputError, match="has other rows than before"):
        review.detail(0)


def test_captions_of_a_table(photos: Path) -> None:
    path = photos / "c.csv"
    texts = ["one, two", "=SUM(1)", "three\nlines", "four"]
    names = ["a.jpg", "b.png", "sub/c.webp", "d.jpg"]
    rows = [{"id": name, "image": name, "caption": text} for name, text in zip(names, texts, strict=True)]
    with open(path, "w", encoding="utf-8-sig", newline="") as stream:
        writer = CsvWriter(stream, lineterminator="\r\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(row.values())
    before = path.read_bytes()
    review = Review(FileTexts(path))
    assert [review.detail(number)["text"] for number in range(4)] == texts
    save(review, 0, "one, two", accept=True)
    assert path.read_bytes() == before
    save(review, 3, '@"five"')
    assert path.read_bytes() == before.replace(b"four", b'"\'@""five"""')
    save(review, 2, "six")
    assert path.read_bytes().count(b"\n") == 5
    assert [Review(FileTexts(path)).detail(n)["text"] for n in range(4)] == ["one, two", "=SUM(1)", "six", '@"five"']
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="row 2, cannot be read: the header needs columns such as id, image and"):
        FileTexts(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "row 1, cannot be read"),
        ('{"id": 1, "image": "a.jpg"}', "row 1, is no caption of an image"),
        ('{"id": 1, "caption": "a"}', 'has no path in "image"'),
        (
            '{"id": 1, "image": "a", "caption": "a"}\n\n{"id": "1", "image": "b", "caption": "b"}',
            "has the id '1' twice",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(DataError, match=sentence):
        FileTexts(tmp_path / "x.jsonl")


def client(folder: Path, **settings: Any) -> TestClient:
    application: Any = review_application(review_of(folder), "photos", **settings)
    return TestClient(application, base_url="http://localhost:8766", follow_redirects=False)


def test_requests(photos: Path) -> None:
    (photos / "e.jpg").write_bytes(b"no image")
    web = client(photos)
    detail = web.get("/items/0").json()
    saved = web.post("/items/0", json={"text": "new", "version": detail["version"], "accept": True})
    assert saved.json()["status"] == "accepted"
    stale = web.post("/items/0", json={"text": "newer", "version": detail["version"], "accept": True})
    assert stale.status_code == 409
    assert stale.json()["current"]["text"] == "new"
    assert "was changed by another program" in stale.json()["error"]
    assert (photos / "a.txt").read_text() == "new\n"
    for number, size in (("thumbnails/0", 64), ("images/0", 64)):
        assert Image.open(io.BytesIO(web.get(f"/{number}").content)).width == size
    assert "no image file" in web.get("/images/3").json()["error"]
    assert web.post("/undo", json={}).json()["undone"]["text"] == "sks, a red wall"
    wrong = [
        web.get("/items?filter=x"),
        web.get("/items/9"),
        web.get("/images/9"),
        web.get("/static/secret"),
        web.post("/items/0", json={"text": "x"}),
        web.post("/items/0", content=b"{", headers={"content-type": "application/json"}),
        web.post("/items/0", data={"text": "x"}),
        web.post("/replace", json={"find": "x"}),
        web.post("/items/0", content=b"x" * (MAX_BODY + 1)),
    ]
    assert [answer.status_code for answer in wrong] == [400, 404, 404, 404, 400, 400, 415, 400, 413]
    assert (photos / "a.txt").read_text() == "sks, a red wall\n"


def test_other_sites_are_refused(photos: Path) -> None:
    web = client(photos)
    body = {"text": "evil", "version": web.get("/items/0").json()["version"], "accept": True}
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert web.post("/items/0", json=body, headers=headers).status_code == 403
    assert web.get("/", headers={"host": "evil.example"}).status_code == 400  # DNS rebinding
    assert (photos / "a.txt").read_text() == "sks, a red wall\n"
    assert "default-src 'none'" in web.get("/").headers["content-security-policy"]


def test_other_machines_need_the_key(photos: Path) -> None:
    web = client(photos, hosts=None, key="s3cret")
    for path in ("/", "/items", "/items/0", "/images/0", "/?key=other", "/?key=%C3%A9"):
        assert web.get(path).status_code == 401
    opened = web.get("/?key=s3cret")
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    assert "samesite=strict" in opened.headers["set-cookie"].lower()
    assert web.get("/items").status_code == 200


def test_a_disk_that_cannot_be_written_is_one_sentence(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captune.apps.review import caption_texts

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "a.txt")

    monkeypatch.setattr(caption_texts, "apply_changes", full)
    web = client(photos)
    body = {"text": "new", "version": web.get("/items/0").json()["version"], "accept": True}
    answer = web.post("/items/0", json=body)
    assert answer.status_code == 500
    assert answer.json()["error"] == "Not saved: No space left on device (a.txt)."


def test_every_word_is_there_in_both_languages() -> None:
    english, chinese = (PAGES.words[language] for language in LANGUAGES)
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert text.count("{}") == chinese[key].count("{}"), key


def evaluated(folder: Path) -> Path:
    """A folder as an evaluation writes it, with a thumbnail."""
    (folder / "thumbnails").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "thumbnails" / "a.jpg")
    (folder / "thumbnails" / "images.json").write_text("{}")
    return folder


def test_what_is_no_captions_of_a_user_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = evaluated(tmp_path / "evaluation")
    a_run = evaluated(tmp_path / "run")
    (a_run / "config.yaml").write_text("# Resolved configuration of a run\n")
    (a_run / "scores.json").write_text("{}")
    table = tmp_path / "t.csv"
    table.write_text("File Name;Text\na.jpg;A dog runs\n", encoding="utf-8-sig")
    coco = tmp_path / "c.json"
    coco.write_text('{"annotations": [{"image_id": 1, "caption": "A dog."}]}')
    for source, sentence in (
        (a_run, f"'{a_run}' is a run, whose captions are results and not edited"),
        (page, f"'{page}' is an output of captune with small copies of the images"),
        (page / "thumbnails", f"'{page / 'thumbnails'}' is an output of captune"),
        (table, f"To review another table, make a manifest of it: captune init {table}\n"),
        (coco, f"'{coco}' is a table; make a manifest of it, and review that: captune prepare coco {coco}"),
        (tmp_path / "none", "does not exist; give a folder of images"),
    ):
        assert run(lambda source=source: call(app, ["review", str(source)])) == 2  # type: ignore[misc]
        assert sentence in capsys.readouterr().err


def test_captions_in_a_table_are_pointed_out(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("captune.apps.run_server", lambda *_: None)
    evaluated(photos / "runs" / "first")  # is not entered
    command = ["review", str(photos), "--port", "0"]
    assert run(lambda: call(app, command)) == 0
    printed = capsys.readouterr().err
    assert f"4 captions of {photos}" in printed
    assert "are not shown here" not in printed
    for text in photos.glob("**/*.txt"):
        text.unlink()
    (photos / "list.csv").write_text("image,caption\na.jpg,A dog runs\n")
    assert run(lambda: call(app, command)) == 0
    commands = f"captune init '{photos}', then captune review '{photos.name}.jsonl'\n"
    assert f"The captions in {photos / 'list.csv'} are not shown here. To review them in a manifest: {commands}" in (
        capsys.readouterr().err
    )
