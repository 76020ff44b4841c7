"""Which files are opened: by content, from an allow-list, within limits that are checked before decoding."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captune.data import image_formats
from captune.data.image_formats import MAX_SCANS, is_image_name, open_image, too_many_scans
from captune.data.images import check_image, has_rotation, image_size, load_image, read_image
from captune.errors import DataError, ImageTooLargeError


def picture(width: int = 24, height: int = 16) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 9 % 256, y * 13 % 256, (x + y) * 5 % 256], axis=2).astype(np.uint8))


def saved(kind: str, image: Image.Image | None = None, **settings: Any) -> bytes:
    out = io.BytesIO()
    (image or picture()).save(out, kind, **settings)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(width: int, height: int, *tags: tuple[int, int]) -> bytes:
    """A little-endian TIFF of grey pixels with further tags of 32 bits."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 16} | dict(tags)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    head = b"II*\0" + struct.pack("<I", 24) + b"\0" * 16
    return head + struct.pack("<H", len(entries)) + directory + struct.pack("<I", 0)


def scans(count: int) -> bytes:
    """A progressive grey JPEG whose first scan of brightness is repeated; each costs a pass over all pixels."""
    data = saved("JPEG", picture(64, 64).convert("L"), progressive=True)
    start = data.index(b"\xff\xda")
    end = min(at for at in range(start + 2, len(data)) if data[at] == 0xFF and data[at + 1] in (0xDA, 0xC4, 0xD9))
    return data[:end] + data[start:end] * (count - 1) + b"\xff\xd9"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "PCX", "SGI"])
def test_the_content_decides_whatever_the_ending_is(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.txt").write_bytes(saved(kind))
    assert load_image(tmp_path / "a.txt").size == check_image(tmp_path / "a.txt") == (24, 16)


def test_a_tga_has_no_signature_and_needs_its_ending(tmp_path: Path) -> None:
    for name in ("a.tga", "a.jpg"):
        (tmp_path / name).write_bytes(saved("TGA"))
    assert load_image(tmp_path / "a.tga").size == (24, 16)
    with pytest.raises(DataError, match=r"is of type CUR|no image file"):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "EPS"),
        (b"\xc5\xd0\xd3\xc6" + b"\0" * 40, "EPS"),
        (b"\xd7\xcd\xc6\x9a\x00\x00" + b"\0" * 40, "WMF"),
        (b"SIMPLE  =                    T" + b" " * 60, "FITS"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "HDF5"),
        (b"GRIB\0\0\0\1" + b"\0" * 40, "GRIB"),
    ],
)
@pytest.mark.parametrize("name", ["x.jpg", "x.eps"])
def test_formats_that_start_other_programs_are_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, kind: str, name: str
) -> None:
    def never(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("opened")

    Image.init()
    monkeypatch.setitem(Image.OPEN, kind, (never, Image.OPEN[kind][1]))
    (tmp_path / name).write_bytes(data)
    for read in (load_image, check_image):
        with pytest.raises(DataError, match=r"is of type \w+, which is not read"):
            read(tmp_path / name)


def test_a_heif_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        image_formats, "_available", lambda: tuple(name for name in image_formats.FORMATS if name != "HEIF")
    )
    with pytest.raises(DataError, match=r"HEIF.*pip install 'captune\[heic\]'"):
        read_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40, "IMG_1.jpg")


@pytest.mark.parametrize("data", [saved("JPEG")[:3], saved("PNG")[:20], b"GIF89a"])
def test_a_damaged_file_is_called_by_its_format(data: bytes) -> None:
    with pytest.raises(DataError, match=r"begins as \w+ and is damaged"):
        read_image(data + b"\0" * 30, "a.bin")


def test_a_heif_is_read_and_listed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="needs the extra 'heic'")
    assert "HEIF" in image_formats._available()
    assert is_image_name("a.HEIC")
    (tmp_path / "a.HEIC").write_bytes(saved("HEIF", picture(64, 48), quality=100))
    difference = np.asarray(load_image(tmp_path / "a.HEIC")).astype(int) - np.asarray(picture(64, 48))
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", True),
        ("a.JFIF", True),
        ("a.jpe", True),
        ("a.jpg_large", True),
        ("a.png:orig", True),
        ("a.jpeg (1)", True),
        ("a.tga", True),
        ("x/b.c.WebP", True),
        ("a.eps", False),
        ("a.jpg.txt", False),
        ("a.jpgs", False),
        ("a.jpg~", False),
        ("jpg", False),
        ("folder.jpg/readme", False),
    ],
)
def test_endings(name: str, expected: bool) -> None:
    assert is_image_name(name) is expected


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png(30_000, 30_000), "30000 x 30000"),
        (png(10_000, 10_000), "10000 x 10000"),
        (tiff(4_000_000, 4_000_000), "4000000 x 4000000"),
        (tiff(16, 16, (322, 60_000), (323, 40_000)), "60000 x 40000"),
        (b"GIF89a" + b"\xff" * 4 + saved("GIF")[10:], "65535 x 65535"),
    ],
)
def test_a_refusal_names_the_size_of_the_image(data: bytes, size: str) -> None:
    with pytest.raises(ImageTooLargeError, match=f"{size} pixels, and the limit is 89,478,485"):
        read_image(data, "a.png")


def test_another_limit() -> None:
    assert image_size(io.BytesIO(saved("PNG")), "a.png", most_pixels=24 * 16) == (24, 16)
    with pytest.raises(ImageTooLargeError, match="24 x 16 pixels, and the limit is 383"):
        image_size(io.BytesIO(saved("PNG")), "a.png", most_pixels=24 * 16 - 1)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(scans(MAX_SCANS))
    assert load_image(tmp_path / "a.jpg").size == (64, 64)
    (tmp_path / "a.jpg").write_bytes(scans(MAX_SCANS + 1))
    for read in (load_image, check_image):
        with pytest.raises(DataError, match=f"JPEG of {MAX_SCANS + 1} scans"):
            read(tmp_path / "a.jpg")
    # Markers in other segments, or after the end, are no scans.
    marks = b"\xff\xda" * 400
    plain = saved("JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", len(marks) + 2) + marks
    assert too_many_scans(io.BytesIO(plain[:2] + comment + plain[2:] + marks)) == 0


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_chunk_that_unfolds_is_refused(kind: bytes) -> None:
    packed = zlib.compress(b"\0" * (80 << 20), 9)
    head = b"name\0\1\0\0\0" if kind == b"iTXt" else b"name\0\0"
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(png(16, 3, chunk(kind, head + packed)), "a.png")


def test_which_files_note_a_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in (1, 3):
            exif[0x0112] = orientation
            (tmp_path / "a").write_bytes(saved(kind, exif=exif))
            # Pillow always turns a TIFF.
            is_turned = orientation == 3 and kind != "TIFF"
            assert has_rotation(tmp_path / "a") is is_turned
            upright = np.asarray(load_image(tmp_path / "a"))
            stored = np.asarray(load_image(tmp_path / "a", exif=False))
            assert np.array_equal(upright, np.rot90(stored, 2) if is_turned else stored)
    assert not has_rotation(tmp_path / "absent")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_data_do_not_cost_the_picture(tmp_path: Path) -> None:
    data = saved("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12" * 40)
    assert read_image(data, "a.jpg").size == (24, 16)
    assert open_image(io.BytesIO(data), "a.jpg").format == "JPEG"
