"""The page in a real browser on a real server: drop an image, compare checkpoints, talk on, make mistakes."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captune.captioner import Captioner
from captune.report import CheckpointScores, RunScores, write_page, write_scores, write_thumbnails

DROP = """
([data, name, type]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    document.getElementById("drop").dispatchEvent(
        new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Any]:
    """The opened page; an error of its script fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if "127.0.0.1" not in request.url else None)
    page.goto(server[1])
    yield page
    context.close()
    assert [error for error in errors if not error.startswith("data:")] == []


def _drop(page: Any, data: bytes, name: str = "photo.png", kind: str = "image/png") -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), name, kind])


def _next_event(page: Any, model: str, count: int = 1) -> str:
    """The last answer of a checkpoint, when there are so many and none is on its way."""
    answers = page.locator(f"[data-model='{model}'] .answer")
    answers.nth(count - 1).wait_for()
    page.locator(f"[data-model='{model}'] .answer:not(.waiting)").nth(count - 1).wait_for()
    return str(answers.nth(count - 1).inner_text())


def test_a_dropped_image_is_captioned_by_both_checkpoints(
    page: Any, served_run: Path, picture_files: list[Path]
) -> None:
    _drop(page, picture_files[0].read_bytes())
    assert _next_event(page, "pretrained") == Captioner.from_pretrained("toy")(picture_files[0])
    bent = Captioner.from_pretrained(served_run / "checkpoints" / "epoch-001")
    assert _next_event(page, "epoch1") == bent(picture_files[0])
    assert page.locator(".column").count() == 2
    assert page.locator("#preview").is_visible()
    assert page.locator("#model").inner_text().endswith("million parameters")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-model='epoch1'] .copy").click()
    page.locator("[data-model='epoch1'] .copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == bent(picture_files[0])
    # A third checkpoint joins, and another image begins anew.
    page.check("input[value='epoch0']")
    _drop(page, picture_files[1].read_bytes())
    assert _next_event(page, "epoch0")
    assert _next_event(page, "pretrained") == Captioner.from_pretrained("toy")(picture_files[1])
    assert [head.inner_text() for head in page.locator(".column h2").all()] == ["pretrained", "epoch0", "epoch1"]


def test_a_dialogue_of_several_turns(page: Any, picture_files: list[Path]) -> None:
    page.uncheck("input[value='epoch1']")
    page.set_input_files("#file", picture_files[2])
    _next_event(page, "pretrained")
    bodies: list[Any] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    for number, question in enumerate(("What colour is it?", "<b>And</b> the sky?"), 2):
        page.fill("#question", question)
        page.keyboard.press("Enter")
        assert _next_event(page, "pretrained", number)
    roles = [message["role"] for message in bodies[-1]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert page.locator(".question").all_text_contents()[1:] == ["What colour is it?", "<b>And</b> the sky?"]
    page.click("#again")
    assert page.locator(".answer").count() == 0
    page.click("#send")
    assert _next_event(page, "pretrained")


def test_examples_and_decoding(page: Any, start_server: Any, browser: Any) -> None:
    _, line = start_server("serve", "toy", "--port", 0)
    other = browser.new_page()
    other.goto(line.strip())
    assert other.locator("#examples img").count() == 6
    other.click("summary")
    other.fill("#max_tokens", "2")
    other.locator("#examples button").nth(3).click()
    assert len(_next_event(other, "toy").split()) <= 2
    assert other.locator(".cut").count() == 1
    other.close()
    # The run of the other tests has no pictures and no report.
    assert not page.locator("#report").is_visible()
    assert page.locator("#examples img").count() == 0


def test_references_of_examples_and_the_report_of_a_run(
    served_run: Path, picture_files: list[Path], tmp_path: Path, start_server: Any, browser: Any
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(served_run, folder)
    references = {f"day 1/{number}": (f"Scene <b>{number}</b>.", "A drawing.") for number in range(2)}
    write_thumbnails(folder, dict(zip(references, picture_files, strict=False)))
    row = CheckpointScores("pretrained", {"CIDEr": 0.5}, captions=dict.fromkeys(references, "A dog."))
    write_scores(RunScores("photos", (row,), "test", "karpathy", 2, references), folder)
    write_page(folder)
    _, line = start_server("serve", folder / "checkpoints" / "epoch-001", "--port", 0)
    page = browser.new_page()
    errors: list[str] = []
    page.context.on("console", lambda message: errors.append(message.text))
    page.goto(line.strip())
    assert not page.locator("#references").is_visible()
    page.locator("#examples button").nth(1).click()
    _next_event(page, "epoch-001")
    assert page.locator("#references h2").inner_text() == "References"
    assert page.locator("#references li").all_inner_texts() == ["Scene <b>1</b>.", "A drawing."]
    # Another image has no references.
    page.set_input_files("#file", picture_files[2])
    page.locator("#references").wait_for(state="hidden")
    with page.context.expect_page() as opened:
        page.click("#report")
    report = opened.value
    report.locator("figure img").first.wait_for(state="attached")  # its script runs
    assert "photos" in report.title()
    assert errors == []
    page.context.close()


@pytest.mark.parametrize(
    ("data", "name", "kind", "sentence"),
    [
        (b"not an image at all", "photo.png", "image/png", "it is no image file"),
        (b"\x89PNG\r\n\x1a\n broken", "photo.png", "image/png", "cannot decode the image"),
        (b"", "empty.png", "image/png", "empty.png is empty."),
        (b"hello", "notes.txt", "text/plain", "notes.txt is not an image. Please choose a JPEG, PNG or WebP file."),
        (b"\0" * (5 << 20), "huge.png", "image/png", "larger than 4,194,304 bytes"),
    ],
)
def test_bad_files_have_a_friendly_message(
    page: Any, picture_files: list[Path], data: bytes, name: str, kind: str, sentence: str
) -> None:
    _drop(page, data, name, kind)
    page.get_by_text(sentence).first.wait_for()
    # And the next good one works.
    _drop(page, picture_files[0].read_bytes())
    page.locator("[data-model='pretrained'] .answer:not(.waiting):not(.failed)").wait_for()
    assert page.locator("#notice").is_hidden()


def test_without_an_image_or_a_checkpoint(page: Any) -> None:
    page.click("#send")
    page.get_by_text("Please choose an image.").wait_for()
    for box in page.locator("#models input").all():
        box.uncheck()
    page.fill("#question", "Hello?")
    page.click("#send")
    page.get_by_text("Please choose a checkpoint.").wait_for()


def test_another_image_may_come_while_one_is_described(page: Any, picture_files: list[Path]) -> None:
    for path in picture_files[:4]:
        _drop(page, path.read_bytes())
    expected = Captioner.from_pretrained("toy")(picture_files[3])
    page.locator("[data-model='pretrained'] .answer:not(.waiting)", has_text=expected).wait_for()
    assert page.locator("[data-model='pretrained'] .answer").count() == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_read_and_reach_it(browser: Any, server: Any, picture_files: list[Path], theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    context = browser.new_context(viewport={"width": 360, "height": 800}, color_scheme=theme)
    page = context.new_page()
    page.goto(server[1])
    page.set_input_files("#file", picture_files[0])
    _next_event(page, "pretrained")
    page.click("summary")
    results = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    problems = [(v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in results.response["violations"]]
    assert problems == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
