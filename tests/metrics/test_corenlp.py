"""Fetching SPICE's parser from a server on this machine: complete and checked under the final name, or absent."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from captune.errors import ExternalToolError, MetricInputError
from captune.metrics.external import corenlp
from captune.metrics.external.corenlp import JARS, fetch_models, find_models, models_folder

CONTENTS = {JARS[0]: b"code" * 50_000, JARS[1]: bytes(range(256)) * 4_000}


def archive_of(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("stanford-corenlp-full-2015-12-09/README.txt", "x")
        for name, data in contents.items():
            bundle.writestr(f"stanford-corenlp-full-2015-12-09/{name}", data)
    return buffer.getvalue()


ARCHIVE = archive_of(CONTENTS)
CHECKSUM = "sha256:" + hashlib.sha256(ARCHIVE).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, and breaks off after `limit` bytes while `limit` is set."""

    body = ARCHIVE
    limit: int | None = None
    tag: str | None = '"one"'
    status = 200
    ranges: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        requested_range = self.headers.get("Range")
        server.ranges.append(requested_range)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if requested_range and self.headers.get("If-Range") == server.tag:
            start = int(requested_range.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.body):
                self.send_error(416)
                return
        body = server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        self.wfile.write(body if server.limit is None else body[: server.limit])

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.ranges = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/corenlp.zip"


def assert_nothing_there(folder: Path) -> None:
    assert not [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    with pytest.raises(MetricInputError, match="captune fetch spice"):
        find_models(folder)


def test_a_good_download(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    jars = fetch_models(
        tmp_path / "new", url=url(server), checksum=CHECKSUM, progress=lambda done, total: seen.append((done, total))
    )
    assert [jar.read_bytes() for jar in jars] == list(CONTENTS.values())
    assert seen[-1] == (len(ARCHIVE), len(ARCHIVE))
    assert find_models(tmp_path / "new") == jars
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted([*JARS, "checksums.json"])


def test_a_broken_download_resumes(server: Server, tmp_path: Path) -> None:
    server.limit = 100_000
    with pytest.raises(ExternalToolError, match=r"broke off at 100,000 of|IncompleteRead"):
        fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)
    assert_nothing_there(tmp_path)
    server.limit = None
    fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)
    assert server.ranges == [None, "bytes=100000-"]
    assert (tmp_path / JARS[1]).read_bytes() == CONTENTS[JARS[1]]


def test_another_file_under_the_address_starts_over(server: Server, tmp_path: Path) -> None:
    server.limit, server.tag = 100_000, '"old"'
    with pytest.raises(ExternalToolError):
        fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)
    server.limit, server.tag = None, '"new"'
    fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)
    assert (tmp_path / JARS[0]).read_bytes() == CONTENTS[JARS[0]]


def test_a_server_without_tags_starts_over(server: Server, tmp_path: Path) -> None:
    server.limit, server.tag = 100_000, None
    with pytest.raises(ExternalToolError):
        fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)
    server.limit = None
    fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)
    assert server.ranges == [None, None]


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    wrong = "sha256:" + "0" * 64
    with pytest.raises(ExternalToolError, match=rf"not the file expected.*--checksum {CHECKSUM}"):
        fetch_models(tmp_path, url=url(server), checksum=wrong)
    assert_nothing_there(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_pinned_checksum_refuses_a_stranger(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ExternalToolError, match="its sha1 is"):
        fetch_models(tmp_path, url=url(server))
    assert_nothing_there(tmp_path)


@pytest.mark.parametrize("moment", ["download", "unpack"])
def test_a_kill_leaves_nothing_under_the_final_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    if moment == "unpack":
        monkeypatch.setattr(corenlp.shutil, "copyfileobj", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch_models(tmp_path, url=url(server), checksum=CHECKSUM, progress=killed if moment == "download" else None)
    assert_nothing_there(tmp_path)
    monkeypatch.undo()
    fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)
    assert find_models(tmp_path)


def test_a_complete_part_is_not_loaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".stanford-corenlp.zip.part").write_bytes(ARCHIVE)
    fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)
    assert server.ranges == []
    assert find_models(tmp_path)


def test_a_part_longer_than_the_file_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".stanford-corenlp.zip.part").write_bytes(ARCHIVE + b"more")
    (tmp_path / ".stanford-corenlp.zip.tag").write_text('"one"')
    fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)
    assert server.ranges == [f"bytes={len(ARCHIVE) + 4}-", None]
    assert find_models(tmp_path)


def test_an_error_of_the_server_is_one_sentence(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(ExternalToolError, match="answered 503"):
        fetch_models(tmp_path, url=url(server), checksum=CHECKSUM)


def test_no_server_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExternalToolError, match=r"failed .*--archive"):
        fetch_models(tmp_path, url="http://127.0.0.1:9/x.zip", checksum=CHECKSUM)


def test_an_archive_at_hand_is_used_and_kept(tmp_path: Path) -> None:
    archive = tmp_path / "corenlp.zip"
    archive.write_bytes(ARCHIVE)
    fetch_models(tmp_path / "to", archive=archive, checksum=CHECKSUM)
    assert archive.exists()
    assert find_models(tmp_path / "to")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04 no archive", "damaged"),
        (archive_of({JARS[0]: b"x"}), f"holds no {JARS[1]}"),
        (ARCHIVE.replace(b"codecode", b"codeCODE", 1), "damaged"),
    ],
)
def test_a_bad_archive_is_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    archive = tmp_path / "corenlp.zip"
    archive.write_bytes(data)
    checksum = "sha256:" + hashlib.sha256(data).hexdigest()
    with pytest.raises((ExternalToolError, MetricInputError), match=message):
        fetch_models(tmp_path / "to", archive=archive, checksum=checksum)
    assert_nothing_there(tmp_path / "to")


@pytest.mark.parametrize("checksum", ["", "md5:" + "0" * 32, "sha256:123", "0" * 64])
def test_a_malformed_checksum_is_refused(tmp_path: Path, checksum: str) -> None:
    with pytest.raises(MetricInputError, match="is no checksum"):
        fetch_models(tmp_path, url="http://127.0.0.1:9/", checksum=checksum)


def test_a_jar_that_shrank_is_noticed(tmp_path: Path) -> None:
    archive = tmp_path / "corenlp.zip"
    archive.write_bytes(ARCHIVE)
    jars = fetch_models(tmp_path / "to", archive=archive, checksum=CHECKSUM)
    jars[1].write_bytes(b"x")
    with pytest.raises(MetricInputError, match="1 bytes and had 1,024,000"):
        find_models(tmp_path / "to")


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTUNE_SPICE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "captune" / "spice"
    monkeypatch.setenv("CAPTUNE_SPICE_MODELS", str(tmp_path / "own"))
    assert models_folder() == tmp_path / "own"
