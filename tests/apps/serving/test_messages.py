"""Messages to prompts: where images go, which prompt an image alone gets, and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image
from pydantic import TypeAdapter

from captune.apps.serving.messages import Dialogue, layout_prompt, read_messages
from captune.apps.serving.request_images import ImageLimits, decode_data_url
from captune.apps.serving.schema import APIError, Message

INSTRUCTION = "Describe this image in detail."
IMAGE = "<Img><ImageHere></Img>"


def _png(side: int = 4) -> str:
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _image(url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or _png()}}


def _read(*messages: dict[str, Any], limits: ImageLimits | None = None, **settings: Any) -> Any:
    parsed = TypeAdapter(list[Message]).validate_python(list(messages))
    return read_messages(parsed, INSTRUCTION, limits or ImageLimits(), **settings)


def _user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def test_an_image_alone_gets_the_instruction_of_training() -> None:
    assert _read(_user(_image())).question == f"{IMAGE} {INSTRUCTION}"
    assert _read(_user(_image(), " ")).question == f"{IMAGE} {INSTRUCTION}"
    assert _read(_user(_image(), "What?")).question == f"{IMAGE} What?"
    assert _read(_user("Look:", _image(), "What?")).question == f"Look: {IMAGE} What?"
    assert _read(_user(_image()), {"role": "user", "content": "Hello"}).question == f"{IMAGE} Hello"


def test_a_dialogue() -> None:
    dialogue = _read(
        {"role": "system", "content": "Be brief."},
        _user(_image(), "What?"),
        {"role": "assistant", "content": "A dog."},
        _user("Colour?"),
        _user("Say!"),
    )
    assert dialogue.turns == ((f"Be brief. {IMAGE} What?", "A dog."),)
    assert dialogue.question == "Colour? Say!"
    assert len(dialogue.images) == 1


def test_texts_cannot_pretend_to_be_images() -> None:
    dialogue = _read(_user(_image(), "<ImageHere><ImageHere>What?"))
    assert dialogue.question == f"{IMAGE} What?"


def test_remote_images_are_fetched_only_where_somebody_may() -> None:
    with pytest.raises(APIError, match="not fetched"):
        _read(_user(_image("http://10.0.0.1/x.png")))
    data = base64.b64decode(_png().split(",")[1])
    assert _read(_user(_image("https://a.example/x.png")), fetch=lambda url: data).images == (data,)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([{"role": "assistant", "content": "hm"}], "begin and end"),
        ([_user("a"), {"role": "assistant", "content": "b"}], "begin and end"),
        ([{"role": "system", "content": "only"}], "begin and end"),
        ([{"role": "system", "content": [_image()]}, _user("a")], "Only messages of the user"),
        ([_user(*[_image()] * 9)], "8 images"),
        ([_user(_image("data:image/png;base64,AAA="))], "no image file"),
        ([{"role": "user", "content": "Hello"}], "hold no image"),
        ([_user("What is a dog?")], "hold no image"),
        ([_user(_image("javascript:alert(1)"))], "data:image/jpeg;base64"),
        ([_user(_image(""" data:image/png;base64,AAAA"""))], "data:image/jpeg;base64"),
    ],
)
def test_what_is_refused(messages: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(APIError, match=sentence) as caught:
        _read(*messages)
    assert caught.value.status == 400
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def _alphabet() -> bytes:
    """A small PNG whose base64 has both letters that the alphabet for URLs writes otherwise, and padding."""
    for red in range(256):
        out = io.BytesIO()
        Image.new("RGB", (5, 3), (red, 251, 190)).save(out, "PNG")
        text = base64.b64encode(out.getvalue())
        if b"+" in text and b"/" in text and text.endswith(b"="):
            return out.getvalue()
    raise AssertionError("no colour does it")


@pytest.mark.parametrize(
    "written",
    [
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.b64encode(data).decode().rstrip("="),
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
        lambda data: base64.encodebytes(data).decode().replace("\n", "\r\n"),
        lambda data: base64.encodebytes(data).decode().replace("\n", " \t"),
        lambda data: quote(base64.b64encode(data).decode(), safe=""),
        lambda data: base64.b64encode(data).decode().replace("+", "%2b").replace("/", "%2f").replace("=", "%3d"),
    ],
)
def test_base64_as_clients_write_it(written: Callable[[bytes], str]) -> None:
    data = _alphabet()
    assert decode_data_url(f"data:image/png;base64,{written(data)}", ImageLimits(), "here") == data


@pytest.mark.parametrize("text", ["A", "AAAAA", "AA=A", "AAA=AAAA", "A*AA", "AAAé", "=A=="])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(APIError, match="base64 is malformed"):
        decode_data_url(f"data:image/png;base64,{text}", ImageLimits(), "here")


def test_a_text_of_any_length_is_measured_before_it_is_tokenized() -> None:
    class _Untouched:
        def reply(self, *_: object) -> None:
            raise AssertionError("it was tokenized")

    dialogue = Dialogue((("word " * 1000, "yes"),), "word " * 2000, (b"",))
    with pytest.raises(APIError, match="15,003 characters, and the model reads 200 tokens") as caught:
        layout_prompt(_Untouched(), dialogue, 200, 5)  # type: ignore[arg-type]
    assert caught.value.body["error"]["code"] == "context_length_exceeded"


def test_images_are_measured_before_they_are_decoded() -> None:
    with pytest.raises(APIError, match="101 x 101 pixels") as caught:
        _read(_user(_image(_png(101))), limits=ImageLimits(pixels=10_000))
    assert caught.value.status == 413
    assert caught.value.body["error"]["code"] == "image_too_large"
    assert len(_read(_user(_image(_png(100))), limits=ImageLimits(pixels=10_000)).images) == 1
