"""What `captune score` and `captune compare` share: from files and options to scores, and from scores to output."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune.cli.scoring_options import REPORTED
from captune.errors import MetricInputError
from captune.metrics import METRICS, ScoringOptions

if TYPE_CHECKING:
    from captune.metrics import PredictionFile, ReferenceFile, Scorer, Scores

__all__ = [
    "ScoringRun",
    "System",
    "check_out",
    "load_system",
    "make_scorer",
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
        from captune.cli.preflight import require_extra
        from captune.errors import WeightsError
        from captune.hub import is_hub_id, require_available

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


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    print(f"captune: warning: {sentence}", file=sys.stderr)


def load_system(references: ReferenceFile, predictions: PredictionFile, name: str, run: ScoringRun) -> System:
    """Match the captions of one system with the references, and collect warnings.

    Raises:
        MetricInputError: their images differ.
    """
    from captune.metrics import align, caption_warnings, language_warning

    aligned = align(predictions, references, subset=run.subset)
    warnings = list(aligned.warnings) + caption_warnings(aligned.predictions, aligned.references)
    tokenize = run.options.tokenize
    if tokenize == "ptb":
        for captions, whose in (
            ([caption for group in aligned.references.values() for caption in group], "references"),
            (list(aligned.predictions.values()), "predictions"),
        ):
            if sentence := language_warning(captions):
                warnings.append(f"In the {whose}: {sentence}")
                break
    else:
        english = [METRICS[name].names()[0] for name in run.metrics if METRICS[name].english_only]
        warnings += [f"{metric} supports English only; --tokenize does not apply to it." for metric in english]
    finished = {image: predictions.finished[image] for image in aligned.predictions if image in predictions.finished}
    files = {image: references.images[image] for image in aligned.predictions if image in references.images}
    file_names = {
        image: references.file_names[image] for image in aligned.predictions if image in references.file_names
    }
    return System(name, aligned.predictions, aligned.references, finished, files, file_names, warnings)


def make_scorer(system: System, run: ScoringRun) -> tuple[Scorer, tuple[str, ...]]:
    """Prepare the references of a system.

    CIDEr of a single image is undefined (every n-gram has the weight ln 1 = 0): it is left out with a warning, and is
    an error where no other metric was requested.

    Returns:
        The scorer, and the metrics to show.

    Raises:
        MetricInputError: only CIDEr was requested, of one image.
    """
    from captune.metrics import Scorer

    metrics = run.metrics
    if len(system.references) == 1 and run.options.document_frequencies is None:
        kept = tuple(name for name in metrics if not METRICS[name].uses_document_frequencies)
        if kept != metrics:
            sentence = "CIDEr of one image is undefined, since it weighs n-grams by how many images hold them"
            advice = "give more images, or --document-frequencies of a corpus"
            if not kept and metrics == run.names:
                raise MetricInputError(f"{sentence}; {advice}.")
            system.warnings.append(f"{sentence}; it is left out ({advice}).")
            metrics = kept
    # Reports alone have a signature too, and ROUGE-L is the cheapest metric.
    options = replace(run.options, metrics=metrics or ("rouge-l",))
    files = _image_files(system, run.images) if run.needs("images") else None
    return Scorer(system.references, options, image_files=files), metrics


def _image_files(system: System, folder: Path | None) -> dict[str | int, Path]:
    """The file of each image: as the references name it, else in the folder of --images.

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
                f"CLIPScore needs the picture of image '{image}'{where}; give --images FOLDER, or references with an "
                '"image" path (a captune manifest).'
            )
        file_name = system.file_names.get(image, None if path is None else path.name)
        try:
            file = index.find(image, file_name)
        except DataError as error:
            raise MetricInputError(f"CLIPScore: {error}") from error
        if file is None:
            looked_for = index.looked_for(image, file_name)
            raise MetricInputError(
                f"There is no picture of image '{image}' in '{folder}', where {looked_for} was looked for."
            )
        files[image] = file
    return files


def score_system(system: System, scorer: Scorer, metrics: tuple[str, ...]) -> Scores:
    """The scores to show of one system."""
    scores = scorer.score(system.predictions)
    return replace(scores, statistics={name: scores.statistics[name] for name in metrics})


def scales(scores: Scores) -> dict[str, str]:
    """The scale of each score in print, "0-10": papers multiply by 100, or by 10, or not."""
    return {column.name: column.scale for name in scores.statistics for column in METRICS[name].columns}


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
