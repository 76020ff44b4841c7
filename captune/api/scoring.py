"""`score` and `compare`: captions of one system, or of several, against references."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from captune.api.captions import Captions, match_captions
from captune.common import html_table, text_table
from captune.errors import MetricInputError, MissingExtraError
from captune.metrics import (
    DEFAULT_METRICS,
    FEWEST_IMAGES,
    LENGTH_TOLERANCE,
    Comparison,
    EqualLengthTests,
    LengthMatching,
    Scorer,
    Scores,
    ScoringOptions,
    approximate_randomization,
    check_metrics,
    compare_at_equal_length,
    defined_metrics,
    paired_bootstrap,
    scoring_warnings,
    significance_mark,
)

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["ComparedSystems", "compare", "score"]

logger = logging.getLogger(__name__)

ImageFiles = Mapping[Any, str | PathLike[str]]


def score(
    predictions: Captions,
    references: Captions,
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    *,
    tokenizer: str = "ptb",
    ids: Sequence[Any] | None = None,
    split: str | None = None,
    subset: bool = False,
    match: Literal["exact", "stem"] = "exact",
    image_files: ImageFiles | None = None,
    **options: Any,
) -> Scores:
    """Score captions with the numbers of coco-caption; needs no torch.

        captune.score({"1": "a dog runs"}, {"1": ["A dog runs.", "The dog is running."]})
        captune.score(["a dog runs", "a cat"], [["A dog runs."], ["A cat.", "One cat."]])
        captune.score("predictions.json", "references.jsonl", ["cider", "bleu"], split="test")
        captune.score(frame["prediction"], frame["references"])

    Warnings (empty captions, captions in another language, ...) are logged.

    Args:
        predictions: one caption for each image: a dictionary from image id to caption, a list, a pandas Series or
            DataFrame (columns `image_id` and `caption`; or ids in the index), or the path of a file.
        references: one or more captions for each image, in the same forms; a DataFrame may have a row for each.
        metrics: names out of `captune.metrics.METRICS`, such as "cider"; one, or a list.
        tokenizer: "ptb" (coco-caption's, for English), "zh-char", "zh-jieba", "13a", "none", ...; see docs/metrics.md.
        ids: of the images, for lists; by default their positions from 0.
        split: of the references' file ("test").
        subset: score the predicted images only; otherwise a missing prediction is an error.
        match: "stem" joins ids of two files that differ by folder or file ending only.
        image_files: image id to image file, for CLIPScore.
        **options: further fields of `captune.metrics.ScoringOptions`.

    Returns:
        Scores of the corpus and of each image with their signature; a notebook displays a table.

    Raises:
        MetricInputError: the input cannot be scored; the sentence says why and what to do.
    """
    settings = _options(metrics, tokenizer, split, options)
    predicted, referred, warnings = match_captions(
        predictions, references, ids=ids, split=split, subset=subset, match=match
    )
    scorer, referred = _scorer(predicted, referred, settings, subset, image_files, warnings)
    scores = scorer.score(predicted)
    _log_warnings(predicted, referred, settings, warnings)
    return scores


@dataclass(frozen=True, eq=False, repr=False)
class ComparedSystems:
    """Systems on the same images, each tested against the first; a notebook displays them as a table.

    Attributes:
        scores: of each system by its name.
        tests: of each system but the first: score -> (paired bootstrap, approximate randomization).
        confidence: of the intervals of differences.
        equal_length: the tests of each system but the first at equal length; empty if they were not requested.
    """

    scores: Mapping[str, Scores]
    tests: Mapping[str, Mapping[str, tuple[Comparison, Comparison]]]
    confidence: float
    equal_length: Mapping[str, EqualLengthTests] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """The first system."""
        return next(iter(self.scores))

    def _table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Header, rows and notes."""
        names = list(self.scores[self.baseline].corpus)
        rows = []
        for system, scores in self.scores.items():
            marks = {name: significance_mark(*pair) for name, pair in self.tests.get(system, {}).items()}
            rows.append([system, *(f"{scores.corpus[name]:.4f}{marks.get(name, '')}" for name in names)])
        notes = [
            f"* p < 0.05, ** p < 0.01 against {self.baseline} in both tests: paired bootstrap and approximate "
            "randomization.",
            *(f"{system}, equal length: {_equal_length(result)}." for system, result in self.equal_length.items()),
            self.scores[self.baseline].signature,
        ]
        return ["System", *names], rows, notes

    def __repr__(self) -> str:
        header, rows, notes = self._table()
        return "\n".join([text_table(header, rows), *notes])

    def _repr_html_(self) -> str:
        header, rows, notes = self._table()
        return html_table(header, rows, notes=notes)

    def to_dataframe(self) -> DataFrame:
        """Differences from the first system as a pandas DataFrame.

        Returns:
            A row for each other system and score, with `score`, `baseline`, `difference`, the ends `low` and `high` of
            its confidence interval, `p_bootstrap`, `p_randomization` and `smallest_detectable`; the index has system
            and score.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise MissingExtraError("ComparedSystems.to_dataframe", "notebook") from error
        rows = {
            (system, name): {
                "score": drawn.score,
                "baseline": drawn.baseline,
                "difference": drawn.difference,
                "low": drawn.low,
                "high": drawn.high,
                "p_bootstrap": drawn.p_value,
                "p_randomization": swapped.p_value,
                "smallest_detectable": drawn.smallest,
            }
            for system, results in self.tests.items()
            for name, (drawn, swapped) in results.items()
        }
        index = pandas.MultiIndex.from_tuples(rows, names=["system", "metric"])
        return pandas.DataFrame(list(rows.values()), index=index)


def compare(
    systems: Mapping[str, Captions] | Sequence[str | PathLike[str]],
    references: Captions,
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    *,
    tokenizer: str = "ptb",
    ids: Sequence[Any] | None = None,
    split: str | None = None,
    subset: bool = False,
    match: Literal["exact", "stem"] = "exact",
    image_files: ImageFiles | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    trials: int = 10_000,
    seed: int = 12345,
    match_length: LengthMatching | None = None,
    length_tolerance: float = LENGTH_TOLERANCE,
    **options: Any,
) -> ComparedSystems:
    """Test whether systems differ, on the same images.

        captune.compare({"before": before, "after": after}, references)
        captune.compare(["before.json", "after.json"], "references.jsonl")

    Args:
        systems: captions of each system by its name, in the forms of `score`, or paths of files; every other system is
            tested against the first. p-values are not corrected for their number.
        references: as in `score`, like all up to `image_files`.
        metrics: names of metrics.
        tokenizer: of all captions.
        ids: of the images, for lists.
        split: of the references' file.
        subset: compare on the images that every system has captioned.
        match: as in `score`.
        image_files: image id to image file.
        confidence: of the intervals of differences.
        resamples: of the paired bootstrap.
        trials: of approximate randomization.
        seed: of both tests.
        match_length: also compare at equal length (`ComparedSystems.equal_length`): "pairs" keeps the images whose
            captions have about as many words, "truncate" cuts the longer caption of an image at a sentence end.
        length_tolerance: for "pairs", the share by which the longer caption may exceed the shorter one.
        **options: further fields of `captune.metrics.ScoringOptions`.

    Returns:
        Scores and tests.

    Raises:
        MetricInputError: fewer than two systems, or the input cannot be scored.
    """
    named = dict(systems) if isinstance(systems, Mapping) else _named_by_file(systems)
    if len(named) < 2:
        raise MetricInputError("compare needs two systems at least; captune.score takes one")
    settings = _options(metrics, tokenizer, split, options)
    warnings: list[str] = []
    matched = {}
    for name, captions in named.items():
        predicted, referred, notes = match_captions(
            captions, references, ids=ids, split=split, subset=subset, match=match
        )
        matched[name] = (predicted, referred)
        warnings += [f"{name}: {note}" for note in notes]
    if subset:
        common = set.intersection(*({str(image) for image in predicted} for predicted, _ in matched.values()))
        matched = {
            name: (_only(predicted, common), _only(texts, common)) for name, (predicted, texts) in matched.items()
        }
    first, referred = next(iter(matched.values()))
    scorer, referred = _scorer(first, referred, settings, subset, image_files, warnings)
    scored = {name: scorer.score(predicted) for name, (predicted, _) in matched.items()}
    logged: set[str] = set()
    for predicted, _ in matched.values():
        _log_warnings(predicted, referred, settings, warnings, logged)
        warnings = []
    (first_name, baseline), *others = scored.items()
    texts = {name: {str(image): text for image, text in predicted.items()} for name, (predicted, _) in matched.items()}
    tests = {}
    equal_length = {}
    for name, scores in others:
        drawn = paired_bootstrap(scores, baseline, confidence, resamples, seed)
        swapped = approximate_randomization(scores, baseline, trials, seed)
        tests[name] = {key: (drawn[key], swapped[key]) for key in drawn}
        if match_length is not None:
            equal_length[name] = compare_at_equal_length(
                scores,
                baseline,
                (texts[name], texts[first_name]),
                match_length,
                tolerance=length_tolerance,
                score=scorer.score,
                confidence=confidence,
                resamples=resamples,
                trials=trials,
                seed=seed,
            )
    return ComparedSystems(scored, tests, confidence, equal_length)


def _equal_length(result: EqualLengthTests) -> str:
    """The differences at equal length in words."""
    differences = ", ".join(
        f"{name} {pair[0].difference:+.4f}{significance_mark(*pair)}" for name, pair in result.tests.items()
    )
    about = f"{result.images:,} of {result.total:,} images"
    about += "" if math.isnan(result.ratio) else f", {result.ratio:.2f} times as long before"
    about += "" if result.has_intervals else f"; tests need {FEWEST_IMAGES} images"
    return f"{differences or 'no images'} ({about})"


def _options(
    metrics: str | Sequence[str], tokenizer: str, split: str | None, options: Mapping[str, Any]
) -> ScoringOptions:
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    if unknown := next((name for name in options if name not in ScoringOptions.__dataclass_fields__), None):
        from captune.common import did_you_mean

        known = ["tokenizer", *ScoringOptions.__dataclass_fields__]
        hint = did_you_mean(unknown, known, f"the options are {', '.join(known)}.")
        raise MetricInputError(f"There is no option '{unknown}'; {hint}")
    settings = ScoringOptions(
        **{"metrics": tuple(name.lower() for name in names), "tokenize": tokenizer, "split": split, **options}
    )
    check_metrics(settings.metrics)
    return settings


def _scorer(
    predicted: Mapping[Any, str],
    referred: Mapping[Any, Sequence[str]],
    settings: ScoringOptions,
    subset: bool,
    image_files: ImageFiles | None,
    warnings: list[str],
) -> tuple[Scorer, Mapping[Any, Sequence[str]]]:
    """The scorer of the images, and their references; adds to `warnings`."""
    if subset:
        referred = _only(referred, {str(image) for image in predicted}) or referred
    kept, sentence = defined_metrics(settings, len(referred))
    warnings += [sentence] if sentence else []
    files = None if image_files is None else {image: Path(file) for image, file in image_files.items()}
    return Scorer(referred, replace(settings, metrics=kept), image_files=files), referred


def _log_warnings(
    predicted: Mapping[Any, str],
    referred: Mapping[Any, Sequence[str]],
    settings: ScoringOptions,
    warnings: Sequence[str],
    logged: set[str] | None = None,
) -> None:
    """Log each sentence once; those in `logged` were logged before."""
    texts = {str(image): captions for image, captions in referred.items()}
    logged = set() if logged is None else logged
    for sentence in [*warnings, *scoring_warnings({str(i): text for i, text in predicted.items()}, texts, settings)]:
        if sentence not in logged:
            logger.warning("%s", sentence)
        logged.add(sentence)


def _only(captions: Mapping[Any, Any], images: set[str]) -> dict[Any, Any]:
    return {image: value for image, value in captions.items() if str(image) in images}


def _named_by_file(paths: Sequence[str | PathLike[str]]) -> dict[str, Any]:
    """Files by their names, with folders in front where two are called alike."""
    if isinstance(paths, (str, PathLike)) or not all(isinstance(path, (str, PathLike)) for path in paths):
        raise MetricInputError("systems are a dictionary from name to captions, or a list of paths of files")
    names = [Path(path).name.removesuffix(".gz").rsplit(".", 1)[0] for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise MetricInputError(f"the file {max(names, key=names.count)} is given twice; give each system once")
    return dict(zip(names, paths, strict=True))
