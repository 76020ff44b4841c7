"""Bodies of any shape: one sentence about the first fault, at once; and no setting that is ignored."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from captune.apps.serving.schema import (
    MOST_VALUES,
    NEUTRAL,
    WITHOUT_EFFECT,
    APIError,
    ChatRequest,
    read_json,
    refuse_unsupported,
)

from .conftest import data_url


def _memory(process: Any) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def _post(address: str, body: bytes | dict[str, Any]) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", data, {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def _error(address: str, body: dict[str, Any]) -> Any:
    status, text = _post(address, body)
    assert status == 400
    return json.loads(text)["error"]


def _content(*parts: Any) -> dict[str, Any]:
    return {"model": "pretrained", "messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("part", "param", "sentence"),
    [
        ({"type": "image_url"}, "image_url", "is required"),
        ({"type": "image_url", "image_url": {}}, "image_url", 'Expected {"url": "data:image/jpeg;base64,..."}.'),
        (
            {"type": "image_url", "image_url": {"url": 5}},
            "image_url",
            'Expected {"url": "data:image/jpeg;base64,..."}.',
        ),
        ({"type": "image_url", "image_url": ["x"]}, "image_url", 'Expected {"url": "data:image/jpeg;base64,..."}.'),
        ({"type": "image_url", "image_url": None}, "image_url", 'Expected {"url": "data:image/jpeg;base64,..."}.'),
        ({"type": "text"}, "text", "is required"),
        ({"type": "text", "text": 5}, "text", "valid string"),
        ({"type": "input_image", "image_url": "x"}, "", "part type 'input_image' is not known; expected text or"),
        ({"type": "image", "source": {}}, "", "part type 'image' is not known"),
        ({"type": "x" * 100_000}, "", "is not known"),
        ({"type": None}, "", "part type 'None' is not known"),
        ({"image": "x"}, "", "a part with a type"),
        ("text", "", "text or image_url"),
        (7, "", "text or image_url"),
        (None, "", "text or image_url"),
    ],
)
def test_a_part_that_is_not_understood_has_its_message(server: Any, part: Any, param: str, sentence: str) -> None:
    error = _error(server[1], _content({"type": "text", "text": "What?"}, part))
    assert error["param"] == ".".join(filter(None, ("messages.0.content.1", param)))
    assert error["message"].startswith(error["param"])
    assert sentence in error["message"]
    assert len(error["message"]) < 200


def test_content_that_is_neither_text_nor_parts(server: Any) -> None:
    for content in (5, {"type": "text", "text": "a"}, True):
        body = {"model": "pretrained", "messages": [{"role": "user", "content": content}]}
        error = _error(server[1], body)
        assert error["message"] == "messages.0.content: Expected a string or a list of parts."


def test_an_image_url_may_be_a_string(server: Any, pictures: list[Image.Image]) -> None:
    url = data_url(pictures[0])
    texts = [
        _post(server[1], _content({"type": "image_url", "image_url": image_url}))[1].partition('"content":')[2]
        for image_url in (url, {"url": url}, {"url": url, "detail": "low"})
    ]
    assert texts[0]
    assert len({text.split(",")[0] for text in texts}) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"1," * 1_000_000 + b"1",
        b"{}," * 700_000 + b"{}",
        b"[" * 1_000_000,
        b'{"type":"text"},' * 120_000 + b"1",
        b'{"type":"text","text":"a"},' * 30_000 + b"1",
        b'"a",' * 60_000 + b"1",
        b'{"type":"input_image"},' * 80_000 + b"1",
        b"[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]," * 4_000 + b"1",
    ],
    ids=["numbers", "objects", "nested", "parts", "texts", "strings", "types", "lists"],
)
def test_lists_of_anything_are_answered_at_once(server: Any, pictures: list[Image.Image], content: bytes) -> None:
    process, address = server
    _post(address, _content({"type": "image_url", "image_url": data_url(pictures[0])}))
    before = _memory(process)
    body = b'{"model":"pretrained","messages":[{"role":"user","content":[' + content + b"]}]}"
    with ThreadPoolExecutor(2) as pool:
        begun = time.monotonic()
        hostile = pool.submit(_post, address, body)
        other = _post(address, {"model": "pretrained", "messages": []})
        status, text = hostile.result()
    assert other[0] == status == 400
    assert len(text) < 500
    assert time.monotonic() - begun < 5
    assert _memory(process) - before < 100 << 20


def test_other_shapes_are_refused_as_fast(server: Any) -> None:
    many = {f"a{number}": 1 for number in range(30_000)}
    image = {"type": "image_url", "image_url": "x"}
    for body in (
        json.dumps(many).encode(),
        json.dumps({"model": "pretrained", "messages": [{"role": "user", "content": "a"}] * 20_000}).encode(),
        json.dumps({"model": "pretrained", "messages": list(range(40_000))}).encode(),
        json.dumps({**_content(image), **many}).encode(),
        json.dumps({**_content(image), "stop": ["a"] * 40_000}).encode(),
        json.dumps({**_content(image), "k" * 1_000_000: 1}).encode(),
        b'{"model":"pretrained","seed":' + b"1" * 2_000_000 + b"}",
        b'{"model":"pretrained","temperature":NaN,"messages":[]}',
        json.dumps({**_content(image), "temperature": "nan"}).encode(),
        b'{"model":"\\ud800","messages":[]}',
        json.dumps(_content({"type": "text", "text": "word " * 500_000}, image)).encode(),
    ):
        begun = time.monotonic()
        status, text = _post(server[1], body)
        assert status == 400, body[:80]
        assert len(text) < 500
        assert time.monotonic() - begun < 3, body[:80]


def test_the_number_of_values_is_bounded_before_they_are_read() -> None:
    assert read_json(b"[" + b"1," * (MOST_VALUES - 10) + b"1]")
    with pytest.raises(APIError, match="more than 100,000 values"):
        read_json(b"[" + b"1," * MOST_VALUES + b"1]")
    for body in (b"", b"{", b"\xff\xfe", b"[" * 5000, b"1 2"):
        with pytest.raises(APIError, match="not valid JSON"):
            read_json(body)


def _request(**settings: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "a"}], **settings})


def test_every_setting_of_the_clients_is_honoured_or_refused_or_neutral() -> None:
    parameters = pytest.importorskip("openai.types.chat.completion_create_params", reason="needs openai")
    names = set(parameters.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert names - set(ChatRequest.model_fields) - NEUTRAL.keys() - WITHOUT_EFFECT == set()


def test_settings_that_would_change_the_answer_are_refused() -> None:
    for name, neutral in NEUTRAL.items():
        for value in (None, *neutral):
            refuse_unsupported(_request(**{name: value}))
        with pytest.raises(APIError, match=f"{name} is not supported here") as caught:
            refuse_unsupported(_request(**{name: 1.5}))
        assert caught.value.body["error"]["param"] == name
    for name in WITHOUT_EFFECT:
        refuse_unsupported(_request(**{name: "x"}))
    refuse_unsupported(_request(max_tokens=5, max_completion_tokens=5))
    for wrong, sentence in (
        ({"min_p": 0.1}, "no setting 'min_p'; "),
        ({"max_token": 5}, "did you mean 'max_tokens'?"),
        ({"presence_penalty": -1}, "presence_penalty is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "differ"),
    ):
        with pytest.raises(APIError, match=sentence):
            refuse_unsupported(_request(**wrong))


def test_an_answer_of_openais_client_may_be_sent_back_as_it_came() -> None:
    answer = {
        "role": "assistant",
        "content": "a",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
    }
    refuse_unsupported(_request(messages=[{"role": "user", "content": "a"}, answer]))
    for name, value in (("tool_calls", [{}]), ("name", "Ann"), ("refusal", "no"), ("prefix", True)):
        with pytest.raises(APIError, match=f"messages.1.{name}"):
            refuse_unsupported(_request(messages=[{"role": "user", "content": "a"}, {**answer, name: value}]))
