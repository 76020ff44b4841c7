"""`captune score`: captions against references, with signature, scale and error bar."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune.cli import scoring, scoring_options
from captune.cli.progress import metric_progress
from captune.cli.scoring import ScoringRun, System
from captune.cli.shared_options import with_shared_options
from captune.errors import MetricInputError
from captune.metrics import iter_columns

if TYPE_CHECKING:
    from captune.metrics import Interval, ReferenceFile, Scores

__all__ = ["score"]


def _complete_scores(incomplete: str) -> list[str]:
    """Values of `--metric` for the completion of a shell."""
    names = dict.fromkeys((*(column.name for _, column in iter_columns()), *DIVERSITY))
    return [name for name in names if name.lower().startswith(incomplete.lower())]


@with_shared_options
def score(
    references: scoring_options.ReferencesFile,
    predictions: Annotated[
        list[Path],
        typer.Option(
            "--predictions",
            "-p",
            help="coco-caption results, JSON Lines, {id: caption}, CSV or lines of text; may be .gz; '-' is stdin.",
            show_default=False,
        ),
    ],
    *,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Show this one number only, for example CIDEr.", show_default=False, autocompletion=_complete_scores
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print numbers without names, no warnings.")] = False,
    per_image: Annotated[bool, typer.Option("--per-image", help="With --json: scores of every image too.")] = False,
    confidence: Annotated[bool, typer.Option("--confidence", help="Show 95 % bootstrap intervals.")] = False,
    resamples: Annotated[int, typer.Option(min=2, help="Resamples of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 12345,
    training: Annotated[
        Path | None,
        typer.Option(help="Captions of the training set, for the share of novel captions.", show_default=False),
    ] = None,
    pool_seeds: Annotated[
        bool,
        typer.Option("--pool-seeds", help="Several --predictions are seeds of one system: mean, spread, interval."),
    ] = False,
    shared: scoring_options.SharedOptions,
) -> None:
    """Score captions as coco-caption does, without Java unless METEOR or SPICE is requested.

    Examples:
        captune score -r test.jsonl -p captions.json
        captune score -r test.jsonl -p captions.json --metrics cider,meteor --confidence
        captune score -r test.jsonl -p captions.json --metric CIDEr --quiet
        captune score -r test.jsonl -p seed1.json -p seed2.json -p seed3.json --pool-seeds
    """
    from captune.metrics import read_reference_files

    names = scoring_options.metric_names(shared.metrics) if metric is None else (_metric_of(metric),)
    run = ScoringRun(names, shared.scoring_options(), shared.subset, shared.images)
    scoring.check_out(
        shared.out,
        "score",
        shared.inputs(*references, *predictions, training),
    )
    run.check_requirements()
    read = read_reference_files(references, shared.split)
    if pool_seeds:
        text = _score_seeds(read, predictions, run, shared, metric, resamples, seed)
        scoring.write(text, shared.out, "score")
        return
    file = scoring_options.exactly_one(
        predictions, "--predictions", "; `captune compare` takes several, and --pool-seeds takes seeds of one system"
    )
    system = scoring.load_system(read, shared.read_predictions(file, read), file.stem, run)
    with metric_progress() as on_metric:
        scorer, shown = scoring.make_scorer(system, run, on_metric)
        scores = scoring.score_system(system, scorer, shown)
    intervals: dict[str, Interval] = {}
    if confidence and scores.statistics:
        from captune.metrics import confidence_intervals

        intervals = confidence_intervals(scores, resamples=resamples, seed=seed)
    extras = _extras(system, training, run)
    if not quiet:
        for sentence in system.warnings:
            scoring.warn(sentence)
    if shared.as_json:
        text = _json(scores, intervals, extras, system, metric, per_image, _about_intervals(intervals, resamples, seed))
    elif quiet:
        text = "\n".join(f"{value:.{shared.shown_digits}f}" for value in _shown(scores, extras, metric).values())
    else:
        notes = [*_most_hallucinated(extras), scores.signature]
        if intervals:
            notes.insert(0, _about_intervals(intervals, resamples, seed))
        text = _table(scores, intervals, extras, metric, shared.form, shared.shown_digits, notes, int(shared.scale))
    scoring.write(text, shared.out, "score")


def _score_seeds(
    references: ReferenceFile,
    files: list[Path],
    run: ScoringRun,
    shared: scoring_options.SharedOptions,
    metric: str | None,
    resamples: int,
    seed: int,
) -> str:
    """Mean, spread and interval over the seeds of one system, as a table or as JSON."""
    from captune.common import table
    from captune.metrics import pool_seeds

    if len(files) < 2:
        raise MetricInputError("--pool-seeds needs --predictions twice at least, one for each seed.")
    if reports := [name for name in run.names if name in scoring_options.REPORTED]:
        raise MetricInputError(f"{reports[0]} is not pooled over seeds; leave it out, or score one file.")
    scored: list[Scores] = []
    warnings: list[str] = []
    with metric_progress() as on_metric:
        scorer = None
        for file in files:
            system = scoring.load_system(references, shared.read_predictions(file, references), file.stem, run)
            if scorer is None:
                scorer, shown = scoring.make_scorer(system, run, on_metric)
            scored.append(scoring.score_system(system, scorer, shown))
            warnings.extend(f"{file}: {sentence}" for sentence in system.warnings)
    for sentence in warnings:
        scoring.warn(sentence)
    pooled = pool_seeds(scored, resamples=resamples, seed=seed)
    if metric is not None:
        pooled = {name: score for name, score in pooled.items() if name.lower() == metric.lower()}
    about = f"95 % interval of the mean: bootstrap of {resamples:,} resamples of images and seeds, seed {seed}."
    if shared.as_json:
        answer: dict[str, Any] = {"signature": scored[0].signature, "images": len(scored[0].ids), "seeds": len(files)}
        answer["scores"] = {name: score.mean for name, score in pooled.items()}
        answer["spread"] = {name: score.spread for name, score in pooled.items()}
        answer["intervals"] = {name: {"low": score.low, "high": score.high} for name, score in pooled.items()}
        answer["scales"] = {name: scale for name, scale in scoring.scales(scored[0]).items() if name in pooled}
        return scoring.to_json({**answer, "resampling": about, "warnings": warnings})
    multiplier, digits = int(shared.scale), shared.shown_digits
    scales = scoring.scales(scored[0], multiplier)
    rows = []
    for name, score in pooled.items():
        values = (score.mean, score.spread, score.low, score.high)
        mean, spread, low, high = (f"{value * scoring.factor(name, multiplier):.{digits}f}" for value in values)
        rows.append([name, mean, spread, f"[{low}, {high}]", scales[name]])
    header = ["Metric", f"Mean of {len(files)}", "Spread", "95 % interval", "Scale"]
    return table(shared.form, header, rows, [about, scored[0].signature])


def _metric_of(name: str) -> str:
    """The metric or report that yields a score: "CIDEr" is of "cider"."""
    from captune.metrics import FAILURES

    reports = dict.fromkeys((*FAILURES, "any"), "failures") | dict.fromkeys(DIVERSITY, "diversity")
    columns: dict[str, str] = {}
    for key, column in iter_columns():
        columns.setdefault(column.name, key)
    by_lower = {column.lower(): key for column, key in (columns | reports).items()}
    if name.lower() not in by_lower:
        raise MetricInputError(f"There is no score '{name}'; choose one of {', '.join((*columns, *reports))}.")
    return by_lower[name.lower()]


_MOST_HALLUCINATED = 10
DIVERSITY = ("distinct-1", "distinct-2", "vocabulary", "mean length", "unique", "novel")
UNITS = {"vocabulary": "words", "mean length": "words"}


def _extras(system: System, training: Path | None, run: ScoringRun) -> dict[str, dict[str, Any]]:
    """Diversity and failures, by name, where they are requested."""
    extras: dict[str, dict[str, Any]] = {}
    captions = list(system.predictions.values())
    if "diversity" in run.names:
        from captune.metrics import measure_diversity, read_references

        seen = None
        if training is not None:
            seen = [caption for group in read_references(training).captions.values() for caption in group]
        extras["diversity"] = measure_diversity(captions, tokenize=run.options.tokenize, training=seen).to_dict()
    if "failures" in run.names:
        from captune.metrics import find_failures

        finished = None
        if system.finished:
            finished = [system.finished.get(image, True) for image in system.predictions]
        references = list(system.references.values())
        unclosed = [system.thinking.get(image) == "unclosed" for image in system.predictions]
        failures = find_failures(
            captions, references, finished=finished, unclosed=unclosed, tokenize=run.options.tokenize
        )
        extras["failures"] = dict(failures.rates)
        extras["failed images"] = {
            image: kinds for row, image in enumerate(system.predictions) if (kinds := failures.of(row))
        }
    if "chair" in run.names:
        from captune.metrics import find_hallucinations

        wrong = find_hallucinations(system.predictions, system.references, run.options)
        extras["hallucinated objects"] = {
            str(image): [{"class": mention.name, "start": mention.start, "end": mention.end} for mention in mentions]
            for image, mentions in wrong.items()
        }
    return extras


def _most_hallucinated(extras: dict[str, dict[str, Any]]) -> list[str]:
    """A note of the classes that captions hallucinate most often; empty where there are none."""
    mentions = extras.get("hallucinated objects", {}).values()
    counts = Counter(mention["class"] for image in mentions for mention in image).most_common(_MOST_HALLUCINATED)
    return [f"Most often hallucinated: {', '.join(f'{name} {count:,}' for name, count in counts)}."] if counts else []


def _shown(scores: Scores, extras: dict[str, dict[str, Any]], metric: str | None) -> dict[str, float]:
    """The numbers to show, by name; one of them where one is requested.

    Raises:
        MetricInputError: the requested one was not computed.
    """
    numbers: dict[str, Any] = dict(scores.corpus)
    for key in ("diversity", "failures"):
        numbers |= extras.get(key, {})
    if metric is None:
        return {name: float("nan") if value is None else value for name, value in numbers.items()}
    for name, value in numbers.items():
        if name.lower() == metric.lower():
            return {name: float("nan") if value is None else value}
    raise MetricInputError(
        f"'{metric}' was not computed; 'novel' needs --training, 'unfinished' needs predictions that record it."
    )


def _table(
    scores: Scores,
    intervals: dict[str, Interval],
    extras: dict[str, dict[str, Any]],
    metric: str | None,
    form: str,
    digits: int,
    notes: list[str],
    multiplier: int,
) -> str:
    from captune.common import table

    header = ["Metric", "Score", "Scale"] + (["95 % interval"] if intervals else [])
    scales = scoring.scales(scores, multiplier)
    rows = []
    for name, value in _shown(scores, extras, metric).items():
        scale = scales.get(name) or UNITS.get(name, "share")
        factor = scoring.factor(name, multiplier)
        number = f"{value * factor:.{digits}f}" if isinstance(value, float) else f"{value}"
        row = [name, number, scale]
        if intervals:
            interval = intervals.get(name)
            ends = () if interval is None else (interval.low, interval.high)
            row.append(f"[{', '.join(f'{end * factor:.{digits}f}' for end in ends)}]" if ends else "")
        rows.append(row)
    return table(form, header, rows, notes)


def _about_intervals(intervals: dict[str, Interval], resamples: int, seed: int) -> str:
    kept = next((interval.frequencies for interval in intervals.values() if interval.frequencies), None)
    weights = f"; CIDEr's document frequencies are {kept}" if kept else ""
    return f"95 % interval: bootstrap of {resamples:,} resamples of the images, seed {seed}{weights}."


def _json(
    scores: Scores,
    intervals: dict[str, Interval],
    extras: dict[str, dict[str, Any]],
    system: System,
    metric: str | None,
    per_image: bool,
    about_intervals: str,
) -> str:
    shown = _shown(scores, extras, metric)
    answer: dict[str, Any] = {
        "signature": scores.signature,
        "images": len(scores.ids),
        "scores": {name: value for name, value in shown.items() if name in scores.corpus},
        "scales": {name: scale for name, scale in scoring.scales(scores).items() if name in shown},
    }
    if intervals:
        answer["resampling"] = about_intervals
        answer["intervals"] = {
            name: {"low": interval.low, "high": interval.high, "deviation": interval.deviation}
            for name, interval in intervals.items()
            if name in shown
        }
    answer |= {key.replace(" ", "_"): values for key, values in extras.items()}
    if system.thinking:
        answer["thinking"] = system.thinking
    answer["warnings"] = system.warnings
    if per_image:
        answer["per_image"] = scores.per_image
    return scoring.to_json(answer)
