"""Image files of any kind become RGB pixels, and every bad file is one sentence."""

from __future__ import annotations

import errno
import io
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from captune.data import image_formats
from captune.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    check_image,
    decode_image,
    load_image,
    read_image,
    to_pixels,
    to_rgb,
)
from captune.errors import DataError


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 5 % 256, y * 7 % 256, (x + y) * 3 % 256], axis=-1).astype(np.uint8))


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    gradient(320, 200).save(tmp_path / "a.jpg", quality=90)
    return tmp_path / "a.jpg"


@pytest.mark.parametrize("variant", ["minigpt4_vicuna", "minigpt4_llama2", "minigpt_v2"])
def test_pixels_are_bit_equal_to_the_original(shared: Path, variant: str) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy", reason="needs the extra 'train'")
    goldens = shared / "goldens"
    expected = numpy_files.load_file(goldens / variant / "expected" / "vision.safetensors")["pixel_values"]
    got = np.stack([to_pixels(load_image(goldens / f"images/img_{i}.png"), expected.shape[-1]) for i in range(6)])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def test_pixels_by_the_formula() -> None:
    image = gradient()
    square = np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = ((square - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)
    got = to_pixels(image, 20)
    assert got.shape == (3, 20, 20)
    assert got.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "HSV", "LAB"])
def test_every_mode_of_eight_bits_looks_as_in_the_original(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "YCbCr", "LAB", "I") else "png"
    stored = gradient().convert("L").convert(mode) if mode == "I" else gradient().convert(mode)
    if mode == "HSV":
        np.testing.assert_array_equal(to_rgb(stored), stored.convert("RGB"))
        return
    stored.save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / f"a.{suffix}")), expected)


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    palette = gradient().quantize(16)
    palette.save(tmp_path / "a.png", transparency=bytes(range(0, 256, 16)))
    loaded = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(palette.convert("RGB")))


def test_grey_of_sixteen_bits_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
        loaded = np.asarray(load_image(tmp_path / f"a.{suffix}"))
        np.testing.assert_array_equal(loaded[..., 0], deep >> 8)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)


def test_images_come_upright_unless_requested_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient().save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg", exif=False).size == (48, 32)
    assert load_image(tmp_path / "a.jpg").size == (32, 48)


def test_checking_says_the_stored_size(jpeg: Path) -> None:
    assert check_image(jpeg) == (320, 200)


def test_loading_and_checking_agree_on_damaged_jpegs(jpeg: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    complete = jpeg.read_bytes()
    verdicts = []
    for trial in range(60):
        data = bytearray(complete)
        if trial % 2:
            for _ in range(3):
                data[rng.randrange(len(data))] = rng.randrange(256)
        else:
            del data[rng.randrange(len(data) - 2) :]
        (tmp_path / "b.jpg").write_bytes(data)
        both = []
        for read in (load_image, check_image):
            try:
                read(tmp_path / "b.jpg")
                both.append("good")
            except DataError:
                both.append("bad")
        assert both[0] == both[1]
        verdicts.append(both[0])
        assert trial % 2 or both[0] == "bad"
    assert {"good", "bad"} == set(verdicts)


def test_every_truncation_of_every_format_is_a_sentence_that_names_the_file(tmp_path: Path) -> None:
    for format_name in ("PNG", "GIF", "WEBP", "TIFF", "BMP"):
        buffer = io.BytesIO()
        gradient().save(buffer, format_name)
        data = buffer.getvalue()
        for cut in (1, 5, 30, len(data) // 2):
            path = tmp_path / f"cut.{format_name.lower()}"
            path.write_bytes(data[:cut])
            with pytest.raises(DataError, match="cannot decode") as caught:
                load_image(path)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [load_image, check_image])
def test_files_that_are_no_images(tmp_path: Path, read: object) -> None:
    assert callable(read)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("A dog runs.\n" * 9)
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, words in {
        "empty.jpg": "the file is empty",
        "text.jpg": "no image file",
        "loop.jpg": "too many levels",
        "pipe.jpg": "not a regular file",
        "none.jpg": "no such file",
        "nul\0.jpg": "null",
        ".": "a folder",
    }.items():
        with pytest.raises(DataError, match=words):
            read(f"{tmp_path}/{name}")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jpeg: Path) -> None:
    monkeypatch.setattr(image_formats, "MAX_PIXELS", 320 * 200 - 1)
    with pytest.raises(DataError, match="320 x 200 pixels"):
        load_image(jpeg)
    for limit in (40_000, 20_000):  # Pillow warns above its limit and refuses above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="limit"):
            check_image(jpeg)


