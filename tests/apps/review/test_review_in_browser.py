"""`captune review` on a real server: in a browser, and under kill -9."""

from __future__ import annotations

import http.client
import json
import random
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from captune.data import read_history

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


def caption_is(page: Any, name: str) -> None:
    page.locator("#name", has_text=name).wait_for()


def test_a_review_by_keys_and_clicks(browser: Any, start_server: Any, photos: Path) -> None:
    _, line = start_server("review", photos, "--port", 0)
    page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if "127.0.0.1" not in request.url else None)
    page.goto(line.strip())
    caption_is(page, "a.jpg")
    page.keyboard.press("a")  # accept
    caption_is(page, "b.png")
    page.keyboard.press("e")  # edit
    page.keyboard.press("Control+a")
    page.keyboard.type("sks, a corrected wall")
    page.get_by_text("Saved.", exact=True).wait_for()
    assert (photos / "b.txt").read_text() == "sks, a corrected wall\n"
    page.keyboard.type("!")
    page.keyboard.press("Control+Enter")  # accept, with what was typed
    caption_is(page, "d.jpg")
    assert (photos / "b.txt").read_text() == "sks, a corrected wall!\n"
    page.fill("#text", "a white wall")
    page.keyboard.press("PageUp")
    caption_is(page, "b.png")
    assert (photos / "d.txt").read_text() == "a white wall\n"
    assert page.locator("#counts").inner_text() == "2 of 4 accepted, 1 edited, 1 open"
    page.click("#restore")
    page.get_by_text("Saved.", exact=True).wait_for()
    assert (photos / "b.txt").read_text() == "sks, a green wall\n"
    page.click("#undo")
    page.get_by_text("Undone.").wait_for()
    assert (photos / "b.txt").read_text() == "sks, a corrected wall!\n"
    # Another program writes the text that is being edited.
    (photos / "b.txt").write_text("by an editor\n")
    page.fill("#text", "mine")
    page.locator("#conflict", has_text="by an editor").wait_for()
    assert (photos / "b.txt").read_text() == "by an editor\n"
    page.click("#keep")
    page.get_by_text("Saved.", exact=True).wait_for()
    assert (photos / "b.txt").read_text() == "mine\n"
    page.select_option("#filter", "open")
    caption_is(page, "sub/c.webp")
    assert page.locator("#items li").count() == 1
    page.click("#open-replace")
    page.fill("#find", "blue")
    page.fill("#with", "black")
    page.locator("#samples ins", has_text="sks, a black wall").wait_for()
    page.click("#apply")
    page.get_by_text("Replaced in 1 captions.").wait_for()
    assert (photos / "sub" / "c.txt").read_text() == "sks, a black wall\n"
    assert [text for text in problems if not text.startswith("data:")] == []
    page.context.close()


@pytest.mark.parametrize(("theme", "language"), [("light", "en"), ("dark", "zh")])
def test_everybody_can_read_and_reach_it(
    browser: Any, start_server: Any, photos: Path, theme: str, language: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    _, line = start_server("review", photos, "--port", 0)
    context = browser.new_context(viewport={"width": 320, "height": 700}, color_scheme=theme)
    page = context.new_page()
    page.goto(f"{line.strip()}?lang={language}")
    caption_is(page, "a.jpg")

    def check(what: str) -> None:
        report = axe.Axe().run(page, options={"runOnly": RULES})
        violations = [(v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in report.response["violations"]]
        assert violations == [], what
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{what} is wider than a phone"

    page.click("summary")
    check("page")
    (photos / "a.txt").write_text("by an editor\n")
    page.fill("#text", "mine")
    page.locator("#conflict").wait_for()
    check("conflict")
    page.click("#take")
    page.locator("#conflict").wait_for(state="hidden")
    page.click("#open-replace")
    page.fill("#find", "sks")
    page.locator("#samples li").first.wait_for()
    check("find and replace")
    context.close()


def test_a_killed_server_loses_nothing(start_server: Any, photos: Path) -> None:
    """SIGKILL at a random moment while texts are saved: the file holds one of them, and no answered one is lost."""
    chance = random.Random(3)
    text = photos / "a.txt"
    for _ in range(2):
        server, line = start_server("review", photos, "--port", 0)
        connection = http.client.HTTPConnection(urlsplit(line.strip()).netloc)
        answered: list[str] = []
        sent: list[str] = []
        stop_after, enough = chance.randrange(3, 12), threading.Event()

        def save_many(
            connection: http.client.HTTPConnection = connection,
            answered: list[str] = answered,
            sent: list[str] = sent,
            stop_after: int = stop_after,
            enough: threading.Event = enough,
        ) -> None:
            connection.request("GET", "/items/0")
            version = json.loads(connection.getresponse().read())["version"]
            try:
                while True:
                    sent.append(f"{len(sent)} " + "word " * 20_000 + "end")
                    body = json.dumps({"text": sent[-1], "version": version, "accept": False})
                    connection.request("POST", "/items/0", body, {"Content-Type": "application/json"})
                    version = json.loads(connection.getresponse().read())["version"]
                    answered.append(sent[-1])
                    if len(answered) == stop_after:
                        enough.set()
            except (OSError, http.client.HTTPException):
                pass

        saving = threading.Thread(target=save_many)
        saving.start()
        assert enough.wait(30)
        server.kill()
        assert server.wait(10) == -9
        saving.join(30)
        connection.close()
        stored = text.read_text().strip()
        assert stored in sent[len(answered) - 1 :]
        recorded = [change.after for change in read_history(photos)["a.txt"]]
        assert all(f"{each}\n" in recorded for each in answered)
    # The next server shows what was stored.
    _, line = start_server("review", photos, "--port", 0)
    connection = http.client.HTTPConnection(urlsplit(line.strip()).netloc)
    connection.request("GET", "/items/0")
    detail = json.loads(connection.getresponse().read())
    connection.close()
    assert detail["text"] == stored
    assert detail["original"] == "sks, a red wall"
