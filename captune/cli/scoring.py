"""What `captune score` and `captune compare` share: from files to scores, and from scores to output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune.cli.output import print_message
from captune.cli.scoring_options import REPORTED
from captune.errors import MetricInputError
from captune.metrics import (
    DEFAULT_METRICS,
    METRICS,
    ScoringOptions,
    find_column,
    iter_columns,
)

if TYPE_CHECKING:
    from captune.common import Thinking
    from captune.metrics import PredictionFile, ReferenceFile, Scorer, Scores

__all__ = [
    "ScoringRun",
    "System",
    "check_out",
    "column_names",
    "factor",
    "image_files",
    "load_system",
    "make_scorer",
    "metrics_of_columns",
    "scales",
    "score_system",
    "to_json",
    "warn",
    "write",
]


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
