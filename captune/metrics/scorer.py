"""`Scorer` and `score_captions`: references prepared once, any number of systems scored against them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.encoding import Encoder, Rows, encode_in_processes
from captune.metrics.inputs import (
    ImageId,
    Predictions,
    References,
    caption_warnings,
    check_predictions,
    check_references,
    order_predictions,
)
from captune.metrics.metric import Metric
from captune.metrics.options import DEFAULT_METRICS, ScoringOptions
from captune.metrics.parallel import can_fork, run_in_fork, split_ranges
from captune.metrics.references import PredictionBatch, ReferenceIndex
from captune.metrics.registry import METRICS, check_metrics, package_version
from captune.metrics.scores import Scores, Signature, prompt_hash
from captune.metrics.sentences import paragraph_warning
from captune.metrics.tokenizers import language_warning, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Scorer", "defined_metrics", "score_captions", "scoring_warnings"]

# Below this number for each, a process takes longer to start and stop than it saves.
_FEWEST_IMAGES = 4_000


class Scorer:
    """Scores captions against references that are prepared once.

    Args:
        references: for each image its reference captions, at least one.
        options: how; the defaults are BLEU, CIDEr and ROUGE-L of English captions.
        image_files: image id to image file, for metrics that need images.
        on_metric: called with the name of each metric that runs another program or a model, before it starts.

    Raises:
        MetricInputError: the references cannot be scored against; the sentence says why.
        MissingExtraError: a metric needs a program or package that is not installed.
    """

    def __init__(
        self,
        references: References,
        options: ScoringOptions | None = None,
        *,
        image_files: Mapping[ImageId, str | Path] | None = None,
        on_metric: Callable[[str], None] | None = None,
    ) -> None:
        self._on_metric = on_metric
        self.options = options = ScoringOptions() if options is None else options
        check_metrics(options.metrics)
        for name in options.metrics:
            METRICS[name].check_requirements(options)
        references = cast("Mapping[ImageId, Sequence[str]]", references)
        check_references(references)
        self._references = references
        self._ids = tuple(references)
        self._encoder = Encoder(tokenizer(options.tokenize))
        self._subset: Scorer | None = None
        captions_per_image = [len(captions) for captions in references.values()]
        fewest, most = min(captions_per_image), max(captions_per_image)
        self._signature = self._sign(str(most) if fewest == most else f"{fewest}-{most}")
        offsets = np.zeros(len(references) + 1, np.int64)
        np.cumsum(captions_per_image, out=offsets[1:])
        tokens = self._encode(list(chain.from_iterable(references.values())))
        self._index = ReferenceIndex(self._encoder, tokens, offsets, references, image_files)
        self._metrics: dict[str, Metric] = {name: METRICS[name](options) for name in options.metrics}
        _check_columns(self._metrics)
        for metric in self._metrics.values():
            metric.prepare(self._index)
        self._index.finish()

    def _encode(self, captions: Sequence[str]) -> Rows:
        return encode_in_processes(self._encoder, captions, self.options.jobs, self.options.per_call)

    def _sign(self, refs: str) -> Signature:
        """The signature without the fields of the metrics."""
        options, tokens = self.options, self._encoder.tokenizer
        per_call = options.per_call and tokens.tokenize_call is not None
        return Signature(
            n=len(self._ids),
            refs=refs,
            tok=tokens.name + ("+call" if per_call else ""),
            data=options.data,
            split=options.split,
            prompt=None if options.prompt is None else prompt_hash(options.prompt),
            dec=options.decoding,
            proto=options.protocol,
            exif=options.exif,
            pixels=options.pixels,
            leak=options.leak,
        )

    def sign_prompt(self, prompt: str | None) -> None:
        """Put another prompt into the signature of the scores to come.

        Args:
            prompt: its text; None is no prompt.
        """
        self.options = replace(self.options, prompt=prompt)
        hashed = None if prompt is None else prompt_hash(prompt)
        self._signature = replace(self._signature, prompt=hashed)
        self._subset = None

    def score(self, predictions: Predictions, *, subset: bool = False) -> Scores:
        """Score one system.

        Args:
            predictions: for each image one caption, in any order; an empty caption scores 0.
            subset: score the predicted images only, as if the others were not among the references.

        Raises:
            MetricInputError: predictions are missing, belong to no image, or cannot be compared.
            ExternalToolError: a process or an external program failed.
        """
        predictions = cast("Mapping[ImageId, str]", predictions)
        check_predictions(predictions)
        rows, images = order_predictions(predictions, self._ids, subset)
        if len(rows) < len(self._ids):
            return self._restricted([self._ids[row] for row in rows]).score(predictions)
        captions = [predictions[image] for image in images]
        if self.options.per_call:
            # The lines of a call are in the order of the predictions.
            encoded = self._encode(list(predictions.values()))
            row_of = {image: row for row, image in enumerate(predictions)}
            tokens = encoded.take([row_of[image] for image in images])
        else:
            tokens = self._encode(captions)
        statistics = self._statistics(PredictionBatch(self._index, tokens, captions))
        notes = tuple(note for metric in self._metrics.values() for note in metric.notes())
        return Scores(self._ids, statistics, self._signature.with_fields(self._fields()), notes)

    def _statistics(self, batch: PredictionBatch) -> dict[str, NDArray[Any]]:
        """The statistics of every metric; where it pays, each process computes those of a share of the images."""
        forked = {name: metric for name, metric in self._metrics.items() if metric.forks}
        jobs = min(self.options.jobs, len(batch) // _FEWEST_IMAGES) if can_fork() else 1

        def compute(start: int, end: int) -> dict[str, NDArray[Any]]:
            part = batch.part(start, end)
            return {name: metric.statistics(part) for name, metric in forked.items()}

        first, *others = split_ranges(len(batch), jobs)
        with ExitStack() as processes:
            answers = [processes.enter_context(run_in_fork(partial(compute, *share))) for share in others]
            parts = [compute(*first), *(answer() for answer in answers)]
        statistics = {}
        for name, metric in self._metrics.items():
            if name in forked:
                statistics[name] = np.concatenate([part[name] for part in parts])
            else:
                if self._on_metric is not None:
                    self._on_metric(name)
                statistics[name] = _checked(name, metric, metric.statistics(batch), len(batch))
        return statistics

    def _fields(self) -> dict[str, str]:
        """What the metrics add to the signature."""
        fields: dict[str, str] = {}
        for name, metric in self._metrics.items():
            version = package_version(name)
            if version is not None:
                fields[name] = version
            fields |= metric.signature()
        return fields

    def _restricted(self, images: Sequence[ImageId]) -> Scorer:
        """The scorer of some images; the last one is kept, since checkpoints are scored on the same images."""
        if self._subset is None or self._subset._ids != tuple(images):
            references = {image: self._references[image] for image in images}
            files = self._index.image_files
            self._subset = Scorer(references, self.options, image_files=files, on_metric=self._on_metric)
        return self._subset


def _check_columns(metrics: Mapping[str, Metric]) -> None:
    """Check that no two metrics have a column of the same name."""
    seen: dict[str, str] = {}
    for name, metric in metrics.items():
        for column in metric.names():
            if column in seen:
                raise MetricInputError(f"the metrics '{seen[column]}' and '{name}' both have the column '{column}'")
            seen[column] = name


def _checked(name: str, metric: Metric, statistics: NDArray[Any], images: int) -> NDArray[Any]:
    """Statistics of a metric, which another package may have written.

    Raises:
        MetricInputError: they do not have one row for each image.
    """
    statistics = np.asarray(statistics)
    if statistics.ndim != 2 or len(statistics) != images:
        raise MetricInputError(
            f"the metric '{name}' ({type(metric).__name__}) returned statistics of shape {statistics.shape} for "
            f"{images:,} images; return one row for each image"
        )
    return statistics


def score_captions(
    predictions: Predictions,
    references: References,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    subset: bool = False,
    image_files: Mapping[ImageId, str | Path] | None = None,
    **options: Any,
) -> Scores:
    """Score captions: the numbers of coco-caption, without Java.

    To score several systems on the same references make one `Scorer`.

    Args:
        predictions: for each image one caption. An id is its text: 42 and "42" are the same image.
        references: for each image its reference captions, at least one.
        metrics: names out of `METRICS`.
        subset: score the predicted images only; otherwise a missing prediction is an error.
        image_files: image id to image file, for metrics that need images.
        options: further fields of `ScoringOptions`.

    Returns:
        Scores of the corpus and of each image, with their signature.

    Raises:
        MetricInputError: the input cannot be scored; the sentence says why and what to do. CIDEr of one image is
            undefined, and refused; `captune.score` leaves it out with a warning.
    """
    # Checked before the references are tokenized, which takes longer.
    check_predictions(cast("Mapping[ImageId, str]", predictions))
    references = cast("Mapping[ImageId, Sequence[str]]", references)
    check_references(references)
    rows, _ = order_predictions(cast("Mapping[ImageId, str]", predictions), references, subset)
    if subset:
        ids = list(references)
        references = {ids[row]: references[ids[row]] for row in rows}
    scorer = Scorer(references, ScoringOptions(metrics=metrics, **options), image_files=image_files)  # type: ignore[arg-type]
    return scorer.score(predictions)


def defined_metrics(options: ScoringOptions, images: int, *, others: bool = False) -> tuple[tuple[str, ...], str]:
    """The metrics that are defined for a number of images.

    CIDEr of a single image is undefined (every n-gram has the weight ln 1 = 0): it is left out.

    Args:
        options: with the metrics.
        images: that are scored.
        others: whether something else is reported, so that no metric needs to be left.

    Returns:
        The metrics, and a warning or "".

    Raises:
        MetricInputError: no metric is left.
    """
    check_metrics(options.metrics)
    kept = options.metrics
    if images == 1 and options.document_frequencies is None:
        kept = tuple(name for name in kept if not METRICS[name].uses_document_frequencies)
    if kept == options.metrics:
        return kept, ""
    sentence = "CIDEr of one image is undefined, since it weighs n-grams by how many images hold them"
    advice = "give more images, or document_frequencies (--document-frequencies) of a corpus"
    if not kept and not others:
        raise MetricInputError(f"{sentence}; {advice}.")
    return kept, f"{sentence}; it is left out ({advice})."


def scoring_warnings(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    options: ScoringOptions,
    metrics: Sequence[str] | None = None,
) -> list[str]:
    """Warn of captions and options that make scores misleading, a sentence each.

    Args:
        predictions: image id to caption.
        references: of the same images.
        options: of the scorer.
        metrics: those that are shown, by default all of `options`.

    Returns:
        Sentences about empty captions, their length, metrics that do not fit it, their language and the tokenizer.
    """
    warnings = caption_warnings(predictions, references)
    if for_paragraphs := paragraph_warning(references, options.metrics if metrics is None else metrics):
        warnings.append(for_paragraphs)
    if options.tokenize == "ptb":
        for captions, whose in (
            ([caption for group in references.values() for caption in group], "references"),
            (list(predictions.values()), "predictions"),
        ):
            if sentence := language_warning(captions):
                warnings.append(f"In the {whose}: {sentence}")
                break
    else:
        english = [METRICS[name].names()[0] for name in options.metrics if METRICS[name].english_only]
        warnings += [f"{metric} supports English only; the tokenizer does not apply to it." for metric in english]
    return warnings
