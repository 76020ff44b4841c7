"""Captioners other than MiniGPT-4 on the endpoint: unstreamed answers, equal to their captions elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from vision_families import save_family

from captune.apps.serving.engine import CaptionerEngine
from captune.apps.serving.jobs import Job, Metrics, Pixels
from captune.apps.serving.served_models import ServedCaptioner, load_served
from captune.apps.serving.server import serving_application
from captune.captioner import Captioner
from captune.decoding import DecodingOptions


@pytest.fixture(scope="module", params=["blip", "llava"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedCaptioner:
    made = load_served(str(save_family(request.param, tmp_path_factory.mktemp("model") / request.param)))
    assert isinstance(made, ServedCaptioner)
    assert made.names == (request.param,)
    return made


@pytest.fixture
def client(served: ServedCaptioner) -> Iterator[TestClient]:
    with TestClient(serving_application(served, hosts=None)) as client:  # type: ignore[arg-type]
        yield client


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def body(served: ServedCaptioner, *parts: Any, **settings: Any) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else
        {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in parts
    ]  # fmt: skip
    messages = [{"role": "user", "content": content}]
    return {"model": served.names[0], "messages": messages, "max_tokens": 6, **settings}


def answer(client: TestClient, request: dict[str, Any]) -> str:
    response = client.post("/v1/chat/completions", json=request)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def caption(captioner: Captioner, picture: Image.Image, question: str | None = None, **settings: Any) -> str:
    return captioner(picture, question, DecodingOptions(max_new_tokens=6, **settings))


def test_the_answer_is_the_caption(served: ServedCaptioner, client: TestClient, pictures: list[Image.Image]) -> None:
    expected = [caption(served.captioner, picture) for picture in pictures[:6]]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(lambda picture: answer(client, body(served, picture)), pictures[:6])) == expected
    question = "What colour is it?"
    assert answer(client, body(served, pictures[0], question)) == caption(served.captioner, pictures[0], question)
    beams = body(served, pictures[0], num_beams=2)
    assert answer(client, beams) == caption(served.captioner, pictures[0], beams=2)


def test_a_batch_is_of_one_question(served: ServedCaptioner, pictures: list[Image.Image]) -> None:
    """Requests that wait at the same time share a batch only if their question is the same."""
    engine = CaptionerEngine(served, Metrics(), slots=8)
    pixels = (Pixels.of(served.captioner.prepare(pictures[0])),)
    questions = ("What is it?", "Which colour?", "What is it?", "")
    jobs = [
        Job(served.names[0], (), pixels, DecodingOptions(), "", lambda event: None, (), question)
        for question in questions
    ]
    engine._waiting.extend(jobs)
    assert [[job.question for job in engine._next()] for _ in range(4)] == [
        ["What is it?", "What is it?"],
        ["Which colour?"],
        [""],
        [],
    ]


def test_streams_and_stops(served: ServedCaptioner, client: TestClient, pictures: list[Image.Image]) -> None:
    text = caption(served.captioner, pictures[0])
    with client.stream("POST", "/v1/chat/completions", json=body(served, pictures[0], stream=True)) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert sum('"content":' in line for line in lines) >= 2
    if len(text) > 1:
        response = client.post("/v1/chat/completions", json=body(served, pictures[0], stop=text[1]))
        (choice,) = response.json()["choices"]
        assert choice["message"]["content"] == text.partition(text[1])[0]
        assert choice["finish_reason"] == "stop"
    several = client.post("/v1/chat/completions", json=body(served, pictures[0], n=2, temperature=1.0, seed=1)).json()
    assert [choice["index"] for choice in several["choices"]] == [0, 1]


def test_what_a_captioner_cannot_answer(
    served: ServedCaptioner, client: TestClient, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = client.post("/v1/chat/completions", json=body(served, pictures[0], pictures[1]))
    assert two.status_code == 400
    assert "captions one image" in two.json()["error"]["message"]
    dialogue = body(served, pictures[0])
    dialogue["messages"] += [{"role": "assistant", "content": "A dog."}, {"role": "user", "content": "And?"}]
    assert "continues no dialogue" in client.post("/v1/chat/completions", json=dialogue).json()["error"]["message"]

    def fail(**settings: Any) -> Any:
        raise ValueError("no such cache")

    monkeypatch.setattr(served.captioner.backend.model, "generate", fail)  # type: ignore[attr-defined]
    failed = client.post("/v1/chat/completions", json=body(served, pictures[0]))
    assert failed.status_code == 400
    assert "cannot caption with these settings (ValueError: no such cache)" in failed.json()["error"]["message"]
    monkeypatch.undo()
    assert answer(client, body(served, pictures[0])) == caption(served.captioner, pictures[0])


def test_a_model_that_reads_no_words(pictures: list[Image.Image], tmp_path: Path) -> None:
    made = load_served(str(save_family("vision-encoder-decoder", tmp_path)))
    assert isinstance(made, ServedCaptioner)
    with TestClient(serving_application(made, hosts=None)) as client:  # type: ignore[arg-type]
        assert answer(client, body(made, pictures[0])) == caption(made.captioner, pictures[0])
        response = client.post("/v1/chat/completions", json=body(made, pictures[0], "What is it?"))
        assert response.status_code == 400
        assert "takes no instruction" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_scores_that_are_not_numbers_are_an_error_of_the_server(
    client: TestClient, served: ServedCaptioner, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    inputs = served.captioner.backend.inputs  # type: ignore[attr-defined]
    batch = inputs.batch

    def overflow(images: Any, text: Any) -> Any:
        made = batch(images, text)
        made["pixel_values"].fill_(float("nan"))
        return made

    monkeypatch.setattr(inputs, "batch", overflow)
    response = client.post("/v1/chat/completions", json=body(served, Image.new("RGB", (40, 30)), stream=stream))
    assert response.status_code == 500
    assert "scores are not numbers" in response.json()["error"]["message"]
