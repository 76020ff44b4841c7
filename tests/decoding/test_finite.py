"""Scores that are not numbers never become a caption, and cost no neighbour its own."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from captune.decoding import DecodingOptions, Request, generate_captions, generate_ids
from captune.decoding.generate import Engine
from captune.decoding.sampling import sample, warp_logits
from captune.decoding.text_stream import stream_text
from captune.errors import ConfigError, NonFiniteScoresError
from captune.model import MiniGPT4

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "beams": {"beams": 3, "length_penalty": 0.6},
    "sampled": {"temperature": 0.1, "top_k": 20, "top_p": 0.9, "seed": 5},
    "compiled": {"compiled": True},
}
ENGINES: tuple[Engine, ...] = ("captune", "transformers")


def options(way: str, size: int) -> DecodingOptions:
    return DecodingOptions(**{"max_new_tokens": 14, "batch_size": size, **WAYS[way]})


def mixed(model: MiniGPT4, features: Tensor) -> list[Request]:
    texts = itertools.cycle(("Describe it.", "What is this, and where?", "Say"))
    layout = model.processor.layout
    return [Request(n, layout.prompt(next(texts)).ids, features[n : n + 1], key=str(n)) for n in range(len(features))]


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one shape through the model's own layers: what a compiler makes of them is tested elsewhere."""
    monkeypatch.setattr("captune.decoding.cuda_graph.CompiledForward", lambda llm: llm)


@contextlib.contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def refused(run: Callable[[], object]) -> tuple[list[Any], set[int]]:
    """What is kept, and the places of what is refused."""
    with pytest.raises(NonFiniteScoresError, match="scores are not numbers") as raised:
        run()
    return raised.value.captions, set(raised.value.reasons)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", WAYS)
def test_features_that_are_not_numbers_cost_their_image_alone(
    model: MiniGPT4, features: Tensor, way: str, engine: Engine
) -> None:
    spoiled = features.clone()
    for image, value in ((0, torch.nan), (4, torch.inf), (5, -torch.inf)):
        spoiled[image, 0, :2] = value
    # This one overflows after its features: the keys and values of its slot are not numbers.
    spoiled[7, :, 0] = marked = 1234.5

    def overflow(inputs: Tensor, project: Callable[[Tensor], Tensor] = model.project) -> Tensor:
        return project(inputs).masked_fill((inputs[..., :1] == marked).any(dim=1, keepdim=True), torch.inf)

    expected = generate_ids(model, mixed(model, features), options(way, 5))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "project", overflow)
        for size in (1, 3, 12):
            kept, bad = refused(lambda: generate_ids(model, mixed(model, spoiled), options(way, size), engine=engine))  # noqa: B023
            assert bad == {0, 4, 5, 7}, size
            assert kept == [None if n in bad else row for n, row in enumerate(expected)], size


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_breaks_in_the_middle(model: MiniGPT4, features: Tensor, way: str, engine: Engine) -> None:
    """A word whose embedding is NaN: rows that say it are lost from there on, and no others."""
    requests = mixed(model, features)
    rows = generate_ids(model, requests, options(way, 5))
    generated = {token for row in rows for token in row[1:-1]} - {t for r in requests for t in r.prompt}
    counts = {token: sum(token in row[:-1] for row in rows) for token in generated}
    word = min(counts, key=lambda token: (abs(counts[token] - 4), token))
    assert 0 < counts[word] < len(rows)

    def poison(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output.masked_fill((inputs[0] == word).unsqueeze(-1), torch.nan)

    with hooked(model.get_input_embeddings(), poison):
        for size in (1, 3, 12):
            kept, bad = refused(lambda: generate_ids(model, requests, options(way, size), engine=engine))  # noqa: B023
            assert bad >= {n for n, row in enumerate(rows) if word in row[:-1]}
            if way != "beams":  # a beam that is not the answer may say the word, too
                assert bad == {n for n, row in enumerate(rows) if word in row[:-1]}
            assert kept == [None if n in bad else row for n, row in enumerate(rows)], size


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", WAYS)
def test_which_logits_are_faults(model: MiniGPT4, features: Tensor, way: str, engine: Engine) -> None:
    requests = mixed(model, features[:3])
    rows = generate_ids(model, requests, options(way, 3))
    unsaid = sorted(set(range(model.config.text_config.vocab_size)) - {token for row in rows for token in row})[:20]

    def set_logits(value: float, token_ids: list[int] | None) -> Callable[..., Any]:
        def change(module: Any, arguments: Any, output: Any) -> Any:
            selected = slice(None) if token_ids is None else token_ids
            output.logits[..., selected] = value
            return output

        return change

    with hooked(model.llm, set_logits(-torch.inf, unsaid)):
        assert way == "sampled" or generate_ids(model, requests, options(way, 3), engine=engine) == rows
    for value, token_ids in ((torch.nan, unsaid[:1]), (torch.inf, unsaid[:1]), (-torch.inf, None), (torch.nan, None)):
        with hooked(model.llm, set_logits(value, token_ids)):
            kept, bad = refused(lambda: generate_ids(model, requests, options(way, 3), engine=engine))
        assert (kept, bad) == ([None] * 3, {0, 1, 2}), (value, token_ids)


def test_captions_and_streams(model: MiniGPT4, features: Tensor) -> None:
    spoiled = features.clone()
    spoiled[1] = torch.nan
    captions = generate_captions(model, features[:3], "Say", options("greedy", 3))
    kept, bad = refused(lambda: generate_captions(model, spoiled[:3], "Say", options("greedy", 3)))
    assert (kept, bad) == ([captions[0], None, captions[2]], {1})
    for way in ("greedy", "beams"):
        request = mixed(model, spoiled)[1]
        refused(lambda: list(stream_text(model, request, options(way, 1))))  # noqa: B023


@pytest.mark.parametrize("temperature", [1e-45, 1e-20, 1e-6])
def test_any_temperature_draws_a_token(temperature: float) -> None:
    scores = torch.tensor([[1e4, 1e4 - 1, -3e4], [-2e4, 0.0, 1.0]])
    left = warp_logits(scores, DecodingOptions(temperature=temperature, top_p=0.9))
    assert sample(left, torch.tensor([0.5, 0.5])).tolist() == [0, 2]


@pytest.mark.parametrize("penalty", [1.4e-45, 0.0, 1e38, float("nan")])
def test_a_penalty_that_leaves_no_numbers_is_refused(penalty: float) -> None:
    with pytest.raises(ConfigError, match=r"0\.01 to 100"):
        DecodingOptions(repetition_penalty=penalty)
