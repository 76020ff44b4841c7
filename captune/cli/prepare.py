"""`captune prepare`: annotation files in, one manifest out; a subcommand a format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from captune.cli.commands import CommandGroup
from captune.cli.prepare_common import Output, find_file, import_rows, resplit
from captune.cli.prepare_custom_data import (
    Images,
    Seed,
    SplitOrShares,
    Splits,
    folder,
    hf,
    image_target,
    split_and_shares,
    table,
    webdataset,
)
from captune.cli.shared_options import with_shared_options

if TYPE_CHECKING:
    from captune.data import Issue, Row

__all__ = ["app", "import_flickr30k"]

app = CommandGroup()


@app.callback()
def formats() -> None:
    """Turn annotation files into a manifest, the one form of data that captune reads.

    A manifest is JSON Lines, one image a line, paths relative to the manifest:

    \b
        {"id": "7", "image": "7.jpg", "captions": ["A dog ."], "split": "train"}

    Each caption of the source is in the manifest, or is counted and listed with file, line and reason (missing or
    broken images, malformed lines, duplicate ids). The summary goes to stderr; it ends with five of the images.

    Examples:
        captune prepare flickr30k flickr_annotations_30k.csv --out flickr30k.jsonl
        captune prepare table captions.csv --out photos/manifest.jsonl
        captune prepare folder photos --out photos/manifest.jsonl
    """


@app.command(short_help="Flickr30k: Hugging Face's CSV, Kaggle's CSV, or the token file.")
@with_shared_options
def flickr30k(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="flickr_annotations_30k.csv, results.csv, results_20130124.token, or the folder that holds one.",
        ),
    ],
    output: Output,
    images: Images = None,
    splits: Splits = None,
) -> None:
    """Flickr30k from the Hugging Face CSV (all splits), Kaggle's results.csv or the token file (no splits).

    Images are looked for in flickr30k-images, flickr30k_images or images next to SOURCE.

    Examples:
        captune prepare flickr30k flickr_annotations_30k.csv --out flickr30k.jsonl
    """
    import_flickr30k(source, output, images, splits)


def import_flickr30k(
    source: Path, output: Output, images: Path | None, splits: Path | None = None, *, show_next_command: bool = True
) -> None:
    """Write the manifest of Flickr30k; the arguments are those of the command.

    Raises:
        DataError: see `captune.data.importing.prepare`.
    """
    from captune.data import SourceFile
    from captune.data.importers import FORMATS, flickr30k_rows, token_rows

    file = find_file(source, "flickr30k")
    reading = SourceFile(file)
    rows = token_rows(reading) if ".token" in file.suffixes else flickr30k_rows(reading)
    import_rows(
        resplit(rows, splits),
        file,
        reading,
        FORMATS["flickr30k"].images,
        output,
        images=images,
        show_next_command=show_next_command,
    )


@app.command(short_help="Flickr8k: lines 'image#n<TAB>caption', or Kaggle's captions.txt.")
@with_shared_options
def flickr8k(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Flickr8k.token.txt, captions.txt, or the folder that holds one."),
    ],
    output: Output,
    images: Images = None,
    splits: Splits = None,
) -> None:
    """Flickr8k, and every file of lines 'image#n<TAB>caption', or Kaggle's captions.txt.

    The lists Flickr_8k.{train,dev,test}Images.txt next to SOURCE give the splits; images that none of them names
    become 'unlisted'. Without a list all become train. Images are looked for in Images, images or Flicker8k_Dataset.

    Examples:
        captune prepare flickr8k Flickr8k.token.txt --out flickr8k.jsonl
    """
    from captune.data import SourceFile
    from captune.data.importers import FORMATS, listed_splits, token_rows, with_splits

    file = find_file(source, "flickr8k")
    reading = SourceFile(file)
    rows: Iterable[Row | Issue] = token_rows(reading)
    listed = {} if splits else listed_splits(file.parent)
    rows = with_splits(rows, listed) if listed else resplit(rows, splits)
    import_rows(rows, file, reading, FORMATS["flickr8k"].images, output, images=images)


@app.command(short_help="Karpathy's dataset_{flickr8k,flickr30k,coco}.json, splits and captions.")
@with_shared_options
def karpathy(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="dataset_flickr30k.json or one of its kind.")],
    output: Output,
    images: Images = None,
    restval: Annotated[
        Literal["train", "separate"],
        typer.Option(help="Make COCO's split restval training images, as published numbers do, or keep it."),
    ] = "separate",
) -> None:
    """Karpathy's JSON of Flickr8k, Flickr30k or COCO.

    COCO's training set of published numbers is train and restval: 113,287 images. Images are looked for in
    images or flickr30k-images next to SOURCE, COCO's in their folders train2014 and val2014 there.

    Examples:
        captune prepare karpathy dataset_coco.json --restval train --out coco.jsonl
    """
    from captune.data import SourceFile
    from captune.data.importers import FORMATS, karpathy_rows

    reading = SourceFile(source)
    rows = karpathy_rows(reading, restval="train" if restval == "train" else "restval")
    import_rows(rows, source, reading, FORMATS["karpathy"].images, output, images=images)


@app.command(short_help="COCO captions 2014 or 2017, and what follows their layout.")
@with_shared_options
def coco(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="captions_val2017.json or one of its kind.")],
    output: Output,
    images: Images = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of the images, or shares such as train=0.9,test=0.1; by default the one that the name of "
            "SOURCE has as a separate word, else train.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    splits: Splits = None,
) -> None:
    """COCO's caption files, and MiniGPT-4's filter_cap.json; ids are COCO's numbers.

    Images are looked for in the folder of the same name (captions_val2017.json: val2017) next to SOURCE or above it, in
    images, or in MiniGPT-4's folder image.

    Examples:
        captune prepare coco annotations/captions_val2017.json --out val2017.jsonl
    """
    from captune.data import SourceFile, split_of_name
    from captune.data.importers import FORMATS, coco_rows

    reading = SourceFile(source)
    name = source.name.split(".")[0].rsplit("_", 1)[-1]
    guess, origin = split_of_name(source.name)
    split_name, shares = (guess, None) if split is None else split_and_shares(split, seed, splits)
    rows = resplit(coco_rows(reading, split=split_name), splits)
    import_rows(
        rows,
        source,
        reading,
        (name, f"../{name}", *FORMATS["coco"].images),
        output,
        images=images,
        shares=shares,
        split_origin=None if split or splits else origin,
    )


@app.command(short_help="NoCaps, with the domain of each image.")
@with_shared_options
def nocaps(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="nocaps_val_4500_captions.json.")],
    output: Output,
    images: Images = None,
) -> None:
    """NoCaps; in-domain, near-domain and out-domain are kept with the split and also scored separately.

    Images are looked for in validation, val or images next to SOURCE.

    Examples:
        captune prepare nocaps nocaps_val_4500_captions.json --out nocaps.jsonl
    """
    from captune.data import SourceFile, split_of_name
    from captune.data.importers import FORMATS, coco_rows

    reading = SourceFile(source)
    split, origin = split_of_name(source.name)
    rows = coco_rows(reading, split=split)
    import_rows(
        rows, source, reading, FORMATS["nocaps"].images, output, images=images, split_origin=origin.partition(";")[0]
    )


@app.command(short_help="TextCaps: captions of pictures with text in them.")
@with_shared_options
def textcaps(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="TextCaps_0.1_train.json or TextCaps_0.1_val.json.")],
    output: Output,
    images: Images = None,
) -> None:
    """TextCaps; the split is each entry's own, the id TextCaps' own.

    Images are looked for in train_images (those of val, too) or images next to SOURCE.

    Examples:
        captune prepare textcaps TextCaps_0.1_train.json --out textcaps.jsonl
    """
    from captune.data import SourceFile
    from captune.data.importers import FORMATS, textcaps_rows

    reading = SourceFile(source)
    import_rows(textcaps_rows(reading), source, reading, FORMATS["textcaps"].images, output, images=images)


@app.command(short_help="Chinese captions: Flickr30k-CN and COCO-CN.")
@with_shared_options
def chinese(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A file of lines 'image#n<TAB>caption', or COCO-CN's folder.")
    ],
    output: Output,
    images: Images = None,
    split: Annotated[
        str | None, typer.Option(help="Split of all images; by default lists next to SOURCE, or its name, decide.")
    ] = None,
    splits: Splits = None,
) -> None:
    """Flickr30k-CN and COCO-CN; ids and images are those of the English data, so that leaks between them are seen.

    Lists such as coco-cn_train.txt next to SOURCE give the splits. Images are looked for in images,
    flickr30k-images or next to SOURCE, COCO's in their folders train2014 and val2014 there.

    Examples:
        captune prepare chinese coco-cn --out coco-cn.jsonl
    """
    from captune.data import SourceFile, split_of_name
    from captune.data.importers import FORMATS, chinese_lists, token_rows, with_coco_names, with_splits

    file = find_file(source, "chinese")
    reading = SourceFile(file)
    guess, origin = split_of_name(file.name)
    rows: Iterable[Row | Issue] = token_rows(reading, split=split or guess)
    listed = {} if splits or split else chinese_lists(file.parent)
    rows = with_splits(rows, listed) if listed else resplit(rows, splits)
    split_origin = None if split or splits or listed else origin
    import_rows(
        with_coco_names(rows),
        file,
        reading,
        FORMATS["chinese"].images,
        output,
        images=images,
        split_origin=split_origin,
    )


@app.command(short_help="DOCCI: a detailed description an image.")
@with_shared_options
def docci(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="docci_descriptions.jsonlines, or the folder that holds it.")
    ],
    output: Output,
    images: Images = None,
) -> None:
    """DOCCI's descriptions; the splits train, test, qual_dev and qual_test and the ids are DOCCI's own.

    Images are looked for in images (of docci_images.tar.gz) or docci_images next to SOURCE.

    Examples:
        captune prepare docci docci_descriptions.jsonlines --out docci.jsonl
    """
    from captune.data import SourceFile
    from captune.data.importers import FORMATS, docci_rows

    file = find_file(source, "docci")
    reading = SourceFile(file)
    import_rows(docci_rows(reading), file, reading, FORMATS["docci"].images, output, images=images)


@app.command(short_help="DetailCaps-4870: three detailed references an image, images inside.")
@with_shared_options
def detailcaps(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The .parquet file, or its rows as .json or .jsonl.")
    ],
    output: Output,
    images: Images = None,
    caption_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of captions; repeatable. CogVLM, ShareCaptioner and LLaVA_v15 are captions of models.",
            show_default="the three GT_Caption columns",
        ),
    ] = None,
) -> None:
    """DetailCaps; the split is test, the id the path in image, the domain the data set in source.

    Images inside the file are written into the folder of --images, by default one next to the manifest; without them
    the files that image names are searched next to SOURCE.

    Examples:
        captune prepare detailcaps DetailCaps-4870.parquet --out detailcaps/manifest.jsonl
    """
    from captune.data import InlineImages, SourceFile
    from captune.data.importers import DETAILCAPS_REFERENCES, FORMATS, detailcaps_has_images, detailcaps_rows

    inline_images = None
    if detailcaps_has_images(source):
        images = image_target(output.out, images)
        images.mkdir(parents=True, exist_ok=True)
        inline_images = InlineImages(images)
    reading = SourceFile(source)
    columns = tuple(caption_column or DETAILCAPS_REFERENCES)
    rows = detailcaps_rows(reading, columns=columns, inline_images=inline_images)
    import_rows(rows, source, reading, FORMATS["detailcaps"].images, output, images=images)


@app.command(short_help="ShareGPT4V: conversations about an image, a detailed caption each.")
@with_shared_options
def sharegpt4v(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A .json or .jsonl file of ShareGPT4V, or the folder that holds one."),
    ],
    output: Output,
    images: Images = None,
    split: SplitOrShares = "train",
    seed: Seed = 0,
    turns: Annotated[
        Literal["first", "all"], typer.Option(help="Which answers of a conversation are captions of its image.")
    ] = "first",
) -> None:
    """ShareGPT4V's captions, and other files of its layout: id, image, conversations.

    The first answer is the caption. Use the files of captions (cap100k, share-captioner): in mixtures such as mix665k
    most answers are no descriptions. Images are looked for below data, images or next to SOURCE.

    Examples:
        captune prepare sharegpt4v sharegpt4v_instruct_gpt4-vision_cap100k.json --out sharegpt4v.jsonl
    """
    from captune.data import SourceFile
    from captune.data.importers import FORMATS, sharegpt4v_rows

    file = find_file(source, "sharegpt4v")
    split_name, shares = split_and_shares(split, seed)
    reading = SourceFile(file)
    rows = sharegpt4v_rows(reading, split=split_name, turns=turns)
    import_rows(rows, file, reading, FORMATS["sharegpt4v"].images, output, images=images, shares=shares)


app.command("table", short_help="CSV, TSV, JSON or parquet with named columns, or conversations.")(table)
app.command("folder", short_help="Images with a .txt of the same name next to each.")(folder)
app.command("hf", short_help="A Hugging Face data set, from a folder or the hub.")(hf)
app.command("webdataset", short_help="Tars with an image and its captions under one key.")(webdataset)
