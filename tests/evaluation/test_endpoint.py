"""Rows of OpenAI-compatible endpoints, with a small HTTP server and with `captune serve`."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vlm_run import cards, write_rows

from captune.cli import app, call, run
from captune.config import parse_config
from captune.decoding import DecodingOptions
from captune.errors import ConfigError, DataError, InputError, ToolError
from captune.evaluation import EndpointOptions, evaluate_models
from captune.evaluation.endpoint import Endpoint, image_url, is_endpoint
from captune.report import RunScores, read_scores

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]


def completion(text: Any, finish: str = "stop", **message: Any) -> Reply:
    """A chat completion."""
    content = {"role": "assistant", "content": text, **message}
    return 200, {"choices": [{"message": content, "finish_reason": finish}], "usage": {"completion_tokens": 3}}


def failed(status: int, message: str, code: str = "", **headers: str) -> Reply:
    return status, {"error": {"message": message, "code": code}}, headers


@dataclass
class Server:
    """A server whose answers a test sets.

    Attributes:
        answer: of the request and its number, from 1.
        models: of `/v1/models`.
        requests: bodies of the requests so far.
        keys: headers of authorization.
        listing: unset while `/v1/models` does not answer.
        most_at_once: largest number of requests at one time.
    """

    answer: Callable[[dict[str, Any], int], Reply] = lambda _request, _number: completion("A red card.")
    models: list[str | dict[str, Any]] = field(default_factory=lambda: ["tiny"])
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    listing: threading.Event = field(default_factory=threading.Event)
    address: str = ""
    most_at_once: int = 0


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    state.listing.set()
    lock, running = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def send(self, status: int, tree: Any, headers: dict[str, str] | None = None) -> None:
            data = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            state.keys.append(self.headers["Authorization"])
            state.listing.wait(20)
            self.send(200, {"data": [{"id": name} if isinstance(name, str) else name for name in state.models]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.keys.append(self.headers["Authorization"])
                state.requests.append(request)
                number = len(state.requests)
                running[0] += 1
                state.most_at_once = max(state.most_at_once, running[0])
            reply = state.answer(request, number)
            with lock:
                running[0] -= 1
            self.send(*reply)

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.handle_error = lambda *_connection: None  # type: ignore[method-assign]  # a killed client is no error
    state.address = f"http://127.0.0.1:{made.server_address[1]}/v1"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No charts, no waiting, no keys of the person who runs the tests."""
    monkeypatch.setattr("captune.report.write.draw_chart", lambda *_args, **_settings: {})
    monkeypatch.setattr("captune.evaluation.endpoint._delay", lambda _attempt, _failure: 0.0)
    monkeypatch.delenv("CAPTUNE_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return write_rows(folder, cards(folder, train=2, test=6))


def evaluate(manifest: Path, output: Path, *rows: str, settings: tuple[str, ...] = (), **more: Any) -> RunScores:
    data = {"train": str(manifest), "evaluate": str(manifest), "evaluate_split": "test"}
    config = parse_config({"output": str(output), "data": data}, list(settings))
    return evaluate_models(config, list(rows), lambda _event: None, **more)


def command(*arguments: object) -> int:
    return run(lambda: call(app, ["evaluate", *map(str, arguments)]))


def image_in(request: dict[str, Any]) -> Image.Image:
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_requests_and_row(server: Server, manifest: Path, tmp_path: Path) -> None:
    server.answer = lambda request, _number: completion(f"  A card of {image_in(request).size[0]} pixels. ")
    scores = evaluate(manifest, tmp_path / "out", server.address, settings=("evaluate.max_new_tokens=17",))
    (row,) = scores.checkpoints
    assert row.name == "tiny"
    for image, caption in row.captions.items():
        with Image.open(manifest.parent / f"{image.removeprefix('card-')}.png") as picture:
            assert caption == f"A card of {picture.size[0]} pixels."
    assert len(server.requests) == 6
    request = server.requests[0]
    content = request.pop("messages")[0]["content"]
    assert request == {"model": "tiny", "max_tokens": 17, "temperature": 0}
    assert content[1] == {"type": "text", "text": "Describe this image in detail."}
    assert content[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "|dec:greedy,max17|proto:karpathy|source:endpoint|" in row.signature
    assert row.notes == ("captions of an endpoint: the server processes the images, formats the prompt and decodes",)
    assert row.unfinished == ()
    assert server.keys[0] is None


def test_the_prompt_is_that_of_the_other_rows(server: Server, manifest: Path, tmp_path: Path) -> None:
    evaluate(manifest, tmp_path / "out", server.address, instruction="What is this?")
    assert server.requests[0]["messages"][0]["content"][1]["text"] == "What is this?"


def test_models_are_named_after_the_address(server: Server, manifest: Path, tmp_path: Path) -> None:
    server.models = ["one", "org/two"]
    with pytest.raises(ConfigError, match=r"serves 2 models \(one, org/two\); name one after #, as in http.*/v1#one"):
        evaluate(manifest, tmp_path / "out", server.address)
    rows = (f"{server.address}#org/two", f"mine={server.address}#one")
    scores = evaluate(manifest, tmp_path / "out", *rows)
    assert [row.name for row in scores.checkpoints] == ["org/two", "mine"]
    assert {request["model"] for request in server.requests} == {"one", "org/two"}
    server.models = []
    with pytest.raises(ConfigError, match="does not list its models"):
        evaluate(manifest, tmp_path / "other", server.address)


@pytest.mark.parametrize(
    ("url", "address", "model"),
    [
        ("http://h:8000", "http://h:8000/v1", ""),
        ("http://h:8000/", "http://h:8000/v1", ""),
        ("https://h/v1/#a/b", "https://h/v1", "a/b"),
        ("http://h/api/v1/chat/completions#m", "http://h/api/v1", "m"),
        ("http://[::1]:8000/v1#m", "http://[::1]:8000/v1", "m"),
    ],
)
def test_addresses(url: str, address: str, model: str) -> None:
    made = Endpoint.open(url if model else f"{url}#m", DecodingOptions())
    assert (made.address, made.model) == (address, model or "m")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://user:secret@h/v1#m", "has a password, which would be stored"),
        ("http://h/v1?key=1#m", "is not the address of an endpoint"),
        ("http://h:port/v1#m", "is not an address"),
    ],
)
def test_wrong_addresses(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        Endpoint.open(url, DecodingOptions())
    assert "secret" not in str(raised.value)


def test_errors_that_pass_are_requested_again(server: Server, manifest: Path, tmp_path: Path) -> None:
    statuses = {1: 429, 3: 500, 4: 503, 6: 529, 8: 502}

    def answer(_request: dict[str, Any], number: int) -> Reply:
        return (
            failed(statuses[number], "busy", Retry_After="0")
            if number in statuses
            else completion(f"card {number % 2}")
        )

    server.answer = answer
    (row,) = evaluate(manifest, tmp_path / "out", server.address).checkpoints
    assert len(server.requests) == 6 + len(statuses)
    assert set(row.captions.values()) == {"card 0", "card 1"}
    assert len(row.notes) == 1


def test_waits_grow_and_follow_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from captune.evaluation import endpoint

    waits = [endpoint._delay(attempt, endpoint._RequestError(500, "")) for attempt in range(1, 9)]
    assert all(0.75 * 2**n <= wait <= 1.25 * 2**n for n, wait in enumerate(waits[:6]))
    assert max(waits) <= 75
    assert endpoint._delay(1, endpoint._RequestError(429, "", wait=7.0)) == 7
    assert endpoint._delay(1, endpoint._RequestError(429, "", wait=9999.0)) == 60


def test_an_endpoint_that_fails_keeps_its_answers(server: Server, manifest: Path, tmp_path: Path) -> None:
    server.answer = lambda _request, number: completion("a card") if number <= 3 else failed(503, "out of memory")
    options = EndpointOptions(concurrency=1, attempts=2)
    with pytest.raises(ToolError, match=r"in 2 attempts, at last: out of memory \(status 503\)\. The answers"):
        evaluate(manifest, tmp_path / "out", server.address, endpoint_options=options)
    assert not (tmp_path / "out" / "scores.json").exists()
    server.requests.clear()
    server.answer = lambda _request, _number: completion("another card")
    (row,) = evaluate(manifest, tmp_path / "out", server.address, endpoint_options=options).checkpoints
    assert len(server.requests) == 3
    assert sorted(row.captions.values()) == ["a card"] * 3 + ["another card"] * 3


def test_finished_rows_are_written_when_a_later_one_fails(
    server: Server, manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows of an earlier evaluation that are not scored again are kept."""
    files = [tmp_path / f"{name}.json" for name in "ab"]
    for file in files:
        file.write_text(json.dumps([{"image_id": f"card-{n}", "caption": f"a card {file.stem}"} for n in range(2, 8)]))
    out = tmp_path / "out"

    def rows() -> list[str]:
        return [row.name for row in read_scores(out).checkpoints]

    server.answer = lambda _request, _number: failed(404, "no such model")
    arguments = (files[0], server.address, files[1], "--data", manifest, "--out", out)
    assert command(*arguments) == 2
    error = " ".join(capfd.readouterr().err.split())
    assert f"it serves tiny. The rows of a are in {out}." in error
    assert rows() == ["a"]
    assert (out / "report.html").is_file()
    server.answer = lambda _request, _number: completion("a card")
    assert command(*arguments) == 0
    assert rows() == ["a", "tiny", "b"]
    before = (out / "scores.json").read_bytes()
    server.answer = lambda _request, _number: failed(404, "no such model")
    assert command(*arguments, "evaluate.max_new_tokens=9") == 2
    assert "The rows of" not in capfd.readouterr().err
    assert (out / "scores.json").read_bytes() == before


def test_a_complete_row_needs_no_server(
    manifest: Path,
    tmp_path: Path,
    server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = evaluate(manifest, tmp_path / "out", f"{server.address}#tiny")
    count = len(server.requests)
    server.models = []
    server.answer = lambda _request, _number: failed(500, "gone")
    results = tmp_path / "other.json"
    results.write_text(json.dumps([{"image_id": f"card-{n}", "caption": "a card"} for n in range(2, 8)]))
    after = evaluate(manifest, tmp_path / "out", f"{server.address}#tiny", str(results))
    assert len(server.requests) == count
    (stored,) = (tmp_path / "out" / "cache" / "captions").glob("*.jsonl")
    note = (
        "6 of 6 captions requested in an earlier evaluation; to request them again, delete "
        f"cache/captions/{stored.name} in the output folder"
    )
    assert after.checkpoints[0].notes == (*before.checkpoints[0].notes, note)
    assert replace(after.checkpoints[0], notes=()) == replace(before.checkpoints[0], notes=())
    assert f"tiny: {note}." in caplog.text
    # A server that does not answer delays it by seconds.
    monkeypatch.setattr("captune.evaluation.models._LONGEST_CHECK", 0.1)
    server.listing.clear()
    again = evaluate(manifest, tmp_path / "out", f"{server.address}#tiny", str(results))
    assert again.checkpoints == after.checkpoints
    server.listing.set()
    # Other settings are other captions.
    with pytest.raises(ToolError):
        evaluate(
            manifest, tmp_path / "out", f"{server.address}#tiny", str(results), settings=("evaluate.max_new_tokens=9",)
        )


def test_another_model_of_the_same_name_is_requested_again(
    server: Server, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Servers that list the folder of a model; without a connection the last stored answers are used."""
    url, counts = f"{server.address}#tiny", []
    for root in ("/out/checkpoint-500", "/out/checkpoint-1000", "/out/checkpoint-500"):
        server.models = [{"id": "other", "root": "/x"}, {"id": "tiny", "root": root, "created": len(counts)}]
        server.answer = lambda _request, _number, root=root: completion(f"a card of {root}")  # type: ignore[misc]
        server.requests.clear()
        (row,) = evaluate(manifest, tmp_path / "out", url).checkpoints
        assert set(row.captions.values()) == {f"a card of {root}"}
        counts.append(len(server.requests))
    assert counts == [6, 6, 0]
    assert caplog.text.count("serves another model as tiny than in an earlier evaluation") == 1
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        for stored in (tmp_path / "out" / "cache" / "captions").glob("*.jsonl"):
            stored.write_text(stored.read_text().replace(server.address, gone))
            head, _, lines = stored.read_text().partition("\n")
            name = hashlib.sha256("\0".join(json.loads(head)["identity"]).encode()).hexdigest()[:20]
            stored.unlink()
            stored.with_name(f"{name}.jsonl").write_text(f"{head}\n{lines}")
        (row,) = evaluate(manifest, tmp_path / "out", f"tiny={gone}#tiny").checkpoints
    assert set(row.captions.values()) <= {"a card of /out/checkpoint-500", "a card of /out/checkpoint-1000"}


def test_the_model_of_the_answers_is_noted(
    server: Server, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reply = completion("a card")
    reply[1]["model"] = "other"
    server.answer = lambda _request, number: reply if number > 2 else completion("a card")
    note = "the server answers with the model other (4 answers), and not with the requested mine"
    for count in (1, 2):
        (row,) = evaluate(manifest, tmp_path / "out", f"{server.address}#mine").checkpoints
        assert note in row.notes
        assert caplog.text.count(f"mine: {note}.") == count, "it is stored with the captions"
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([completion(None)], "6 empty."),
        ([completion("", finish="length")], r"6 empty \(6 ended at evaluate.max_new_tokens=40\)."),
        ([completion(None, refusal="I cannot.")], "6 refused by the model or filtered \\('I cannot'\\)."),
        (
            [completion(""), *[failed(400, "too large")] * 5],
            "5 refused by the server or failed .*too large.*, 1 empty.",
        ),
    ],
)
def test_answers_without_any_caption_have_no_row(
    server: Server, manifest: Path, tmp_path: Path, replies: list[Reply], words: str
) -> None:
    server.answer = lambda _request, number: replies[min(number, len(replies)) - 1]
    with pytest.raises(InputError, match=f"tiny: http.* gave no caption: 6 answers of 6 without a caption: {words}"):
        evaluate(manifest, tmp_path / "out", server.address, endpoint_options=EndpointOptions(1))
    with pytest.raises(InputError, match=r"; delete .*\.jsonl to request them again\."):
        evaluate(manifest, tmp_path / "out", server.address)
    assert not (tmp_path / "out" / "scores.json").exists()


def test_requests_at_once(server: Server, manifest: Path, tmp_path: Path) -> None:
    barrier = threading.Barrier(3)

    def answer(_request: dict[str, Any], _number: int) -> Reply:
        barrier.wait(timeout=20)  # broken unless three requests are open together
        return completion("a card")

    server.answer = answer
    evaluate(manifest, tmp_path / "out", server.address, endpoint_options=EndpointOptions(concurrency=3))
    assert server.most_at_once == 3


def test_refusals_and_empty_answers_are_counted(
    server: Server, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replies = [
        completion("a card"),
        completion(None, refusal="I cannot help with that."),
        completion("half", finish="content_filter"),
        completion("", finish="length", reasoning_content="Let me think"),
        failed(400, "The image is too small", "invalid_image"),
        completion([{"type": "text", "text": "a "}, {"type": "text", "text": "card"}]),
    ]
    server.answer = lambda _request, number: replies[number - 1]
    options = EndpointOptions(concurrency=1)
    (row,) = evaluate(manifest, tmp_path / "out", server.address, endpoint_options=options).checkpoints
    assert list(row.captions.values()) == ["a card", "", "", "", "", "a card"]
    note = (
        "4 answers of 6 without a caption: 1 refused by the server or failed ('The image is too small (status 400)'), "
        "2 refused by the model or filtered ('I cannot help with that'), 1 empty (1 ended at "
        "evaluate.max_new_tokens=40); scored as empty"
    )
    assert row.notes[1:] == (note,)
    assert f"tiny: {note}." in caplog.text
    assert dict(row.thinking) == {"card-5": "unclosed"}
    # An image that is refused again does not end an evaluation in which others were answered.
    server.answer = lambda _request, _number: failed(400, "The image is too small")
    (again,) = evaluate(manifest, tmp_path / "out", server.address, endpoint_options=options).checkpoints
    assert (again.captions, again.corpus) == (row.captions, row.corpus)
    assert again.notes[1].startswith("5 of 6 captions requested in an earlier evaluation; ")
    assert again.notes[2] == note, "what was stored is counted as before"
    # The model has answered: only the image that the server refused is requested again.
    server.requests.clear()
    server.answer = lambda _request, _number: completion("a card after all")
    (row,) = evaluate(manifest, tmp_path / "out", server.address, endpoint_options=options).checkpoints
    assert len(server.requests) == 1
    assert list(row.captions.values()) == ["a card", "", "", "", "a card after all", "a card"]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_request_that_is_always_refused_ends_the_evaluation(
    server: Server, manifest: Path, tmp_path: Path, concurrency: int
) -> None:
    server.answer = lambda _request, _number: failed(400, "this model takes no images")
    with pytest.raises(
        InputError, match=r"The model tiny of http.* captions none of the first 3 images: this model takes no images"
    ):
        evaluate(manifest, tmp_path / "out", server.address, endpoint_options=EndpointOptions(concurrency))
    assert len(server.requests) <= 6


def test_thinking_text_is_removed(server: Server, manifest: Path, tmp_path: Path) -> None:
    server.answer = lambda _request, _number: completion("<think>It is red.</think>\nA red card.")
    (row,) = evaluate(manifest, tmp_path / "out", server.address).checkpoints
    assert set(row.captions.values()) == {"A red card."}
    assert set(row.thinking.values()) == {"removed"}


def test_models_that_refuse_max_tokens_and_temperature(
    server: Server, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: dict[str, Any], _number: int) -> Reply:
        if "max_tokens" in request:
            return failed(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in request:
            return failed(400, "Unsupported value: 'temperature' does not support 0 with this model.")
        return completion(f"a card in {request['max_completion_tokens']} tokens")

    server.answer = answer
    (row,) = evaluate(manifest, tmp_path / "out", server.address).checkpoints
    assert set(row.captions.values()) == {"a card in 40 tokens"}
    assert "|dec:sampled,max40|" in row.signature
    assert "the server refuses temperature 0, so its captions are sampled" in row.notes
    assert "does not decode greedily" in caplog.text
    # Not requested again, although the model could answer otherwise now.
    server.requests.clear()
    (again,) = evaluate(manifest, tmp_path / "out", server.address).checkpoints
    assert (again.captions, again.signature, again.notes[:2]) == (row.captions, row.signature, row.notes)
    assert not server.requests


def test_the_key_is_sent_and_not_stored(
    server: Server, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    evaluate(manifest, tmp_path / "without", server.address)
    assert set(server.keys) == {None}, "the key of OpenAI is for its hosts"
    monkeypatch.setenv("CAPTUNE_API_KEY", "secret-key-1")
    server.keys.clear()
    evaluate(manifest, tmp_path / "out", server.address)
    assert set(server.keys) == {"Bearer secret-key-1"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret-key-1" in path.read_bytes()]
    server.answer = lambda _request, _number: failed(401, "Incorrect key secret-key-1")
    assert command(server.address, "--data", manifest, "--out", tmp_path / "refused") == 2
    error = capfd.readouterr().err
    assert "refuses the key in CAPTUNE_API_KEY: Incorrect key *** (status 401)" in error
    monkeypatch.delenv("CAPTUNE_API_KEY")
    assert command(server.address, "--data", manifest, "--out", tmp_path / "refused") == 2
    assert "needs a key" in capfd.readouterr().err


def test_faults_of_addresses_are_one_sentence(
    server: Server, manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for row in (f"http://127.0.0.1:{port}/v1", f"http://127.0.0.1:{port}/v1#m"):
            assert command(row, "--data", manifest, "--out", tmp_path / "out") == 2
            error = capfd.readouterr().err.strip().splitlines()[-1]
            reason = f"captune: The endpoint http://127.0.0.1:{port}/v1 cannot be reached: Connection refused; "
            assert error == f"{reason}start the server, or correct the address."
            assert not (tmp_path / "out").exists()
    assert command(server.address) == 2
    assert f"{server.address} is a model without a run; give the images" in capfd.readouterr().err
    server.answer = lambda _request, _number: failed(404, "no such model")
    assert command(f"{server.address}#other", "--data", manifest, "--out", tmp_path / "out") == 2
    assert "has no model other: no such model (status 404); it serves tiny." in capfd.readouterr().err
    server.answer = lambda _request, _number: failed(429, "You exceeded your quota", "insufficient_quota")
    assert command(server.address, "--data", manifest, "--out", tmp_path / "out") == 2
    assert "refuses requests: You exceeded your quota (status 429)" in capfd.readouterr().err
    server.answer = lambda _request, _number: (302, {}, {"Location": "http://other.example/v1"})
    assert command(server.address, "--data", manifest, "--out", tmp_path / "out") == 2
    assert "redirects to http://other.example/v1" in capfd.readouterr().err
    assert command(server.address, "--data", manifest, "--out", tmp_path / "out", "evaluate.beams=3") == 2
    assert "beam search cannot be requested" in capfd.readouterr().err
    for answer in ((200, b"<html>"), (200, {"text": "no completion"})):
        server.answer = lambda _request, _number, answer=answer: answer  # type: ignore[misc]
        with pytest.raises(ToolError, match=r"in 2 attempts, at last: its answer is (empty|no)"):
            evaluate(manifest, tmp_path / "x", server.address, endpoint_options=EndpointOptions(attempts=2))


@pytest.mark.parametrize("finish", ["error", "abort", "network_error"])
def test_answers_that_the_server_did_not_complete(
    server: Server, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, finish: str
) -> None:
    """They are requested again; an image of which every answer failed counts as refused."""
    failing = completion("A d", finish)
    failing[1]["choices"][0]["error"] = {"message": "the worker died", "code": 502}
    server.answer = lambda _request, number: failing if number in (2, 3, 5, 6) else completion("a card", "eos")
    options = EndpointOptions(concurrency=1, attempts=2)
    (row,) = evaluate(manifest, tmp_path / "out", server.address, endpoint_options=options).checkpoints
    assert list(row.captions.values()) == ["a card", "", "a card", "", "a card", "a card"]
    assert len(server.requests) == 8
    words = f"the answer ended with finish_reason '{finish}': the worker died"
    assert f"2 answers of 6 without a caption: 2 refused by the server or failed ('{words}')" in caplog.text
    server.requests.clear()
    server.answer = lambda _request, _number: completion("a new card")
    (row,) = evaluate(manifest, tmp_path / "out", server.address, endpoint_options=options).checkpoints
    assert (len(server.requests), list(row.captions.values()).count("a new card")) == (2, 2)
    server.answer = lambda _request, _number: failing
    with pytest.raises(InputError, match=f"captions none of the first 3 images: {words}"):
        evaluate(manifest, tmp_path / "other", server.address, endpoint_options=options)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((200, {"error": {"message": "out of memory in secret-key-1"}}), r"out of memory in \*\*\*\."),
        ((200, {"error": "out of memory"}), r"out of memory\."),
        ((200, b"<html><style>b {}</style><b>Log in</b>"), r"its answer is not JSON: 'Log in'\."),
        ((200, b""), r"its answer is empty\."),
        (completion({"text": "A cat"}), r"its answer is no chat completion\."),
        (completion(7), r"its answer is no chat completion\."),
        (completion([{"type": "text", "text": None}]), r"its answer is no chat completion\."),
    ],
)
def test_answers_without_a_completion(
    server: Server, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply, words: str
) -> None:
    monkeypatch.setenv("CAPTUNE_API_KEY", "secret-key-1")
    server.answer = lambda _request, _number: reply
    with pytest.raises(ToolError, match=f"in 2 attempts, at last: {words}"):
        evaluate(manifest, tmp_path / "out", server.address, endpoint_options=EndpointOptions(attempts=2))


def test_an_error_with_status_200_and_a_code(server: Server, manifest: Path, tmp_path: Path) -> None:
    server.answer = lambda _request, _number: (200, {"error": {"message": "wrong image", "code": 400}})
    with pytest.raises(InputError, match="captions none of the first 3 images: wrong image"):
        evaluate(manifest, tmp_path / "out", server.address)


def test_a_request_has_a_time_limit(server: Server, manifest: Path, tmp_path: Path) -> None:
    released = threading.Event()

    def answer(_request: dict[str, Any], _number: int) -> Reply:
        released.wait(20)
        return completion("late")

    server.answer = answer
    try:
        options = EndpointOptions(concurrency=1, timeout=0.1, attempts=2)
        with pytest.raises(ToolError, match=r"gave no answer in 2 attempts, at last: no answer in 0\.1 seconds"):
            evaluate(manifest, tmp_path / "out", server.address, endpoint_options=options)
    finally:
        released.set()


def test_images_are_sent_upright_in_a_common_format(tmp_path: Path) -> None:
    pixels = Image.new("RGB", (6, 4), (200, 30, 30))
    pixels.save(tmp_path / "plain.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels.save(tmp_path / "rotated.jpg", exif=exif)
    pixels.save(tmp_path / "card.bmp")
    plain = image_url(tmp_path / "plain.jpg")
    assert plain == "data:image/jpeg;base64," + base64.b64encode((tmp_path / "plain.jpg").read_bytes()).decode()

    def size(url: str) -> tuple[int, int]:
        assert url.startswith("data:image/png;base64,")
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size

    assert size(image_url(tmp_path / "rotated.jpg")) == (4, 6)
    assert size(image_url(tmp_path / "rotated.jpg", exif_rotation=False)) == (6, 4)
    assert size(image_url(tmp_path / "card.bmp")) == (6, 4)
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    for name in ("broken.jpg", "missing.jpg"):
        with pytest.raises(DataError, match=name):
            image_url(tmp_path / name)
    assert [is_endpoint(name) for name in ("HTTP://h/v1", "http", "out/http://h")] == [True, False, False]


def test_answers_survive_a_killed_process(server: Server, manifest: Path, tmp_path: Path) -> None:
    """kill -9 between two answers: the second evaluation requests only what was not answered."""
    reached, released = threading.Event(), threading.Event()
    out = tmp_path / "out"

    def stored_lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in (out / "cache" / "captions").glob("*.jsonl"))

    def answer(_request: dict[str, Any], number: int) -> Reply:
        if number == 4:
            while stored_lines() < 4 and not released.wait(0.01):  # a header and three answers
                pass
            reached.set()
            released.wait(60)
        return completion(f"card {number}")

    server.answer = answer
    program = [sys.executable, "-m", "captune", "evaluate", server.address, "--data", str(manifest), "--out", str(out)]
    process = subprocess.Popen(
        [*program, "--concurrency", "1"], stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert reached.wait(60)
    (stored,) = (out / "cache" / "captions").glob("*.jsonl")
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    released.set()
    # The process may also be killed while it writes a line.
    with stored.open("a") as stream:
        stream.write('{"image": "half a li')
    server.requests.clear()
    server.answer = lambda _request, number: completion(f"new {number}")
    (row,) = evaluate(manifest, out, server.address, endpoint_options=EndpointOptions(concurrency=1)).checkpoints
    assert len(server.requests) == 3
    assert list(row.captions.values()) == ["card 1", "card 2", "card 3", "new 1", "new 2", "new 3"]
    assert '"half a li' not in stored.read_text()


def test_torch_is_not_imported(server: Server, manifest: Path, tmp_path: Path) -> None:
    results = tmp_path / "blip.json"
    results.write_text(json.dumps([{"image_id": f"card-{n}", "caption": "a card"} for n in range(2, 8)]))
    out = tmp_path / "out"
    words = ["evaluate", server.address, str(results), "--data", str(manifest), "--out", str(out)]
    lines = f"import sys\nfrom captune.cli import app, call, run\nassert run(lambda: call(app, {words!r})) == 0\n"
    program = f"{lines}print(*sorted({{'torch', 'transformers'}} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "", done.stderr
    assert [row.name for row in read_scores(out).checkpoints] == ["tiny", "blip"]
