"""Decoding and the pixel transform: equal to the original, and a sentence for every bad file."""

from __future__ import annotations

import errno
import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune.data import formats
from captune.data.images import CLIP_MEAN, CLIP_STD, check_image, decode_image, load_image, to_pixels, to_rgb
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


def test_images_come_upright_unless_asked_for_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient().save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg", exif=False).size == (48, 32)
    assert load_image(tmp_path / "a.jpg").size == (32, 48)


def test_checking_says_the_stored_size(jpeg: Path) -> None:
    assert check_image(jpeg) == (320, 200)


def test_loading_and_checking_agree_on_damaged_jpegs(jpeg: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = jpeg.read_bytes()
    verdicts = []
    for trial in range(60):
        data = bytearray(whole)
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
    monkeypatch.setattr(formats, "MAX_PIXELS", 320 * 200 - 1)
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
