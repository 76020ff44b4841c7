"""`stop` and `n` as OpenAI's client sends them, streaming or not; and the rule behind `stop`."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from captune.apps.serving.served_models import ServedModel, load_served
from captune.decoding import DecodingOptions, Request, StopRule, generate_ids
from captune.decoding.text_stream import TextStream


def _streamed(chunks: Any) -> tuple[dict[int, str], dict[int, str], Any]:
    """Text and finish reason of each choice, and the usage."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    usage = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason is not None:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, usage


@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_ends_before_its_stop_sequence(ask: Any, pictures: list[Image.Image], beams: int) -> None:
    body = {"num_beams": beams}
    complete = ask(pictures[2], extra_body=body)
    text = complete.choices[0].message.content
    words = text.split()
    assert len(words) > 4
    for stop in (
        words[3],
        [words[4], words[2]],
        words[2][1:] + " " + words[3][:2],
        " ",
        text[5:7],
        ["never said", words[1]],
    ):
        stops = [stop] if isinstance(stop, str) else stop
        expected = text[: min(text.index(one) for one in stops if one in text)]
        answer = ask(pictures[2], stop=stop, extra_body=body)
        if beams == 1:
            assert answer.choices[0].message.content == expected, stop
            assert answer.usage.completion_tokens < complete.usage.completion_tokens
        assert answer.choices[0].finish_reason == "stop"
        assert not any(one in answer.choices[0].message.content for one in stops)
        texts, reasons, usage = _streamed(
            ask(pictures[2], stop=stop, stream=True, stream_options={"include_usage": True}, extra_body=body)
        )
        assert texts == {0: answer.choices[0].message.content}
        assert reasons == {0: "stop"}
        assert usage == answer.usage


def test_a_stop_sequence_that_does_not_occur_changes_nothing(ask: Any, pictures: list[Image.Image]) -> None:
    complete = ask(pictures[2])
    for stop in ("never said", ["never", "said so"], [], None, complete.choices[0].message.content + " and"):
        assert ask(pictures[2], stop=stop).choices[0].message.content == complete.choices[0].message.content
    short = ask(pictures[2], stop="never said", max_tokens=3)
    assert short.choices[0].finish_reason == "length"


def test_several_answers(ask: Any, pictures: list[Image.Image]) -> None:
    alone = ask(pictures[1], temperature=1.5, seed=4)
    several = ask(pictures[1], temperature=1.5, seed=4, n=6)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == list(range(6))
    assert texts[0] == alone.choices[0].message.content
    assert len(set(texts)) > 1
    assert several.usage.prompt_tokens == alone.usage.prompt_tokens
    assert several.usage.completion_tokens > 2 * alone.usage.completion_tokens
    assert several.usage.total_tokens == several.usage.prompt_tokens + several.usage.completion_tokens
    streamed, reasons, usage = _streamed(
        ask(pictures[1], temperature=1.5, seed=4, n=6, stream=True, stream_options={"include_usage": True})
    )
    assert [streamed[number] for number in range(6)] == texts
    assert [reasons[number] for number in range(6)] == [choice.finish_reason for choice in several.choices]
    assert usage == several.usage
    greedy = [choice.message.content for choice in ask(pictures[1], n=3).choices]
    assert greedy == [ask(pictures[1]).choices[0].message.content] * 3


def test_several_answers_that_stop(ask: Any, pictures: list[Image.Image]) -> None:
    free = ask(pictures[3], temperature=1.2, seed=1, n=4)
    stopped = ask(pictures[3], temperature=1.2, seed=1, n=4, stop=["e", "o"])
    for one, other in zip(free.choices, stopped.choices, strict=True):
        text = one.message.content
        ends = [text.index(letter) for letter in "eo" if letter in text]
        assert other.message.content == text[: min(ends, default=len(text))]


@pytest.fixture(scope="module")
def served(served_run: Any) -> ServedModel:
    return load_served(str(served_run))


def test_one_loop_decodes_requests_that_stop_at_different_texts(
    served: ServedModel, pictures: list[Image.Image]
) -> None:
    """Requests with different stop sequences share a forward, and what one stops at is nothing to the others."""
    features = served.encode([served.captioner.prepare(pictures[0])])
    prompt = served.processor.layout.prompt("Describe this image in detail.").ids
    decode = served.processor.tokenizer.decode
    served.select("pretrained")
    for options in (DecodingOptions(), DecodingOptions(temperature=1.0), DecodingOptions(beams=2)):
        free = generate_ids(served.model, [Request(0, prompt, features)], options)[0]
        words = decode(free).split()
        stops = [(), (words[2],), (words[1],), (words[3][-1] + " " + words[4][0],)]
        requests = [
            Request(n, prompt, features, stop=StopRule(served.processor, also=also) if also else None)
            for n, also in enumerate(stops)
        ]
        rows = generate_ids(served.model, requests, options)
        assert rows[0] == free
        for row, also in zip(rows[1:], stops[1:], strict=True):
            assert also[0] in decode(row)
            assert also[0] not in decode(row[:-1])
            if options.beams == 1:
                assert row == free[: len(row)]


def test_a_stream_never_gives_a_piece_of_a_stop_sequence(served: ServedModel) -> None:
    text = "a small red boat on the sea"
    ids = served.processor.tokenizer.encode(text)
    for stop in ("red", " red", "red boat", "d b", "small r", "sea", "a"):
        expected = text[: text.index(stop)]
        rule, stream, pieces = StopRule(served.processor, also=[stop]), TextStream(served.processor, [stop]), []
        for count in range(1, len(ids) + 1):
            ended = rule.ended(ids[: count - 1], ids[count - 1])
            pieces.append(stream.push(ids[:count], ended=ended))
            assert expected.startswith("".join(pieces))
            if ended:
                break
        assert "".join(pieces) == stream.text == expected
        assert stream.stopped
