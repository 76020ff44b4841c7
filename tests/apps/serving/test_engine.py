"""The engine without a server: company, fairness, failures that stay where they belong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captune.apps.serving.engine import Engine
from captune.apps.serving.jobs import Event, Job, Metrics, Pixels
from captune.apps.serving.schema import APIError
from captune.apps.serving.served_models import ServedModel, load_served
from captune.decoding import DecodingOptions
from captune.errors import InputError, WeightsError


@pytest.fixture(scope="module")
def served(served_run: Path) -> ServedModel:
    return load_served(str(served_run))


@pytest.fixture
def engine(served: ServedModel) -> Iterator[Engine]:
    engine = Engine(served, Metrics(), slots=4, most_waiting=50)
    yield engine
    if engine._thread.ident is not None:
        engine.stop()


class Asker:
    """Collects the events of one job."""

    def __init__(
        self, served: ServedModel, picture: Image.Image, checkpoint: str = "pretrained", **options: Any
    ) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        prompt = served.processor.layout.prompt("Describe this image in detail.").ids
        pixels = Pixels.of(served.captioner.prepare(picture))
        self.job = Job(checkpoint, prompt, (pixels,), DecodingOptions(**options), "", self._tell)

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if event.finish is not None or event.error is not None:
            self.ended.set()

    @property
    def text(self) -> str:
        assert self.ended.wait(60)
        assert self.events[-1].error is None, self.events[-1].error
        assert "".join(event.piece for event in self.events) == self.events[-1].text
        return self.events[-1].text

    @property
    def error(self) -> APIError:
        assert self.ended.wait(60)
        assert self.events[-1].error is not None
        return self.events[-1].error


def test_more_jobs_than_slots_and_more_kinds_than_groups(
    engine: Engine, served: ServedModel, pictures: list[Image.Image]
) -> None:
    askers = [
        Asker(served, pictures[number], ("pretrained", "epoch0", "epoch1")[number % 3], max_new_tokens=20 + number // 8)
        for number in range(40)
    ]
    engine.start()
    for asker in askers:
        engine.submit(asker.job)
    texts = [asker.text for asker in askers]
    engine.stop()
    for number in (0, 9, 17, 39):
        served.select(askers[number].job.checkpoint)
        alone = served.captioner.generate(
            [served.captioner.prepare(pictures[number])], options=askers[number].job.options
        )
        assert texts[number] == alone[0].text


def test_a_stopped_engine_refuses(engine: Engine, served: ServedModel, pictures: list[Image.Image]) -> None:
    engine.start()
    asker = Asker(served, pictures[0])
    engine.submit(asker.job)
    assert asker.text
    engine.stop()
    with pytest.raises(APIError) as caught:
        engine.submit(Asker(served, pictures[0]).job)
    assert caught.value.status == 503
    assert not engine.alive


def test_cancelled_jobs_are_not_decoded(engine: Engine, served: ServedModel, pictures: list[Image.Image]) -> None:
    left, stays = Asker(served, pictures[0]), Asker(served, pictures[1])
    engine.start()
    with engine._changed:
        left.job.cancelled = True
        engine._waiting.append(left.job)
        engine._waiting.append(stays.job)
        engine._changed.notify()
    assert stays.text
    assert left.events == []


def test_jobs_taken_in_before_the_end_are_answered(
    engine: Engine, served: ServedModel, pictures: list[Image.Image]
) -> None:
    engine.start()
    askers = [Asker(served, picture) for picture in pictures[:12]]
    for asker in askers:
        engine.submit(asker.job)
    engine.stop()
    assert all(asker.ended.is_set() for asker in askers)
    assert all(asker.text for asker in askers)


def test_short_memory_means_fewer_at_once_and_the_same_answers(
    engine: Engine, served: ServedModel, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    from captune.decoding import DecodingEngine

    calls, step = 0, DecodingEngine.step

    def failing(loop: DecodingEngine) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.OutOfMemoryError("no more")
        return step(loop)

    served.select(served.names[-1])
    expected = served.captioner.generate([served.captioner.prepare(picture) for picture in pictures[:4]])
    monkeypatch.setattr(DecodingEngine, "step", failing)
    askers = [Asker(served, picture, served.names[-1]) for picture in pictures[:4]]
    engine.start()
    for asker in askers:
        engine.submit(asker.job)
    assert [asker.text for asker in askers] == [caption.text for caption in expected]
    assert calls > 4
    assert engine._slots == 2


@pytest.mark.parametrize("method", ["step", "admit"])
def test_a_failure_is_reported_to_its_jobs_and_the_engine_lives(
    engine: Engine,
    served: ServedModel,
    pictures: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    from captune.decoding import DecodingEngine

    def failing(*_: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(DecodingEngine, method, failing)
        engine.start()
        asker = Asker(served, pictures[0])
        engine.submit(asker.job)
        assert asker.error.status == 500
        assert "division" not in str(asker.error)
    again = Asker(served, pictures[0])
    engine.submit(again.job)
    assert again.text


def test_an_image_that_cannot_be_encoded_fails_alone(
    engine: Engine, served: ServedModel, pictures: list[Image.Image]
) -> None:
    broken, intact = Asker(served, pictures[0]), Asker(served, pictures[1])
    broken.job.images = (Pixels("odd", broken.job.images[0].values[:, :3]),)
    engine.start()
    engine.submit(broken.job)
    assert broken.error.status == 500
    engine.submit(intact.job)
    assert intact.text


def test_an_image_is_encoded_once(engine: Engine, served: ServedModel, pictures: list[Image.Image]) -> None:
    engine.start()
    for name in served.names:
        asker = Asker(served, pictures[0], name)
        engine.submit(asker.job)
        assert asker.text
    assert b"captune_images_total 1.0" in engine._metrics.text()


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"neither config\.json"):
        load_served(str(tmp_path))
    with pytest.raises(InputError):
        load_served(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("through_transformers", [False, True])
@pytest.mark.parametrize("beams", [1, 2])
def test_scores_that_are_not_numbers_fail_only_their_request(
    engine: Engine,
    served: ServedModel,
    pictures: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    through_transformers: bool,
    beams: int,
) -> None:
    encode = served.encode

    def overflow(pixels: Any) -> torch.Tensor:
        return torch.stack([each * (torch.nan if n == 1 else 1) for n, each in enumerate(encode(pixels))])

    monkeypatch.setattr(served, "encode", overflow)
    if through_transformers:  # answers are not streamed; they come from transformers' generate
        for module in ("captune.apps.serving.engine", "captune.decoding.generate"):
            monkeypatch.setattr(f"{module}.unsupported_reason", lambda *_: "told so")
    askers = [Asker(served, picture, max_new_tokens=5, beams=beams) for picture in pictures[:3]]
    with engine._changed:
        engine._waiting.extend(asker.job for asker in askers)
    engine.start()
    assert askers[0].text
    assert askers[2].text
    assert askers[1].error.status == 500
    assert "scores are not numbers" in askers[1].error.body["error"]["message"]
    assert askers[1].error.body["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_fails_at_once_has_an_error_status(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    from fastapi.testclient import TestClient

    from captune.apps.serving.server import serving_application

    encode = served.encode
    monkeypatch.setattr(served, "encode", lambda pixels: encode(pixels) * torch.nan)
    # A red point.
    data = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]
    request = {"model": "pretrained", "messages": [{"role": "user", "content": content}], "stream": stream}
    with TestClient(serving_application(served, hosts=None)) as client:  # type: ignore[arg-type]
        response = client.post("/v1/chat/completions", json=request)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "scores_not_finite"
    assert response.json()["error"]["type"] == "server_error"
