"""One interface for every captioner and every form of image; a batch gives what single images give."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioner_models import MODELS, save
from PIL import Image
from tiny import reference_captions

import captune
from captune.captioner import Captioner, MiniGPT4Backend, TransformersBackend
from captune.captioner.jpeg_decoder import TurboJpegDecoder
from captune.data.images import CLIP_STD, load_image, read_image, to_pixels
from captune.decoding import DecodingOptions
from captune.errors import DataError, InputError, WeightsError

SIZES = [(40, 30), (64, 64), (30, 90), (90, 30), (33, 47), (64, 64), (20, 20)]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"beams": 3},
    "penalty": {"repetition_penalty": 1.4},
    "sampled": {"temperature": 1.0, "top_p": 0.9, "seed": 3},
}


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


@pytest.fixture(scope="module")
def toy() -> Captioner:
    return captune.Captioner.from_pretrained("toy")


@pytest.fixture(scope="module", params=MODELS)
def other(request: pytest.FixtureRequest) -> TransformersBackend:
    model, processor = MODELS[request.param]()
    return TransformersBackend(model, processor, name=request.param)


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_equals_single_images(other: TransformersBackend, way: str) -> None:
    prepared = [other.prepare(picture) for picture in pictures()]
    keys = [str(n) for n in range(len(prepared))]
    options = DecodingOptions(max_new_tokens=8, **WAYS[way])
    alone = [other.generate([p], None, options, keys=[key])[0] for p, key in zip(prepared, keys, strict=True)]
    assert len({caption.text for caption in alone}) > 3, "captions depend on the image, or nothing is tested"
    for size in (2, 3, 16):
        settings = DecodingOptions(max_new_tokens=8, batch_size=size, **WAYS[way])
        assert other.generate(prepared, None, settings, keys=keys) == alone, size


def test_the_instruction_is_used(other: TransformersBackend) -> None:
    options = DecodingOptions(max_new_tokens=12)
    prepared = [other.prepare(picture) for picture in pictures()]
    default = other.generate(prepared, None, options)
    answers = other.generate(prepared, "What colour is it?", options)
    assert default != answers
    assert all("What colour" not in caption.text for caption in answers), "the prompt is no part of a caption"
    text = other.prompt("What colour is it?")
    assert text is not None
    assert "What colour is it?" in text


def test_memory_runs_out(other: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = [other.prepare(picture) for picture in pictures()]
    options = DecodingOptions(max_new_tokens=4)
    expected = other.generate(prepared, None, options)
    right = other.processor.__class__.__call__

    def small(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(kwargs["images"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(self, *args, **kwargs)

    monkeypatch.setattr(other.processor.__class__, "__call__", small)
    assert other.generate(prepared, None, options) == expected


@pytest.mark.parametrize("name", MODELS)
def test_from_files(name: str, tmp_path: Path) -> None:
    """As a person loads one: by its folder, with nothing but the files in it."""
    captioner = Captioner.from_pretrained(save(name, tmp_path))
    assert isinstance(captioner.backend, TransformersBackend)
    assert captioner.backend.model.dtype == torch.float32
    reference = Captioner(TransformersBackend(*MODELS[name]()))
    assert captioner(pictures()) == reference(pictures())
    assert captioner.fingerprint == reference.fingerprint


def test_one_image_or_several(toy: Captioner, tmp_path: Path) -> None:
    images = pictures()[:3]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    file = tmp_path / "0.png"
    one = toy(file)
    assert isinstance(one, str)
    assert one
    assert toy(str(file)) == toy(images[0]) == toy(np.asarray(images[0])) == toy(file.read_bytes()) == one
    several = toy([tmp_path / f"{number}.png" for number in range(3)])
    assert several == [toy(image) for image in images]
    assert toy([]) == []
    assert toy([file]) == [one]
    assert isinstance(toy.backend, MiniGPT4Backend)
    assert reference_captions(toy.backend.model, file, max_new_tokens=40) == [one]


def test_pieces_are_the_caption(toy: Captioner, toy_data: Path) -> None:
    for file in sorted((toy_data / "flickr30k-images").iterdir())[:4]:
        pieces = list(toy.stream(file))
        assert len(pieces) > 3
        assert "".join(pieces) == toy(file)
        beams = DecodingOptions(beams=2)
        assert "".join(toy.stream(file, None, beams)) == toy(file, None, beams)
        cut = DecodingOptions(max_new_tokens=5)
        assert "".join(toy.stream(file, None, cut)) == toy(file, None, cut)


def test_bad_images_are_named(toy: Captioner, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg"):
        toy(tmp_path / "empty.jpg")
    with pytest.raises(DataError, match=r"absent\.jpg"):
        toy([tmp_path / "absent.jpg"])
    with pytest.raises(DataError, match="the file is empty"):
        toy(b"")
    with pytest.raises(DataError, match="expected \\(height, width, 3\\) uint8"):
        toy(np.zeros((4, 4, 3)))


def test_models_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="There is no model folder"):
        Captioner.from_pretrained(tmp_path / "absent")
    with pytest.raises(WeightsError, match=r"holds neither config\.json nor adapter_config\.json"):
        Captioner.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 10}))
    with pytest.raises(WeightsError, match="is a llama, which does not caption images"):
        Captioner.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody_knows"}))
    with pytest.raises(WeightsError, match="holds no model"):
        Captioner.from_pretrained(tmp_path)


def test_a_model_without_its_processor(tmp_path: Path) -> None:
    MODELS["llava"]()[0].save_pretrained(tmp_path)
    with pytest.raises(InputError, match="processor"):
        Captioner.from_pretrained(tmp_path)


def test_fingerprints_tell_models_apart(toy: Captioner, tmp_path: Path) -> None:
    assert isinstance(toy.backend, MiniGPT4Backend)
    before, model = toy.fingerprint, toy.backend.model
    assert MiniGPT4Backend(model).fingerprint == before
    weight = model.projection.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[-1, -1] += 1e-6
    try:
        assert MiniGPT4Backend(model).fingerprint != before, "one value of the projection, a little"
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert MiniGPT4Backend(model).fingerprint == before


def test_a_template_with_the_date_is_the_same_on_every_day() -> None:
    model, processor = MODELS["llava"]()
    plain = TransformersBackend(model, processor, name="llava").prompt()
    processor.chat_template = "{{ strftime_now('%d %b %Y %S') }} " + processor.chat_template
    first = TransformersBackend(model, processor, name="llava")
    assert first.prompt() == f"26 Jul 2024 00 {plain}"


SIZE = 48
LEVEL = float(1 / 255 / CLIP_STD.min())
"""One grey level after the transform, at most."""


def scene(width: int = 160, height: int = 110) -> Image.Image:
    """Something with gradients, edges and noise, as photographs have."""
    y, x = np.mgrid[:height, :width]
    random = np.random.default_rng(0)
    colours = np.stack([x * 255 / width, y * 255 / height, 255 * ((x // 16 + y // 16) % 2)], axis=2)
    return Image.fromarray((colours * 0.8 + random.integers(0, 50, colours.shape)).clip(0, 255).astype(np.uint8))


def deep(file: Any) -> None:
    values = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    Image.fromarray(values).save(file, "png")


def turned(file: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene().save(file, "jpeg", exif=exif, quality=95)


def animated(file: Any) -> None:
    scene().save(file, "gif", save_all=True, append_images=[Image.new("RGB", (160, 110), "red")], duration=50)


def cut(file: Any) -> None:
    buffer = io.BytesIO()
    scene().save(buffer, "jpeg")
    file.write(buffer.getvalue()[:-700])


READ: dict[str, Callable[[Any], None]] = {
    "jpeg": lambda file: scene().save(file, "jpeg", quality=90),
    "progressive": lambda file: scene().save(file, "jpeg", progressive=True),
    "4:4:4": lambda file: scene().save(file, "jpeg", subsampling=0),
    "odd size": lambda file: scene(161, 33).save(file, "jpeg"),
    "one pixel": lambda file: scene(1, 1).save(file, "jpeg"),
    "grey jpeg": lambda file: scene().convert("L").save(file, "jpeg"),
    "CMYK": lambda file: scene().convert("CMYK").save(file, "jpeg"),
    "palette": lambda file: scene().convert("P").save(file, "png"),
    "alpha": lambda file: scene().convert("RGBA").save(file, "png"),
    "one bit": lambda file: scene().convert("1").save(file, "png"),
    "16 bits": deep,
    "animated": animated,
    "turned": turned,
    "webp": lambda file: scene().save(file, "webp"),
}
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "zero bytes": (lambda file: None, "empty"),
    "truncated": (cut, "truncated"),
    "text": (lambda file: file.write(b"no image at all"), "no image file"),
    "only the head of a jpeg": (lambda file: file.write(b"\xff\xd8\xff\xe0\x00\x10JFIF"), "cannot decode"),
}


def bytes_of(make: Callable[[Any], Any]) -> bytes:
    file = io.BytesIO()
    make(file)
    return file.getvalue()


@pytest.mark.parametrize("kind", READ)
def test_path_and_bytes_are_read_alike(kind: str, tmp_path: Path) -> None:
    data = bytes_of(READ[kind])
    (tmp_path / "image").write_bytes(data)
    plain = load_image(tmp_path / "image")
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(plain))
    assert np.array_equal(np.asarray(read_image(tmp_path / "image")), np.asarray(plain))
    assert plain.mode == "RGB"


def test_what_the_kinds_become() -> None:
    upright = np.asarray(read_image(bytes_of(turned)))
    lying = np.asarray(read_image(bytes_of(turned), exif=False))
    assert upright.shape == (160, 110, 3)
    assert np.array_equal(upright, np.rot90(lying, -1))
    grey = np.asarray(read_image(bytes_of(deep)))
    assert grey[0, 0].tolist() == [0, 0, 0]
    assert grey[-1, -1].tolist() == [255, 255, 255]
    assert 120 < grey[20].mean() < 136
    assert np.array_equal(np.asarray(read_image(Image.open(io.BytesIO(bytes_of(deep))))), grey), "opened by the caller"
    first = np.asarray(read_image(bytes_of(animated)))
    assert np.abs(first.astype(int) - np.asarray(scene()).astype(int)).mean() < 25, "not the red frame after it"
    see_through = scene().convert("RGBA")
    see_through.putalpha(0)
    data = bytes_of(lambda file: see_through.save(file, "png"))
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(scene()))
    ink = np.asarray(read_image(bytes_of(READ["CMYK"]))).astype(int)
    assert np.abs(ink - np.asarray(scene()).astype(int)).mean() < 12


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, tmp_path: Path) -> None:
    make, word = REFUSED[kind]
    path = tmp_path / "bad.jpg"
    path.write_bytes(bytes_of(make))
    with pytest.raises(DataError, match=word) as caught:
        read_image(path)
    assert "bad.jpg" in str(caught.value)
    with pytest.raises(DataError, match=r"tar:bad\.jpg"):
        read_image(path.read_bytes(), "tar:bad.jpg")


@pytest.fixture(scope="module")
def fast() -> TurboJpegDecoder:
    pytest.importorskip("simplejpeg")
    return TurboJpegDecoder()


@pytest.mark.parametrize("kind", [*READ, *REFUSED])
def test_fast_decoding_is_one_grey_level_apart_at_most(fast: TurboJpegDecoder, kind: str) -> None:
    """Or leaves the file, and the error message of a bad one, to Pillow."""
    data = bytes_of(READ[kind] if kind in READ else REFUSED[kind][0])
    quick = fast.square(data, SIZE, exif=False)
    if kind in ("jpeg", "progressive", "4:4:4", "odd size", "one pixel", "grey jpeg", "turned"):
        assert quick is not None
        expected = to_pixels(read_image(data, exif=False), SIZE)
        assert quick.shape == expected.shape
        assert quick.dtype == expected.dtype
        assert np.abs(quick - expected).max() <= LEVEL * 1.001
        assert np.abs(quick - expected).mean() < LEVEL / 20
    else:
        assert quick is None
    image = fast.image(data)
    if kind == "turned":
        assert image is None, "Pillow turns it upright"
        assert fast.square(data, SIZE) is None
    elif image is not None:
        assert np.array_equal(np.asarray(image), np.asarray(read_image(data))), "decoded to the bit"


def test_fast_decoding_of_paths_and_others(fast: TurboJpegDecoder, tmp_path: Path) -> None:
    scene().save(tmp_path / "a.jpg")
    expected = fast.square((tmp_path / "a.jpg").read_bytes(), SIZE)
    assert expected is not None
    assert np.array_equal(fast.square(tmp_path / "a.jpg", SIZE), expected)
    assert fast.square(tmp_path / "absent.jpg", SIZE) is None
    assert fast.square(tmp_path, SIZE) is None
    assert fast.square(scene(), SIZE) is None


def test_fast_decoding_refuses_bombs(fast: TurboJpegDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.captioner.jpeg_decoder.MAX_PIXELS", 160 * 110 - 1)
    assert fast.square(bytes_of(READ["jpeg"]), SIZE) is None
