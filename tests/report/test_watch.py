"""`captune report RUN --watch` and what a reader does with the page: links, export, large pictures."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from captune.cli.report_watch import PageServer, training_state
from captune.errors import InputError
from captune.report import RunScores, write_report, write_scores, write_thumbnails

LOG = [
    {"time": 0.0, "event": "run", "steps": 100},
    {"time": 1.0, "event": "step", "step": 10, "loss": 2.5},
    {"time": 3.0, "event": "step", "step": 30, "loss": 1.5},
]


@pytest.fixture
def run(make_run: Any) -> RunScores:
    base: RunScores = make_run({"CIDEr": (1.0, 2.0)})
    scores = [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 3.0, "b": 1.5, "c": 0.5}]
    rows = [
        dataclasses.replace(
            row,
            captions={image: f'=SUM(1,"{image}")' for image in "abc"},
            per_image={image: {"CIDEr": value} for image, value in values.items()},
        )
        for row, values in zip(base.checkpoints, scores, strict=True)
    ]
    return dataclasses.replace(base, checkpoints=tuple(rows), references=dict.fromkeys("abc", ("A dog.",)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    """A served folder without scores."""
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in LOG) + '{"time": 4')
    server = PageServer(tmp_path)
    thread = Thread(target=server.serve)
    thread.start()
    yield server
    server.stop()
    thread.join()
    server.close()


def _get(server: PageServer, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers={"Host": f"{host}:{server.port}"})
    response = connection.getresponse()
    status, text = response.status, response.read().decode()
    connection.close()
    return status, text


def test_the_state_comes_from_the_log(tmp_path: Path) -> None:
    nothing = {"step": 0, "steps": 0, "loss": None, "seconds_left": None, "done": False}
    assert training_state(tmp_path / "absent") == nothing
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in LOG) + "[1]\n{broken\n")
    assert training_state(log) == {"step": 30, "steps": 100, "loss": 1.5, "seconds_left": 7.0, "done": False}
    with log.open("a") as file:
        file.write('{"time": 9, "event": "done"}\n')
    assert training_state(log)["done"]


def test_only_this_machine_reads_the_page(server: PageServer) -> None:
    status, text = _get(server, "/")
    assert status == 200
    assert "No scores yet" in text
    assert "Step 30 of 100, loss 1.5000." in text
    assert _get(server, "/", host="evil.example")[0] == 404
    assert _get(server, "/../log.jsonl")[0] == 404
    assert json.loads(_get(server, "/state")[1])["version"] == ""


def test_a_folder_and_a_port_are_checked(server: PageServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        PageServer(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be used"):
        PageServer(tmp_path, port=server.port)


def test_the_page_follows_the_run(server: PageServer, run: RunScores, browser: Any, tmp_path: Path) -> None:
    write_scores(run, tmp_path)
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{server.url}#sort=worst")
    page.locator("#live", has_text="30 / 100").wait_for()
    assert "7" in page.inner_text("#live")
    more = dataclasses.replace(run.checkpoints[1], name="epoch7", epoch=7)
    write_scores(dataclasses.replace(run, checkpoints=(*run.checkpoints, more)), tmp_path)
    page.wait_for_selector("#score-table >> text=epoch7")
    assert page.input_value("#sort") == "worst"
    page.close()
    assert errors == []


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "captune", "report", str(tmp_path), "--watch"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    assert process.stderr is not None
    assert "http://127.0.0.1:" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_link_reproduces_what_is_chosen(run: RunScores, browser: Any, tmp_path: Path) -> None:
    picture = tmp_path / "source.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    write_thumbnails(tmp_path, dict.fromkeys("abc", picture))
    path = write_report(tmp_path, run, chart_formats=())[-1]
    context = browser.new_context(locale="zh-CN", viewport={"width": 390, "height": 800})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    # The browser's language, and one button for the filters of a phone.
    assert page.locator("html").get_attribute("lang") == "zh"
    assert page.locator("#controls").is_hidden()
    page.click("#filter")
    page.select_option("#sort", "worst")
    page.fill("#search", "dog")
    link = page.evaluate("location.href")
    assert link.endswith("#sort=worst&search=dog")
    page.select_option("#language", "en")
    page.reload()
    assert page.locator("html").get_attribute("lang") == "en"  # remembered
    other = context.new_page()
    other.goto(link.replace("search=dog", "search=dog&to=nothing&metric=%3Cb%3E"))
    assert other.locator(".card h3").first.text_content() == "c"
    with other.expect_download() as download:
        other.click("#export_csv")
    lines = Path(download.value.path()).read_text("utf-8-sig").splitlines()
    assert [line.split(",")[0] for line in lines] == ["image", "c", "b", "a"]
    assert '"\'=SUM(1,""c"")"' in lines[1]
    with other.expect_download() as download:
        other.click("#export_json")
    assert [row["image"] for row in json.loads(Path(download.value.path()).read_text())] == ["c", "b", "a"]
    other.locator(".card .picture").first.click()
    assert other.locator("#viewer").is_visible()
    other.keyboard.press("ArrowRight")
    assert other.text_content("#viewer-id") == "b"
    other.keyboard.press("Escape")
    assert other.locator("#viewer").is_hidden()
    other.locator(".term").first.focus()
    assert "references" in other.inner_text("#tooltip")
    context.close()
    assert errors == []
