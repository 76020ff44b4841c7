"""`captune score`: captions against references, with signature, scale and error bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune.cli import scoring
from captune.cli import scoring_options as given
from captune.cli.external_metrics import check_external
from captune.cli.scoring import System
from captune.cli.scoring_options import SCALES, Options

if TYPE_CHECKING:
    from captune.metrics import Scores
    from captune.metrics.significance import Interval

__all__ = ["register", "score"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("score")(score)


def score(
    references: given.ReferencesFile,
    predictions: Annotated[
        list[Path],
        typer.Option(
            "--predictions",
            "-p",
            help="coco-caption results, JSON Lines, {id: caption}, CSV or lines of text; may be .gz; '-' is stdin.",
            show_default=False,
        ),
    ],
    metrics: given.Metrics = "bleu,cider,rouge-l",
    metric: Annotated[
        str | None, typer.Option(help="Show this one number only, for example CIDEr.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print numbers without names, no warnings.")] = False,
    as_json: given.Json = False,
    per_image: Annotated[bool, typer.Option("--per-image", help="With --json: scores of every image too.")] = False,
    form: given.OutputFormat = given.Format.TEXT,
    confidence: Annotated[bool, typer.Option("--confidence", help="Show 95 % bootstrap intervals.")] = False,
    resamples: Annotated[int, typer.Option(min=2, help="Resamples of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 12345,
    digits: Annotated[int, typer.Option(min=0, max=17, help="Digits after the point.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Write here instead of to stdout.", show_default=False)] = None,
    split: given.Split = None,
    tokenize: given.Tokenizer = given.Tokenize.PTB,
    compat: given.Compatibility = given.Compat.CAPTION,
    subset: given.Subset = False,
    jobs: given.Jobs = 1,
    training: Annotated[
        Path | None,
        typer.Option(help="Captions of the training set, for the share of novel captions.", show_default=False),
    ] = None,
    data: given.Data = None,
    prompt: given.Prompt = None,
    decoding: given.Decoding = None,
    protocol: given.Protocol = None,
    document_frequencies: given.Frequencies = None,
    images: given.Images = None,
    clip: given.Clip = given.DEFAULT_CLIP,
    java: given.Java = None,
    java_memory: given.JavaMemory = None,
    time_limit: given.TimeLimit = None,
    spice_models: given.SpiceModels = None,
    spice_cache: given.SpiceCache = None,
) -> None:
    """Score captions as coco-caption does, without Java unless METEOR or SPICE is asked for."""
    from captune.metrics.files import read_predictions, read_reference_files

    keys = given.metric_keys(metrics) if metric is None else (_key_of(metric),)
    options = Options(
        metrics=keys,
        tokenize=tokenize.value,
        compat=compat.value,
        subset=subset,
        jobs=jobs,
        data=data,
        split=split,
        prompt=prompt,
        decoding=decoding,
        protocol=protocol,
        document_frequencies=document_frequencies,
        java=java,
        java_memory=java_memory,
        time_limit=time_limit,
        spice_models=spice_models,
        spice_cache=spice_cache,
        clip=clip,
        images=images,
    )
    scoring.check_out(out, "score", [*references, *predictions, training, data, protocol, document_frequencies])
    check_external(options)
    read = read_reference_files(references, split)
    file = given.the_one(predictions, "--predictions", "; `captune compare` takes several")
    system = scoring.load_system(read, read_predictions(file), file.stem, options)
    scorer, shown = scoring.make_scorer(system, options)
    scores = scoring.score_system(system, scorer, shown, options)
    intervals: dict[str, Interval] = {}
    if confidence and scores.statistics:
        from captune.metrics.significance import confidence_intervals

        intervals = confidence_intervals(scores, resamples=resamples, seed=seed)
    extras = _extras(system, training, options)
    if not quiet:
        for sentence in system.warnings:
            scoring.warn(sentence)
    if as_json:
        text = _json(scores, intervals, extras, system, metric, per_image, _about_intervals(intervals, resamples, seed))
    elif quiet:
        text = "\n".join(f"{value:.{digits}f}" for value in _chosen(scores, extras, metric).values())
    else:
        notes = [scores.signature]
        if intervals:
            notes.insert(0, _about_intervals(intervals, resamples, seed))
        text = _table(scores, intervals, extras, metric, form.value, digits, notes)
    scoring.write(text, out, "score")


def _key_of(name: str) -> str:
    """The metric that a score's name belongs to: "CIDEr" is of "cider"."""
    from captune.errors import MetricInputError
    from captune.metrics.failures import FAILURES

    lower = name.lower()
    names = {score.lower(): score.lower() for score in SCALES} | {f"bleu-{order}": "bleu" for order in range(1, 5)}
    names |= {"refclipscore": "clipscore"} | dict.fromkeys((*FAILURES, "any"), "failures")
    names |= dict.fromkeys(DIVERSITY, "diversity")
    if lower not in names:
        known = ", ".join((*SCALES, *DIVERSITY, *FAILURES))
        raise MetricInputError(f"There is no score '{name}'; choose one of {known}.")
    return names[lower]


