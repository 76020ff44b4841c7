"""`captune prepare` for your data: tables, a folder, Hugging Face data sets, webdataset tars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from captune.cli.output import print_message
from captune.cli.prepare_common import Output, import_rows
from captune.cli.shared_options import with_shared_options

if TYPE_CHECKING:
    from captune.data import Shares, SkippedFiles, SourceFile
    from captune.data.importers import Columns

__all__ = [
    "Images",
    "Seed",
    "SplitOrShares",
    "Splits",
    "folder",
    "hf",
    "image_target",
    "split_and_shares",
    "table",
    "webdataset",
]


# The options that the commands of `captune prepare` share.

Images = Annotated[
    Path | None,
    typer.Option(help="Folder of the image files; by default searched next to SOURCE.", show_default=False),
]
Splits = Annotated[
    Path | None,
    typer.Option(help="Karpathy's dataset_*.json; images that it does not name become 'unlisted'.", show_default=False),
]
SplitOrShares = Annotated[
    str, typer.Option("--split", help="Split of all images, or shares to divide them: train=0.9,val=0.05,test=0.05.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the division into shares.")]


ImageColumn = Annotated[str, typer.Option(help="Column of the image: a file name, or the image itself.")]
CaptionColumn = Annotated[list[str], typer.Option(help="Column of a caption, or of a list of captions; repeatable.")]
# Of a table they are guessed where the usual names are absent.
TableImageColumn = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        help="Column of the image: a file name, or the image itself.",
        show_default="image, or guessed",
    ),
]
TableCaptionColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--caption-column",
        help="Column of a caption, or of a list of captions; repeatable.",
        show_default="caption, or guessed",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Accept guessed columns without a question.")]
IdColumn = Annotated[str | None, typer.Option(help="Column of the id; by default the file name.", show_default=False)]
Target = Annotated[
    Path | None,
    typer.Option(
        "--images", help="Folder to write the images into; by default one next to the manifest.", show_default=False
    ),
]


@with_shared_options
def table(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .csv, .tsv, .jsonl, .json or .parquet file.")],
    output: Output,
    images: Images = None,
    image_column: TableImageColumn = None,
    caption_column: TableCaptionColumns = None,
    split_column: Annotated[str | None, typer.Option(help="Column of the split.", show_default=False)] = None,
    id_column: IdColumn = None,
    split: SplitOrShares = "train",
    seed: Seed = 0,
    quoting: Annotated[
        Literal["csv", "none"] | None,
        typer.Option(help="csv: quotation marks delimit cells; none: they are text.", show_default="csv, none in TSV"),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of the text, such as cp1252 or gb18030.", show_default="detected")
    ] = None,
    turns: Annotated[
        Literal["first", "all"], typer.Option(help="Which answers of a conversation are captions of its image.")
    ] = "first",
    yes: Yes = False,
) -> None:
    """A table with a caption or an image a row; rows of the same image are grouped.

    Columns that are not called image and caption are guessed from their names and cells, shown with three rows, and
    confirmed on a terminal or by --yes.

    JSON may be JSON Lines, an array of objects or an object that holds one; objects may be conversations as LLaVA,
    ShareGPT and ms-swift have them. The delimiter and the encoding of a CSV are detected and noted.
    Images are searched in the folder images next to SOURCE, or next to SOURCE. Images inside a parquet file are written
    into the folder of --images, by default one next to the manifest.

    Examples:
        captune prepare table captions.csv --image-column file --caption-column text --out m.jsonl
    """
    from captune.data import InlineImages, SourceFile
    from captune.data.importers import FORMATS, table_rows

    split_name, shares = split_and_shares(split, seed, split_column)
    columns, encoding = _table_columns(
        source, encoding, image_column, caption_column or [], id_column, split_column, split, output, images, yes
    )
    reading = SourceFile(source, encoding)
    inline_images = None
    if source.suffix in (".parquet", ".pq") and _holds_images(reading, columns.image):
        images = image_target(output.out, images)
        images.mkdir(parents=True, exist_ok=True)
        inline_images = InlineImages(images)
    rows = table_rows(reading, columns, split=split_name, inline_images=inline_images, quoting=quoting, turns=turns)
    import_rows(rows, source, reading, FORMATS["table"].images, output, images=images, shares=shares)


@with_shared_options
def folder(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder, searched with its subfolders.")],
    output: Output,
    split: SplitOrShares = "train",
    seed: Seed = 0,
) -> None:
    """A folder of images with a text file of the same name next to each, one caption a line.

    Examples:
        captune prepare folder photos --split train=0.9,test=0.1 --out photos/manifest.jsonl
    """
    from captune.data.importers import FolderSource

    split_name, shares = split_and_shares(split, seed)
    reading = FolderSource(source, split=split_name)
    with _announced(reading.skipped):
        import_rows(reading.rows(), source, reading, (), output, images=source, shares=shares)


@with_shared_options
def hf(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, or a name on the hub such as me/photos.")],
    output: Output,
    images: Target = None,
    image_column: ImageColumn = "image",
    caption_column: CaptionColumn = ["caption"],  # noqa: B006
    id_column: IdColumn = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column of the split; by default that of the data set.", show_default=False)
    ] = None,
    configuration: Annotated[
        str | None, typer.Option(help="Configuration of the data set.", show_default=False)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Read only this split, or divide all images: train=0.9,val=0.05,test=0.05.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """A Hugging Face data set: saved by save_to_disk, a folder of data files, or on the hub; no code of it is run.

    The images are written into the folder of --images, which the manifest then points to.

    Examples:
        captune prepare hf nlphuji/flickr30k --out flickr30k/manifest.jsonl
    """
    from captune.data import InlineImages
    from captune.data.importers import HuggingFaceSource

    target = image_target(output.out, images)
    columns = _columns(image_column, caption_column, split_column, id_column)
    split_name, shares = (None, None) if split is None else split_and_shares(split, seed, split_column)
    reading = HuggingFaceSource(
        source,
        columns,
        InlineImages(target),
        configuration=configuration,
        split=None if shares is not None else split_name,
    )
    target.mkdir(parents=True, exist_ok=True)
    import_rows(reading.rows(), Path(source), reading, (), output, images=target, shares=shares)


@with_shared_options
def webdataset(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .tar file, packed or not, or a folder of them.")],
    output: Output,
    images: Target = None,
    split: SplitOrShares = "train",
    seed: Seed = 0,
) -> None:
    """Webdataset tars: 000123.jpg and 000123.txt (a caption a line) or 000123.json ("caption" or "captions").

    The images are written into the folder of --images, which the manifest then points to. Links in a tar are not
    followed.

    Examples:
        captune prepare webdataset shards --out shards/manifest.jsonl
    """
    from captune.data import InlineImages
    from captune.data.importers import WebDatasetSource

    target = image_target(output.out, images)
    split_name, shares = split_and_shares(split, seed)
    reading = WebDatasetSource(source, InlineImages(target), split=split_name)
    target.mkdir(parents=True, exist_ok=True)
    with _announced(reading.skipped, "member"):
        import_rows(reading.rows(), source, reading, (), output, images=target, shares=shares)


@contextmanager
def _announced(skipped: SkippedFiles, what: str = "file") -> Iterator[None]:
    """Print what was not read on stderr, also if the import fails."""
    try:
        yield
    finally:
        if sentence := skipped.sentence(what):
            print_message(f"{sentence}.")


def split_and_shares(text: str, seed: int, other: object = None) -> tuple[str, Shares | None]:
    """The value of `--split`: the split that importers give to images, and the shares to divide them by.

    Args:
        text: as it was given.
        seed: of the division.
        other: another option that gives splits, or None.

    Raises:
        DataError: shares are wrong, or given with another option that gives splits.
    """
    from captune.data import parse_shares
    from captune.errors import DataError

    shares = parse_shares(text, seed)
    if shares is not None and other is not None:
        raise DataError("--split divides the images, and another option gives their splits; leave one of them out.")
    if shares is None and "," in text:
        raise DataError(f"--split is '{text}'; expected one split, or shares such as train=0.9,test=0.1.")
    return ("train" if shares is not None else text), shares


def _table_columns(
    source: Path,
    encoding: str | None,
    image: str | None,
    captions: list[str],
    id_column: str | None,
    split_column: str | None,
    split: str,
    output: Output,
    images: Path | None,
    yes: bool,
) -> tuple[Columns, str | None]:
    """The columns as options, by their usual names, or as guessed and confirmed; and the encoding, if it is known.

    Raises:
        DataError: guessed columns are not confirmed, or the table has no header.
    """
    from captune.cli.guessed_columns import confirm_columns, require_header
    from captune.data.importers import Columns, guess_table
    from captune.errors import DataError

    columns = Columns(image or "image", tuple(captions) or ("caption",), split_column, id_column)
    are_named = image is not None and bool(captions)
    if are_named and encoding is not None:
        return columns, encoding
    try:
        guess = guess_table(source, encoding, image, captions)
    except DataError:  # reported when the table is read
        return columns, encoding
    are_named = are_named or {columns.image, *columns.captions} <= set(guess.names)
    if not are_named:
        require_header(guess, source)
    if guess.kind != "table" or guess.columns is None or (are_named and guess.encoding is None):
        return columns, encoding
    if split_column is None and split == "train":
        split_column = guess.columns.split
    if not are_named:
        columns = Columns(guess.columns.image, guess.columns.caption, split_column, id_column)
    encoding = encoding or guess.encoding
    command = ["prepare", "table", str(source), "--out", str(output.out)]
    command += [] if images is None else ["--images", str(images)]
    command += [] if encoding is None else ["--encoding", encoding]
    command += [] if split == "train" else ["--split", split]
    guessed = "encoding" if are_named else "columns" if guess.encoding is None else "columns and the encoding"
    return confirm_columns(guess, source, columns, command, guessed=guessed, yes=yes), encoding


def _columns(image: str, captions: list[str], split: str | None, name: str | None) -> Columns:
    from captune.data.importers import Columns

    return Columns(image, tuple(captions), split, name)


def image_target(out: Path, images: Path | None) -> Path:
    """The folder that images are written into."""
    from captune.data import is_stream
    from captune.errors import DataError

    if images is None and is_stream(out):
        raise DataError("the images are written into a folder; name it with --images.")
    return images or out.parent / f"{out.stem}-images"


def _holds_images(reading: SourceFile, column: str) -> bool:
    """Whether a column of a parquet file holds image files and not their names."""
    from captune.data import column_type

    kind = column_type(reading, column)
    return kind.startswith(("binary", "large_binary", "struct"))
