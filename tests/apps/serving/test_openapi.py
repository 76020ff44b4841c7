"""schemathesis against the served description: whatever is sent, nothing is answered with 5xx."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from .conftest import data_url

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

OPERATIONS = ("POST /v1/chat/completions", "GET /v1/models", "GET /v1/models/{model}", "GET /health", "GET /metrics")
CONSTANT = ("GET /v1/models", "GET /health", "GET /metrics")
EXAMPLES = 50


@pytest.fixture(scope="module")
def api(server: Any) -> dict[str, Any]:
    """The operations of the description that the server gives of itself."""
    description = schemathesis.openapi.from_url(f"{server[1]}/openapi.json")
    return {result.ok().label: result.ok() for result in description.get_all_operations()}


def test_the_description_names_every_path(api: dict[str, Any]) -> None:
    assert set(api) == set(OPERATIONS)


@pytest.mark.parametrize(
    ("label", "mode", "model"),
    [
        *((label, "POSITIVE", None) for label in OPERATIONS),
        ("POST /v1/chat/completions", "NEGATIVE", None),
        # With a model that exists, requests get further than the error that there is none.
        ("POST /v1/chat/completions", "POSITIVE", "epoch0"),
        ("POST /v1/chat/completions", "NEGATIVE", "epoch0"),
    ],
)
def test_nothing_is_answered_with_5xx(
    api: dict[str, Any], label: str, mode: str, model: str | None, pictures: list[Image.Image]
) -> None:
    """Requests that fit the description, and requests that do not."""
    cases: st.SearchStrategy[Any] = api[label].as_strategy(generation_mode=schemathesis.GenerationMode[mode])
    statuses = Counter[int]()

    @given(case=cases)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        if model is not None and isinstance(case.body, dict):
            case.body["model"] = model
            if mode == "POSITIVE":
                # No generated text is an image; what remains are settings.
                part = {"type": "image_url", "image_url": data_url(pictures[0])}
                case.body["messages"] = [{"role": "user", "content": [part]}]
        answer = case.call(timeout=60)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (answer.status_code, answer.text[:500])
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]

    check()
    if model is not None and mode == "POSITIVE":
        assert statuses[200] > 0, statuses
    assert statuses.total() >= (1 if label in CONSTANT else EXAMPLES // 2)
