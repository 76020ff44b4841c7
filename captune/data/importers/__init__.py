"""Importers of caption files: each knows one format and yields a `Row` or an `Issue` for every image.

flickr.py         Flickr8k, Flickr30k, Flickr30k-CN, COCO-CN
coco.py           COCO, NoCaps, MiniGPT-4's filter_cap.json, TextCaps
karpathy.py       Karpathy's JSON, and the splits in it
table.py          CSV, TSV, JSON and parquet with named columns
json_table.py     rows and conversations from JSON
long_captions.py  DOCCI, DetailCaps, ShareGPT4V
discovery.py      the images and captions in a folder without a description
table_guess.py    the layout of a table whose columns are not named
folder.py         images with a text file next to each
hugging_face.py   data sets of the library `datasets`
webdataset.py     tars

`captune.data.importing.prepare` writes the manifest from the rows of any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.data.importers.coco import coco_rows, textcaps_rows
    from captune.data.importers.discovery import CaptionSource, Discovery, discover, source_of_file
    from captune.data.importers.flickr import (
        chinese_lists,
        flickr30k_rows,
        listed_splits,
        token_rows,
        with_coco_names,
        write_grounded_detail,
    )
    from captune.data.importers.folder import FolderSource
    from captune.data.importers.hugging_face import HuggingFaceSource
    from captune.data.importers.karpathy import UNLISTED, karpathy_rows, read_splits, with_splits
    from captune.data.importers.long_captions import (
        DETAILCAPS_REFERENCES,
        detailcaps_has_images,
        detailcaps_rows,
        docci_rows,
        sharegpt4v_rows,
    )
    from captune.data.importers.table import Columns, table_rows
    from captune.data.importers.table_guess import TABLE_SUFFIXES, TableGuess, guess_table
    from captune.data.importers.webdataset import WebDatasetSource

__all__ = [
    "DETAILCAPS_REFERENCES",
    "FORMATS",
    "TABLE_SUFFIXES",
    "UNLISTED",
    "CaptionSource",
    "Columns",
    "Discovery",
    "FolderSource",
    "Format",
    "HuggingFaceSource",
    "TableGuess",
    "WebDatasetSource",
    "chinese_lists",
    "coco_rows",
    "detailcaps_has_images",
    "detailcaps_rows",
    "discover",
    "docci_rows",
    "flickr30k_rows",
    "guess_table",
    "karpathy_rows",
    "listed_splits",
    "read_splits",
    "sharegpt4v_rows",
    "source_of_file",
    "table_rows",
    "textcaps_rows",
    "token_rows",
    "with_coco_names",
    "with_splits",
    "write_grounded_detail",
]

__getattr__ = lazy_names(
    __name__,
    {
        "coco": ["coco_rows", "textcaps_rows"],
        "discovery": ["CaptionSource", "Discovery", "discover", "source_of_file"],
        "flickr": [
            "chinese_lists",
            "flickr30k_rows",
            "listed_splits",
            "token_rows",
            "with_coco_names",
            "write_grounded_detail",
        ],
        "folder": ["FolderSource"],
        "hugging_face": ["HuggingFaceSource"],
        "karpathy": ["UNLISTED", "karpathy_rows", "read_splits", "with_splits"],
        "long_captions": [
            "DETAILCAPS_REFERENCES",
            "detailcaps_has_images",
            "detailcaps_rows",
            "docci_rows",
            "sharegpt4v_rows",
        ],
        "table": ["Columns", "table_rows"],
        "table_guess": ["TABLE_SUFFIXES", "TableGuess", "guess_table"],
        "webdataset": ["WebDatasetSource"],
    },
)


@dataclass(frozen=True)
class Format:
    """The usual names of the files of a format.

    Attributes:
        images: of the image folder, relative to the annotation file.
        annotations: of the annotation file in a folder.
        origin: where the annotation file comes from, as a clause.
    """

    images: tuple[str, ...]
    annotations: tuple[str, ...] = ()
    origin: str = ""


FORMATS: Final = {
    "flickr30k": Format(
        images=("flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images", "images"),
        annotations=("flickr_annotations_30k.csv", "results.csv", "results_20130124.token"),
        origin="it and flickr30k-images.zip are files of the data set nlphuji/flickr30k on Hugging Face",
    ),
    "flickr8k": Format(
        images=("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset"),
        annotations=("Flickr8k.token.txt", "captions.txt"),
        origin="Flickr8k's captions are Flickr8k.token.txt",
    ),
    "karpathy": Format(images=("images", "flickr30k-images", "")),
    "coco": Format(images=("images", "image")),
    "nocaps": Format(images=("validation", "val", "images")),
    "textcaps": Format(images=("train_images", "images")),
    "chinese": Format(
        images=("images", "flickr30k-images", ""),
        annotations=("imageid.human-written-caption.txt",),
        origin="COCO-CN's is imageid.human-written-caption.txt",
    ),
    "docci": Format(
        images=("images", "docci_images", ""),
        annotations=("docci_descriptions.jsonlines",),
        origin="DOCCI's descriptions are docci_descriptions.jsonlines, its images docci_images.tar.gz",
    ),
    "detailcaps": Format(images=("images", "")),
    "sharegpt4v": Format(
        images=("data", "images", ""),
        annotations=("sharegpt4v_instruct_gpt4-vision_cap100k.json", "share-captioner_coco_lcs_sam_1246k_1107.json"),
        origin="ShareGPT4V's are files of the data set Lin-Chen/ShareGPT4V on Hugging Face",
    ),
    "table": Format(images=("images", "image", "")),
}
"""The formats by the name of their subcommand of `captune prepare`; those without annotation files are not listed."""
