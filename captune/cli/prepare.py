"""`captune prepare`: annotation files in, one manifest out; a subcommand a format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from captune.cli.importing import Options, find_file, import_rows, resplit

if TYPE_CHECKING:
    from captune.data.importing import Row
    from captune.data.problems import Problem

__all__ = ["app", "register"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: captune prepare flickr30k flickr30k/flickr_annotations_30k.csv --out flickr30k/manifest.jsonl",
)

Images = Annotated[
    Path | None,
    typer.Option(help="Folder of the image files; by default looked for beside SOURCE.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The manifest to write.", show_default=False)]
Check = Annotated[
    Literal["none", "exist", "decode"],
    typer.Option("--check-images", help="Look at no image, see whether each is there, or decode each fully."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Write nothing and exit with 2 if anything is wrong.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object on stdout.")]
Splits = Annotated[
    Path | None,
    typer.Option(help="Karpathy's dataset_*.json; images that it does not name become 'unlisted'.", show_default=False),
]
ProblemsFile = Annotated[
    Path | None,
    typer.Option("--problems", help="Also write every problem to this file, JSON Lines.", show_default=False),
]

_FLICKR30K_FILES = ("flickr_annotations_30k.csv", "results.csv", "results_20130124.token")
_FLICKR30K_ORIGIN = "it and flickr30k-images.zip are files of the data set nlphuji/flickr30k on Hugging Face"
_FLICKR30K_IMAGES = ("flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images", "images")


def register(program: typer.Typer) -> None:
    """Add the commands to the program."""
    program.add_typer(app, name="prepare")


@app.callback()
def formats() -> None:
    """Turn annotation files into a manifest, the one form of data that captune reads.

    A manifest is JSON Lines, one image a line, paths relative to the manifest:

    \b
        {"id": "36979", "image": "images/36979.jpg", "captions": ["A dog ."], "split": "train"}

    Bad rows (missing or broken images, malformed lines, duplicate ids, empty captions) are listed with file and
    line, counted, and left out. The summary goes to stderr; it ends with five of the images.
    """


@app.command(short_help="Flickr30k: Hugging Face's CSV, Kaggle's CSV, or the token file.")
def flickr30k(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="flickr_annotations_30k.csv, results.csv, results_20130124.token, or the folder that holds one.",
        ),
    ],
    out: Out,
    images: Images = None,
    splits: Splits = None,
    check_images: Check = "decode",
    strict: Strict = False,
    as_json: AsJson = False,
    problems: ProblemsFile = None,
) -> None:
    """Flickr30k from the Hugging Face CSV (all splits), Kaggle's results.csv or the token file (no splits).

    Images are looked for in flickr30k-images, flickr30k_images or images beside SOURCE.
    """
    from captune.data.flickr30k import flickr30k_rows
    from captune.data.text import Reading
    from captune.data.token_lines import token_rows

    file = find_file(source, _FLICKR30K_FILES, _FLICKR30K_ORIGIN)
    reading = Reading(file)
    rows = token_rows(reading) if ".token" in file.suffixes else flickr30k_rows(reading)
    options = Options(out, images, check_images, strict, as_json, problems)
    import_rows(resplit(rows, splits), file, reading, _FLICKR30K_IMAGES, options)


@app.command(short_help="Flickr8k, Flickr30k-CN, COCO-CN: lines 'image#n<TAB>caption', or captions.txt.")
def flickr8k(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Flickr8k.token.txt, captions.txt, or the folder that holds one."),
    ],
    out: Out,
    images: Images = None,
    splits: Splits = None,
    check_images: Check = "decode",
    strict: Strict = False,
    as_json: AsJson = False,
    problems: ProblemsFile = None,
) -> None:
    """Flickr8k, and every file of lines 'image#n<TAB>caption' (Flickr30k-CN, COCO-CN), or Kaggle's captions.txt.

    The lists Flickr_8k.{train,dev,test}Images.txt beside SOURCE give the splits; images that none of them names
    become 'unlisted'. Without a list all become train. Images are looked for in Images, images or Flicker8k_Dataset.
    """
    from captune.data.karpathy import with_splits
    from captune.data.text import Reading
    from captune.data.token_lines import listed_splits, token_rows

    file = find_file(source, ("Flickr8k.token.txt", "captions.txt"), "Flickr8k's captions are Flickr8k.token.txt")
    reading = Reading(file)
    rows: Iterable[Row | Problem] = token_rows(reading)
    listed = {} if splits else listed_splits(file.parent)
    rows = with_splits(rows, listed) if listed else resplit(rows, splits)
    options = Options(out, images, check_images, strict, as_json, problems)
    import_rows(rows, file, reading, ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset"), options)


@app.command(short_help="Karpathy's dataset_{flickr8k,flickr30k,coco}.json, splits and captions.")
def karpathy(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="dataset_flickr30k.json or one of its kind.")],
    out: Out,
    images: Images = None,
    check_images: Check = "decode",
    strict: Strict = False,
    as_json: AsJson = False,
    problems: ProblemsFile = None,
) -> None:
    """Karpathy's JSON of Flickr8k, Flickr30k or COCO; 'restval' stays a split of its own.

    Images are looked for in images or flickr30k-images beside SOURCE, COCO's in their folders train2014 and val2014.
    """
    from captune.data.karpathy import karpathy_rows
    from captune.data.text import Reading

    reading = Reading(source)
    options = Options(out, images, check_images, strict, as_json, problems)
    import_rows(karpathy_rows(reading), source, reading, ("images", "flickr30k-images", ""), options)


@app.command(short_help="COCO captions 2014 or 2017, NoCaps, and what follows their layout.")
def coco(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="captions_val2017.json or one of its kind.")],
    out: Out,
    images: Images = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the images; by default told by the name of SOURCE.")
    ] = None,
    splits: Splits = None,
    check_images: Check = "decode",
    strict: Strict = False,
    as_json: AsJson = False,
    problems: ProblemsFile = None,
) -> None:
    """COCO's caption files; ids are COCO's numbers. NoCaps' domains become splits ('val/near-domain').

    Images are looked for in the folder of the same name (captions_val2017.json: val2017) beside SOURCE or above it.
    """
    from captune.data.coco import coco_rows, split_of_name
    from captune.data.text import Reading

    reading = Reading(source)
    name = source.name.split(".")[0].rsplit("_", 1)[-1]
    rows = coco_rows(reading, split=split or split_of_name(source.name))
    options = Options(out, images, check_images, strict, as_json, problems)
    import_rows(resplit(rows, splits), source, reading, (name, f"../{name}", "images"), options)


@app.command(short_help="CSV, TSV or JSON Lines with named columns.")
def table(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .csv, .tsv or .jsonl file.")],
    out: Out,
    images: Images = None,
    image_column: Annotated[str, typer.Option(help="Column of the image's file name.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of a caption, or of a JSON list.")] = "caption",
    split_column: Annotated[str | None, typer.Option(help="Column of the split.", show_default=False)] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column of the id; by default the file name.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Split of all images where there is no column for it.")] = "train",
    check_images: Check = "decode",
    strict: Strict = False,
    as_json: AsJson = False,
    problems: ProblemsFile = None,
) -> None:
    """A table with a caption or an image a row; rows of the same image are brought together.

    Images are looked for in images beside SOURCE, or beside it.
    """
    from captune.data.table import Columns, table_rows
    from captune.data.text import Reading

    reading = Reading(source)
    columns = Columns(image_column, caption_column, split_column, id_column)
    options = Options(out, images, check_images, strict, as_json, problems)
    import_rows(table_rows(reading, columns, split=split), source, reading, ("images", ""), options)


@app.command(short_help="Images with a .txt of the same name beside each.")
def folder(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder, searched with its subfolders.")],
    out: Out,
    split: Annotated[str, typer.Option(help="Split of all images.")] = "train",
    check_images: Check = "decode",
    strict: Strict = False,
    as_json: AsJson = False,
    problems: ProblemsFile = None,
) -> None:
    """A folder of images with a text file of the same name beside each, one caption a line."""
    from captune.data.folder import FolderReading

    reading = FolderReading(source, split=split)
    import_rows(reading.rows(), source, reading, (), Options(out, source, check_images, strict, as_json, problems))