def test_a_postscript_file_is_not_run(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.eps")
    with pytest.raises(DataError, match="type EPS"):
        load_image(tmp_path / "a.eps")


def test_a_fault_of_the_machine_is_not_blamed_on_the_file(jpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(self: Image.Image) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_descriptor)
    with pytest.raises(OSError, match="Too many"):
        load_image(jpeg)


def test_a_stream_is_named_in_errors() -> None:
    with pytest.raises(DataError, match=r"shard-0\.tar/a\.jpg"):
        decode_image(io.BytesIO(b"no image"), "shard-0.tar/a.jpg")


def test_real_photographs_decode(shared: Path) -> None:
    photographs = sorted((shared / "captions" / "flickr8k" / "images").iterdir())
    assert len(photographs) == 300
    for path in photographs[:40]:
        assert load_image(path).size == check_image(path)


RAMP = np.arange(256, dtype=np.uint8).reshape(8, 32)


def grey_of(data: bytes | Image.Image) -> NDArray[np.uint8]:
    rgb = np.asarray(read_image(data, "a"))
    assert np.array_equal(rgb[..., 0], rgb[..., 1])
    assert np.array_equal(rgb[..., 0], rgb[..., 2])
    return rgb[..., 0]


def saved(values: NDArray[Any], kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("factor", [256, 257])
def test_sixteen_bits_keep_their_high_byte(kind: str, factor: int) -> None:
    deep = RAMP.astype(np.uint16) * factor
    assert np.array_equal(grey_of(saved(deep, kind)), RAMP)
    assert np.array_equal(grey_of(Image.fromarray(deep)), RAMP)


def test_byte_order_and_white_at_nought() -> None:
    assert np.array_equal(grey_of(Image.fromarray((RAMP.astype(np.uint16) * 257).astype(">u2"))), RAMP)
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    out = io.BytesIO()
    deep.save(out, "TIFF", tiffinfo={262: 0})
    if Image.open(io.BytesIO(out.getvalue())).tag_v2[262] == 0:  # type: ignore[attr-defined]
        assert np.array_equal(grey_of(out.getvalue()), 255 - RAMP)


def packed_tiff(values: NDArray[np.uint16]) -> bytes:
    """A TIFF of 12 bits a pixel, two pixels in three bytes."""
    height, width = values.shape
    flat = values.ravel().astype(int)
    pairs = [bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in zip(flat[::2], flat[1::2], strict=True)]
    body = b"".join(pairs)
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def test_twelve_bits() -> None:
    deep = RAMP.astype(np.uint16) * 16 + 15
    assert np.array_equal(grey_of(packed_tiff(deep)), RAMP)
    assert np.array_equal(grey_of(packed_tiff(deep // 32)), RAMP // 32), "dark, and 12 bits all the same"
    assert np.array_equal(grey_of(saved(deep, "PNG")), RAMP), "in 16 bits"


def test_eight_bits_in_a_larger_type() -> None:
    assert np.array_equal(grey_of(saved(RAMP.astype(np.uint16), "PNG")), RAMP)
    assert np.array_equal(grey_of(saved(RAMP.astype(np.int32), "TIFF")), RAMP)


def test_thirty_two_bits_stretch_their_range() -> None:
    assert np.array_equal(grey_of(saved(RAMP.astype(np.int32) * 1_000_000, "TIFF")), RAMP)


@pytest.mark.parametrize("kind", ["TIFF", "PFM", None])
def test_floats(kind: str | None) -> None:
    for values in (RAMP / 255, RAMP.astype(float), RAMP * 3.0 - 100):
        floats = values.astype(np.float32)
        if kind == "PFM":
            data: Any = b"Pf\n32 8\n-1.0\n" + floats[::-1].tobytes()
        else:
            data = saved(floats, kind) if kind else Image.fromarray(floats)
        assert np.array_equal(grey_of(data), RAMP)


def test_floats_that_are_no_numbers_are_black() -> None:
    floats = (RAMP / 255).astype(np.float32)
    floats[0, 5:8] = np.nan, np.inf, -np.inf
    expected = RAMP.copy()
    expected[0, 5:8] = 0, 0, 0
    assert np.array_equal(grey_of(Image.fromarray(floats)), expected)
    assert not grey_of(Image.fromarray(np.full((4, 4), np.nan, np.float32))).any()
    assert not grey_of(Image.fromarray(np.zeros((4, 4), np.float32))).any()
    largest = np.array([[-3e38, 3e38]], np.float32)
    assert grey_of(Image.fromarray(largest)).tolist() == [[0, 255]]


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa", "RGBX", "RGBA", "P", "1", "CMYK"])
def test_other_modes_drop_their_alpha(mode: str) -> None:
    colours = Image.fromarray(np.stack([RAMP, RAMP.T.reshape(8, 32), 255 - RAMP], axis=2))
    image = {"PA": lambda: colours.convert("P").convert("PA"), "La": lambda: colours.convert("LA").convert("La")}.get(
        mode, lambda: colours.convert("RGBA").convert(mode) if mode == "RGBa" else colours.convert(mode)
    )()
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    reference = {"PA": "P", "La": "L", "LA": "L", "RGBa": "RGB"}.get(mode, mode)
    assert np.array_equal(np.asarray(rgb), np.asarray(colours.convert(reference).convert("RGB")))
