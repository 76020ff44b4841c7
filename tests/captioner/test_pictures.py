"""What becomes of images that are not plain, one by one, read exactly and read fast.

CMYK, palette, grey      as Pillow's RGB
alpha                    dropped, not blended
grey of 16 bits          scaled to 8 bits
EXIF rotation            turned upright, unless images are asked for as stored
animated                 the first frame
zero bytes, truncated, no image, too many pixels                  refused with a reason
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captune.captioner.jpeg_decoder import TurboJpegDecoder
from captune.data.images import CLIP_STD, load_image, read_image, to_pixels
from captune.errors import DataError

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
    whole = io.BytesIO()
    scene().save(whole, "jpeg")
    file.write(whole.getvalue()[:-700])


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
    assert np.array_equal(np.asarray(read_image(Image.open(io.BytesIO(bytes_of(deep))))), grey), (
        "opened by somebody else"
    )
    first = np.asarray(read_image(bytes_of(animated)))
    assert np.abs(first.astype(int) - np.asarray(scene()).astype(int)).mean() < 25, "not the red frame behind it"
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
    """Or leaves the file to Pillow, and with it what is said of a bad one."""
    data = bytes_of(READ[kind] if kind in READ else REFUSED[kind][0])
    quick = fast.square(data, SIZE, exif=False)
    if kind in ("jpeg", "progressive", "4:4:4", "odd size", "one pixel", "grey jpeg", "turned"):
        assert quick is not None
        wanted = to_pixels(read_image(data, exif=False), SIZE)
        assert quick.shape == wanted.shape
        assert quick.dtype == wanted.dtype
        assert np.abs(quick - wanted).max() <= LEVEL * 1.001
        assert np.abs(quick - wanted).mean() < LEVEL / 20
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
    wanted = fast.square((tmp_path / "a.jpg").read_bytes(), SIZE)
    assert wanted is not None
    assert np.array_equal(fast.square(tmp_path / "a.jpg", SIZE), wanted)
    assert fast.square(tmp_path / "absent.jpg", SIZE) is None
    assert fast.square(tmp_path, SIZE) is None
    assert fast.square(scene(), SIZE) is None


def test_fast_decoding_refuses_bombs(fast: TurboJpegDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.captioner.jpeg_decoder.MAX_PIXELS", 160 * 110 - 1)
    assert fast.square(bytes_of(READ["jpeg"]), SIZE) is None
