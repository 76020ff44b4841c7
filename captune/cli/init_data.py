"""The data of `captune init`: find images and captions, confirm how they are read, and write the manifest."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from captune.cli.guessed_columns import confirm_columns, describe_guess, is_interactive, require_header
from captune.cli.output import print_message
from captune.cli.prepare_common import counts_in_words, with_progress

if TYPE_CHECKING:
    from captune.data import Shares
    from captune.data.importers import CaptionSource, Columns, Discovery

__all__ = ["UserData", "WrittenData", "find_data", "parse_required_shares", "write_data"]

_SMALL = 200  # images; below, a fifth is kept for evaluation instead of a tenth
_ROTATIONS = 500  # images whose EXIF data are read
_TEXTS = 10_000  # captions that decide the tokenizer
_EVALUATED = ("test", "val")  # splits to evaluate on, the preferred one first
_KINDS = {
    "folder": "text files next to the images",
    "table": "a table",
    "conversations": "conversations",
    "mapping": "captions by image",
    "coco": "COCO's JSON",
    "karpathy": "Karpathy's JSON",
    "manifest": "a manifest",
}


@dataclass(frozen=True)
class UserData:
    """Images and captions, and how they are read.

    Attributes:
        discovery: all that the folder holds.
        source: the captions.
        columns: of a table; None for other sources.
        encoding: of a table; None to detect it.
    """

    discovery: Discovery
    source: CaptionSource
    columns: Columns | None
    encoding: str | None


@dataclass(frozen=True)
class WrittenData:
    """A manifest that a run can use.

    Attributes:
        manifest: its path.
        images: number of each split.
        captions: number of each split.
        train_split: to train on.
        evaluate_split: to evaluate on.
        left_out: captions and unread rows that are not in it.
        tokenizer: for scores of captions in other than Latin letters.
    """

    manifest: Path
    images: Counter[str]
    captions: Counter[str]
    train_split: str
    evaluate_split: str
    left_out: int
    tokenizer: str | None = None


def find_data(
    path: Path,
    *,
    image: str | None,
    captions: list[str],
    split_column: str | None,
    folder: Path | None,
    encoding: str | None,
    options: list[str],
    yes: bool,
) -> UserData:
    """Find the captions, show how they are understood, and let the user confirm it on a terminal.

    Args:
        path: a folder or a file.
        image: column of the image, where the user named it.
        captions: columns of captions, where the user named them.
        split_column: column of the split, where the user named it.
        folder: with the images, where the user named it.
        encoding: of a table; None to detect it.
        options: other options of the command, for the command that names what was guessed.
        yes: accept all guesses.

    Raises:
        DataError: there are no images or no captions, or guesses are not confirmed.
    """
    from captune.data.importers import discover

    discovery = discover(path, encoding)
    print_message(f"images    {_images_in_words(discovery)}")
    if skipped := discovery.skipped.sentence():
        print_message(f"          {skipped}")
    source = _choose_source(path, discovery, image, captions, encoding, ask=not yes and is_interactive())
    if folder is not None:
        source = _with_folder(source, folder)
    seen = ""
    if source.tried:
        seen = f"; {source.matched:,} of the first {source.tried:,} rows have an image in {source.images}"
    print_message(f"captions  {_KINDS[source.kind]}: {source.path}{seen if source.kind != 'folder' else ''}")
    if source.kind == "folder" and source.matched < source.tried:
        print_message(f"          {source.tried - source.matched:,} of {source.tried:,} images have no text")
    columns = _columns(path, source, image, captions, split_column, encoding, options, yes)
    return UserData(discovery, source, columns, encoding)


def write_data(data: UserData, out: Path, shares: Shares | None, *, seed: int, overwrite: bool) -> WrittenData:
    """Write the manifest, or use the one that there is, if it has the splits that a run needs.

    Args:
        data: from `find_data`.
        out: the manifest to write.
        shares: splits that the user requested; None keeps those of the data, or divides data without splits.
        seed: of that division.
        overwrite: replace a file that captune init did not write.

    Raises:
        DataError: no image can be used, or the splits do not suffice for a run.
    """
    from captune.data import Issue, scan_manifest
    from captune.metrics import tokenizer_for

    source = data.source
    left_out = 0
    if source.kind == "manifest":
        splits = Counter[str]()
        for line, row in scan_manifest(source.path):
            if isinstance(row, Issue):
                _refuse_bad_manifest(source.path, line, row.message)
            else:
                splits[row.split] += 1
        if shares is None and _roles(splits) is not None:
            out = source.path
        else:
            _split_manifest(source.path, out, shares or _default_shares(splits.total(), seed))
    else:
        left_out = _import(data, out, shares, seed, overwrite)
    images, captions = Counter[str](), Counter[str]()
    texts: list[str] = []
    for _, row in scan_manifest(out):
        if not isinstance(row, Issue):
            images[row.split] += 1
            captions[row.split] += len(row.captions)
            texts += row.captions if len(texts) < _TEXTS else ()
    roles = _roles(images)
    if roles is None:
        from captune.errors import DataError

        listed = ", ".join(f"{name} ({count:,})" for name, count in images.items())
        raise DataError(
            f"the data have the splits {listed}, and a run needs one to train on and one to evaluate on; divide the "
            "images with --split train=0.9,test=0.1."
        )
    return WrittenData(out, images, captions, *roles, left_out, tokenizer_for(texts))


def parse_required_shares(text: str, seed: int) -> Shares:
    """The value of `--split`.

    Raises:
        DataError: no shares, or none for training or for evaluation.
    """
    from captune.data import parse_shares
    from captune.errors import DataError

    shares = parse_shares(text, seed)
    if shares is None or _roles(Counter(dict.fromkeys(shares.shares, 1))) is None:
        raise DataError(f"--split is '{text}'; expected shares of train and of test or val, as train=0.9,test=0.1.")
    return shares


def _images_in_words(discovery: Discovery) -> str:
    from captune.data import has_rotation, plural

    count = len(discovery.images)
    if not count:
        return f"none in {discovery.root}"
    endings = ", ".join(f"{number:,} {ending or 'others'}" for ending, number in discovery.endings.most_common(6))
    turned = sum(has_rotation(discovery.root / name) for name in discovery.images[:_ROTATIONS])
    of = f" of the first {_ROTATIONS}" if count > _ROTATIONS else ""
    rotation = f"; {turned:,}{of} are rotated by EXIF and will be read upright" if turned else ""
    return f"{plural(count, 'image')} in {discovery.root}: {endings}{rotation}"


def _choose_source(
    path: Path, discovery: Discovery, image: str | None, captions: list[str], encoding: str | None, *, ask: bool
) -> CaptionSource:
    from captune.data import HEIF_SUFFIXES, has_record, plural
    from captune.data.importers import guess_table, source_of_file
    from captune.errors import DataError

    if discovery.sources and not (image or captions):
        # A manifest that this command wrote is made of one of the others.
        sources = [source for source in discovery.sources if not has_record(source.path, "init")] or discovery.sources
        if len(sources) == 1:
            return sources[0]
        print_message("captions  in several forms:")
        for number, source in enumerate(sources, 1):
            matched = plural(source.matched, "image" if source.kind == "folder" else "row")
            print_message(f"  {number}  {_KINDS[source.kind]}: {source.path}, for {matched}")
        if not ask:
            print_message("  The first is used; give the file itself to use another.")
            return sources[0]
        while True:
            answer = typer.prompt("Which captions (a number)?", default="1", err=True).strip()
            if answer.isdecimal() and 1 <= int(answer) <= len(sources):
                return sources[int(answer) - 1]
            print_message(f"Give a number from 1 to {len(sources)}.")
    tables = [(source.path, source.guess) for source in discovery.sources if source.kind == "table"] + discovery.unclear
    if image or captions:
        if not tables:
            raise DataError(f"there is no table in '{path}', so --image-column and --caption-column have no use.")
        file = tables[0][0]
        guess = guess_table(file, encoding, image, captions)
        require_header(guess, file)
        return source_of_file(file, guess, discovery.root, discovery.images)
    if tables:
        file, unclear = tables[0]
        assert unclear is not None
        require_header(unclear, file)
        if not unclear.rows:
            raise DataError(f"'{file}' has no rows below the names of its columns; give another table.")
        names = ", ".join(f"'{name}'" for name in unclear.names[:20])
        raise DataError(
            f"the columns of '{file}' are not recognized: {names}; name them with --image-column and --caption-column."
        )
    if discovery.unreadable:
        raise DataError(discovery.unreadable[0])
    heif = HEIF_SUFFIXES & discovery.skipped.counts.keys()
    if not discovery.images and heif:
        count = sum(discovery.skipped.counts[ending] for ending in heif)
        raise DataError(
            f"'{path}' has {plural(count, 'image')} in HEIF only; to read them: pip install 'captune[heic]'"
        )
    if not discovery.images:
        raise DataError(f"there are no images in '{path}'; give a folder of images, or try captune demo.")
    raise DataError(
        f"'{path}' has {len(discovery.images):,} images and no captions, which tuning needs. Write the caption of each "
        "image into a text file next to it (a.txt for a.jpg), or into a table with the columns image and caption; "
        f"captune caption MODEL {path} --txt drafts text files that you can correct."
    )


def _with_folder(source: CaptionSource, folder: Path) -> CaptionSource:
    from dataclasses import replace

    from captune.errors import DataError

    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'; give the folder of the images with --images.")
    return replace(source, images=folder, tried=0)


def _columns(
    path: Path,
    source: CaptionSource,
    image: str | None,
    captions: list[str],
    split_column: str | None,
    encoding: str | None,
    options: list[str],
    yes: bool,
) -> Columns | None:
    """The columns of a table, confirmed unless the user named them or they have the usual names."""
    from captune.data.importers import Columns
    from captune.errors import DataError

    guess = source.guess
    if source.kind != "table" or guess is None:
        return None
    if guess.columns is None:
        raise DataError(f"the columns of '{source.path}' are not recognized; name them: {', '.join(guess.names[:20])}.")
    columns = Columns(guess.columns.image, guess.columns.captions, split_column or guess.columns.split)
    is_named = (image and captions) or (columns.image == "image" and columns.captions == ("caption",))
    if is_named and guess.encoding is None:
        print_message("\n".join(describe_guess(guess, columns)))
        return columns
    encoding = encoding or guess.encoding
    command = ["init", str(path), *options, *([] if encoding is None else ["--encoding", encoding])]
    guessed = "encoding" if is_named else "columns" if guess.encoding is None else "columns and the encoding"
    return confirm_columns(guess, source.path, columns, command, guessed=guessed, yes=yes)


def _import(data: UserData, out: Path, shares: Shares | None, seed: int, overwrite: bool) -> int:
    """Write the manifest of a source that is none, and print the summary; returns what was left out."""
    from captune.data import InlineImages, plural, prepare

    source = data.source
    has_splits = source.kind == "karpathy" or (data.columns is not None and data.columns.split is not None)
    if shares is None and not has_splits:
        shares = _default_shares(len(data.discovery.images) or source.tried, seed)
    images, inline = source.images, None
    if source.guess is not None and source.guess.inline_images:
        images = out.with_name(f"{out.stem}-images")
        images.mkdir(parents=True, exist_ok=True)
        inline = InlineImages(images)
    reading, rows = source.rows(data.columns, encoding=data.encoding, inline_images=inline)
    with with_progress(source.path.name, reading, None, "init") as callbacks:
        summary = prepare(
            rows,
            source=str(source.path),
            images=images,
            out=out,
            overwrite=overwrite,
            progress=callbacks.progress,
            compared=callbacks.share,
            shares=shares,
            command="init",
        )
    notes = [*reading.notes, *summary.notes] if data.columns is None else summary.notes
    print_message(
        "\n".join([f"manifest  {out}", *counts_in_words(summary), *(f"  note      {note}" for note in notes)])
    )
    unused = 0 if inline is not None or summary.problems else len(data.discovery.images) - summary.images
    if unused > 0:
        print_message(f"  note      {plural(unused, 'image')} of {data.discovery.root} without a caption")
    return summary.problems.rows


def _split_manifest(manifest: Path, out: Path, shares: Shares) -> None:
    from captune.cli.progress import import_progress
    from captune.data import SourceFile, plural, split_manifest

    reading = SourceFile(manifest)
    reading.close()
    with import_progress(manifest.name, reading) as update:
        splits, division = split_manifest(manifest, out, shares, command="init", progress=update)
    counts = ", ".join(f"{name} {count:,}" for name, count in splits.items())
    print_message(f"manifest  {out}\n  images    {splits.total():>10,}   {counts}")
    print_message(f"  note      splits are drawn by image with seed {shares.seed}")
    if division.copies:
        print_message(
            f"  note      {plural(division.copies, 'image')} show another one's picture, and are in its split"
        )


def _default_shares(images: int, seed: int) -> Shares:
    from captune.data import Shares

    return Shares({"train": 0.8, "test": 0.2} if images < _SMALL else {"train": 0.9, "test": 0.1}, seed)


def _roles(splits: Counter[str]) -> tuple[str, str] | None:
    """The splits to train and to evaluate on; None where there is none of a kind."""
    from captune.data import SPLIT_NAMES

    kinds = {name: SPLIT_NAMES.get(name.lower()) for name, count in splits.items() if count}
    train = next((name for name, kind in kinds.items() if kind == "train"), None)
    evaluated = [name for role in _EVALUATED for name, kind in kinds.items() if kind == role]
    return (train, evaluated[0]) if train is not None and evaluated else None


def _refuse_bad_manifest(path: Path, line: int, message: str) -> None:
    from captune.errors import DataError

    raise DataError(
        f"{path}:{line}: {message} To leave out all bad rows: {shlex.join(['captune', 'check', str(path), '--fix'])}"
    )