DIVERSITY = ("distinct-1", "distinct-2", "vocabulary", "mean length", "unique", "novel")
UNITS = {"vocabulary": "words", "mean length": "words"}


def _extras(system: System, training: Path | None, options: Options) -> dict[str, dict[str, Any]]:
    """Diversity and failures, by name, where they are asked for."""
    extras: dict[str, dict[str, Any]] = {}
    captions = list(system.predictions.values())
    if "diversity" in options.metrics:
        from captune.metrics.diversity import diversity
        from captune.metrics.files import read_references

        seen = None
        if training is not None:
            seen = [caption for group in read_references(training).captions.values() for caption in group]
        extras["diversity"] = diversity(captions, tokenize=options.tokenize, training=seen).to_dict()
    if "failures" in options.metrics:
        from captune.metrics.failures import find_failures

        finished = None
        if system.finished:
            finished = [system.finished.get(image, True) for image in system.predictions]
        failures = find_failures(
            captions, list(system.references.values()), finished=finished, tokenize=options.tokenize
        )
        extras["failures"] = dict(failures.rates)
        extras["failed images"] = {
            image: kinds for place, image in enumerate(system.predictions) if (kinds := failures.of(place))
        }
    return extras


def _chosen(scores: Scores, extras: dict[str, dict[str, Any]], metric: str | None) -> dict[str, float]:
    """The numbers to show, by name; one of them where one is asked for.

    Raises:
        MetricInputError: the one asked for was not computed.
    """
    from captune.errors import MetricInputError

    numbers: dict[str, Any] = dict(scores.corpus)
    for key in ("diversity", "failures"):
        numbers |= extras.get(key, {})
    if metric is None:
        return {name: float("nan") if value is None else value for name, value in numbers.items()}
    for name, value in numbers.items():
        if name.lower() == metric.lower():
            return {name: float("nan") if value is None else value}
    raise MetricInputError(f"'{metric}' was not computed; 'novel' needs --training, 'unfinished' a file that tells it.")


def _table(
    scores: Scores,
    intervals: dict[str, Interval],
    extras: dict[str, dict[str, Any]],
    metric: str | None,
    form: str,
    digits: int,
    notes: list[str],
) -> str:
    from captune.common.tables import table

    header = ["Metric", "Score", "Scale"] + (["95 % interval"] if intervals else [])
    rows = []
    for name, value in _chosen(scores, extras, metric).items():
        scale = SCALES.get(name) or UNITS.get(name) or "share"
        number = f"{value:.{digits}f}" if isinstance(value, float) else f"{value}"
        row = [name, number, scale]
        if intervals:
            interval = intervals.get(name)
            row.append("" if interval is None else f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]")
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
    chosen = _chosen(scores, extras, metric)
    answer: dict[str, Any] = {
        "signature": scores.signature,
        "images": len(scores.ids),
        "scores": {name: value for name, value in chosen.items() if name in scores.corpus},
        "scales": {name: SCALES[name] for name in chosen if name in scores.corpus},
    }
    if intervals:
        answer["resampling"] = about_intervals
        answer["intervals"] = {
            name: {"low": interval.low, "high": interval.high, "deviation": interval.deviation}
            for name, interval in intervals.items()
            if name in chosen
        }
    answer |= {key.replace(" ", "_"): values for key, values in extras.items()}
    answer["warnings"] = system.warnings
    if per_image:
        answer["per_image"] = scores.per_image
    return scoring.to_json(answer)
