"""Tars that claim or unfold to more than there is: the member is put aside, and the rest is read."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from captune.bulk.shards import Entry, Item, ParquetShard, Rejected, TarShard
from captune.data import tar_parquet
from captune.data.importers.webdataset import WebDatasetSource
from captune.data.issues import Issue
from captune.data.rows import Row
from captune.data.tar_parquet import InlineImages
from captune.errors import DataError

LARGE = 257 << 20


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(out, "JPEG")
    return out.getvalue()


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


def sample(key: str) -> bytes:
    data = picture()
    return member(f"{key}.jpg", len(data)) + padded(data) + member(f"{key}.txt", 2) + padded(b"A.")


def sparse(name: str, size: int) -> bytes:
    """A member of one block that claims `size` bytes."""
    payload = padded(b"1\n0\n512\n") + b"\0" * 512
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    info.pax_headers |= {"GNU.sparse.name": name, "GNU.sparse.realsize": str(size)}
    return info.tobuf(tarfile.PAX_FORMAT) + payload


def packed(*parts: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as stream:
        for part in parts:
            stream.write(part)
    return out.getvalue()


def entries(path: Path) -> list[Entry]:
    return list(TarShard("a", str(path)).items())


@pytest.mark.parametrize("kind", ["sparse", "packed"])
def test_a_member_that_unfolds_is_put_aside(tmp_path: Path, kind: str) -> None:
    huge = sparse("huge.jpg", 8 << 30) if kind == "sparse" else member("huge.jpg", LARGE) + b"\0" * LARGE
    parts = (sample("0"), huge, sample("1"), b"\0" * 1024)
    path = tmp_path / ("a.tar" if kind == "sparse" else "a.tar.gz")
    path.write_bytes(b"".join(parts) if kind == "sparse" else packed(*parts))
    assert path.stat().st_size < 4 << 20
    read = entries(path)
    assert [entry.id for entry in read if isinstance(entry, Item)] == ["0", "1"]
    (rejected,) = [entry for entry in read if isinstance(entry, Rejected)]
    assert rejected.id == "huge"
    assert "MB, and 256 MB is the limit" in rejected.reason
    rows = list(WebDatasetSource(path, InlineImages(tmp_path / "out")).rows())
    assert [row.id for row in rows if isinstance(row, Row)] == ["0", "1"]
    assert [row.kind for row in rows if isinstance(row, Issue)] == ["malformed"]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_gigabytes_ends_the_archive_with_a_reason(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(packed(sample("0"), member("x", 8 << 30, kind), b"\0" * LARGE))
    *read, last = entries(path)
    assert [entry.id for entry in read] == ["0"]
    assert isinstance(last, Rejected)
    assert "the name of a member claims 8,192 MB" in last.reason
    with pytest.raises(DataError, match="claims 8,192 MB"):
        list(WebDatasetSource(path, InlineImages(tmp_path / "out")).rows())


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    """Python's reader silently skips everything after it."""
    path = tmp_path / "a.tar"
    archive_data = sample("0") + sample("1") + b"\0" * 1024
    at = len(sample("0")) + 20
    path.write_bytes(archive_data[:at] + b"\xff\xff" + archive_data[at + 2 :])
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 2
    *read, last = entries(path)
    assert [entry.id for entry in read] == ["0"]
    assert isinstance(last, Rejected)
    assert "the header of a member is damaged" in last.reason


def test_a_value_that_many_rows_share_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = [picture(), b"\0" * (3 << 20)]
    images = pa.DictionaryArray.from_arrays(pa.array([0] + [1] * 200 + [0], pa.int32()), pa.array(values, pa.binary()))
    parquet.write_table(pa.table({"image": images}), tmp_path / "a.parquet", store_schema=False, compression="zstd")
    parquet.write_table(
        pa.table({"image": [{"bytes": value, "path": "x"} for value in values]}), tmp_path / "b.parquet"
    )
    monkeypatch.setattr("captune.bulk.shards.MAX_MEMBER", 1 << 20)
    for name, count in (("a", 202), ("b", 2)):
        read = list(ParquetShard(name, str(tmp_path / f"{name}.parquet")).items())
        assert len(read) == count
        assert isinstance(read[0], Item)
        assert isinstance(read[1], Rejected)
        assert "3 MB, and 1 MB is the limit" in read[1].reason


def test_the_limit_of_a_member() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = tar_parquet.MAX_MEMBER
    assert tar_parquet.too_large(info) is None
    info.size += 1
    assert tar_parquet.too_large(info) is not None
