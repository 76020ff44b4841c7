"""The two jars of Stanford CoreNLP 3.6.0 that SPICE parses with: where they are, and how they get there.

They are 340 MB under the GPL and come with neither captune nor pycocoevalcap. Nothing is downloaded unless
`fetch_models` (`captune fetch spice`) is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from captune.errors import ExternalToolError, MetricInputError, MissingExtraError
from captune.metrics.external.java import coco_caption_folder
from captune.parsing import load_json

__all__ = ["CORENLP_SHA1", "CORENLP_URL", "CORENLP_VERSION", "fetch_models", "find_models", "models_folder"]

CORENLP_VERSION = "3.6.0"
CORENLP_URL = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
# As pinned by public build scripts; Stanford publishes none.
CORENLP_SHA1 = "sha1:55c9d653eb30ace7d5a60eb3138e424f9442e539"
JARS = (f"stanford-corenlp-{CORENLP_VERSION}.jar", f"stanford-corenlp-{CORENLP_VERSION}-models.jar")
FOLDER_VARIABLE = "CAPTUNE_SPICE_MODELS"
RECORD = "checksums.json"
BLOCK = 1 << 20
STALL_LIMIT = 60.0

Progress = Callable[[int, int | None], None]


def models_folder() -> Path:
    """The folder of fetched jars: CAPTUNE_SPICE_MODELS, else `captune/spice` in the user's cache folder."""
    if configured := os.environ.get(FOLDER_VARIABLE):
        return Path(configured).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "captune" / "spice"


def find_models(folder: str | os.PathLike[str] | None = None) -> tuple[Path, Path]:
    """The jar of CoreNLP and the jar of its models.

    Args:
        folder: of both; by default `models_folder()`, then the folder of pycocoevalcap.

    Raises:
        MetricInputError: they are not there, or one has another size than when it was fetched.
    """
    if folder is not None:
        candidates = [Path(folder).expanduser()]
    else:
        candidates = [models_folder()]
        with contextlib.suppress(MissingExtraError):
            candidates.append(coco_caption_folder("spice") / "lib")
    for candidate in candidates:
        code, models = (candidate / name for name in JARS)
        if code.is_file() and models.is_file():
            _check_sizes(candidate)
            return code.absolute(), models.absolute()
    raise MetricInputError(
        f"SPICE needs {JARS[0]} and {JARS[1]}, which are not in '{candidates[0]}'; fetch them once with "
        f"'captune fetch spice' (400 MB), or name their folder with --spice-models or {FOLDER_VARIABLE}."
    )


def fetch_models(
    folder: str | os.PathLike[str] | None = None,
    *,
    url: str = CORENLP_URL,
    archive: str | os.PathLike[str] | None = None,
    checksum: str = CORENLP_SHA1,
    progress: Progress | None = None,
) -> tuple[Path, Path]:
    """Download CoreNLP, check it, and unpack the two jars.

    An interrupted download resumes when this is called again. The jars get their final names once they are complete
    and verified.

    Args:
        folder: for the jars; by default `models_folder()`.
        url: where the archive is.
        archive: a local archive, instead of a download.
        checksum: "sha1:..." or "sha256:..." of the archive.
        progress: called with bytes done and bytes in all (None if the server does not report it).

    Raises:
        MetricInputError: the checksum is malformed, or `archive` is no such archive.
        ExternalToolError: the download failed or is not the file expected.
    """
    kind, _, digest = checksum.partition(":")
    if kind not in ("sha1", "sha256") or len(digest) != hashlib.new(kind).digest_size * 2:
        raise MetricInputError(f"'{checksum}' is no checksum; write sha256: or sha1: and its hexadecimal digits.")
    target = Path(folder).expanduser() if folder is not None else models_folder()
    target.mkdir(parents=True, exist_ok=True)
    if archive is not None:
        source = Path(archive).expanduser()
        if not source.is_file():
            raise MetricInputError(f"There is no file '{source}'.")
        _verify(source, kind, digest, f"'{source}'", "")
    else:
        source = target / ".stanford-corenlp.zip.part"
        if not source.exists() or _digest(source, kind) != digest.lower():  # a killed run may have completed it
            _download(url, source, progress)
        try:
            _verify(source, kind, digest, url, " It was removed; fetch it again.")
        except ExternalToolError:
            _discard(source)
            raise
    jars = _unpack(source, target)
    if archive is None:
        _discard(source)
    return jars


def _download(url: str, part: Path, progress: Progress | None) -> None:
    """Download `url` into `part`, resuming a partial download if the server still has the same file."""
    tag_file = part.with_suffix(".tag")
    start = part.stat().st_size if part.exists() and tag_file.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "captune"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag_file.read_text(encoding="utf-8"))
    try:
        with urllib.request.urlopen(request, timeout=STALL_LIMIT) as answer:
            if answer.status != 206:
                start = 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length is not None and length.isdigit() else None
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if tag and not tag.startswith("W/"):
                tag_file.write_text(tag, encoding="utf-8")
            else:
                tag_file.unlink(missing_ok=True)
            done = start
            with part.open("ab" if start else "wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # longer than the server's file: not the same file
            _discard(part)
            _download(url, part, progress)
            return
        raise ExternalToolError(f"{url} answered {error.code} {error.reason}; try again later.") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise ExternalToolError(
            f"The download of {url} failed ({error}); run it again to resume, or fetch the file by other means and "
            "pass it with --archive."
        ) from error
    if total is not None and done != total:
        raise ExternalToolError(
            f"The download of {url} broke off at {done:,} of {total:,} bytes; run it again to resume."
        )


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _verify(path: Path, kind: str, digest: str, name: str, advice: str) -> None:
    actual = _digest(path, kind)
    if actual != digest.lower():
        raise ExternalToolError(
            f"{name} is not the file expected: its {kind} is {actual}, not {digest}.{advice} If you know that "
            f"this file is right, pass --checksum {kind}:{actual}."
        )


def _unpack(archive: Path, target: Path) -> tuple[Path, Path]:
    """Extract the two jars, check them against the archive's own checksums, and only then name them."""
    partial = [target / f".{name}.part" for name in JARS]
    try:
        with zipfile.ZipFile(archive) as bundle:
            for name, path in zip(JARS, partial, strict=True):
                member = next((entry for entry in bundle.namelist() if entry.rsplit("/", 1)[-1] == name), None)
                if member is None:
                    raise MetricInputError(f"The archive '{archive.name}' holds no {name}.")
                with bundle.open(member) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, BLOCK)
        record = {}
        for name, path in zip(JARS, partial, strict=True):
            record[name] = {"sha256": _digest(path, "sha256"), "bytes": path.stat().st_size}
        for name, path in zip(JARS, partial, strict=True):
            path.replace(target / name)
        (target / f".{RECORD}.part").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (target / f".{RECORD}.part").replace(target / RECORD)
    except zipfile.BadZipFile as error:
        raise ExternalToolError(f"The archive '{archive.name}' is damaged ({error}).") from error
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return target / JARS[0], target / JARS[1]


def _check_sizes(folder: Path) -> None:
    """Compare the sizes with those recorded when captune fetched the jars, if it did."""
    try:
        record = load_json((folder / RECORD).read_text(encoding="utf-8"))
        sizes = {name: int(record[name]["bytes"]) for name in JARS}
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name, size in sizes.items():
        if (size_now := (folder / name).stat().st_size) != size:
            raise MetricInputError(
                f"'{folder / name}' has {size_now:,} bytes and had {size:,} when it was fetched; fetch it again with "
                "'captune fetch spice'."
            )


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_suffix(".tag").unlink(missing_ok=True)
