"""Values of more than 8 bits are scaled and never clipped, from files and from Pillow images alike."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from captune.data.images import read_image, to_rgb

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
