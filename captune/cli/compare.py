"""`captune compare`: systems on the same images, with tests of whether they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune.cli import scoring
from captune.cli.progress import metric_progress
from captune.cli.scoring import ScoringRun
from captune.cli.shared_options import with_shared_options
from captune.errors import MetricInputError

if TYPE_CHECKING:
    from captune.metrics import Comparison, PredictionFile, ReferenceFile, Scores

__all__ = ["compare"]


@with_shared_options
def compare(
    references: scoring.ReferencesFile,
    predictions: Annotated[
        list[Path],
        typer.Option(
            "--predictions",
            "-p",
            help="Captions of a system, once for each; the first is what the others are compared with.",
            show_default=False,
        ),
    ],
    *,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of a system, in the same order.", show_default="names of the files")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the intervals of differences.")] = 0.95,
    resamples: Annotated[int, typer.Option(min=2, help="Resamples of the paired bootstrap.")] = 1000,
    trials: Annotated[int, typer.Option(min=2, help="Trials of approximate randomisation.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of both tests.")] = 12345,
    shared: scoring.SharedOptions,
) -> None:
    """Test whether systems differ: paired bootstrap and approximate randomisation on the same images.

    Examples:
        captune compare -r test.jsonl -p before.json -p after.json
        captune compare -r test.jsonl -p a.json -p b.json --metrics cider --json
        captune compare -r test.jsonl -p a.json -p b.json --format latex --out table.tex
    """
    from captune.metrics import read_reference_files

    requested = scoring.metric_names(shared.metrics)
    if reports := [key for key in requested if key in scoring.REPORTED]:
        raise MetricInputError(f"{reports[0]} is not compared; see it for each system with captune score.")
    if len(predictions) < 2:
        raise MetricInputError("captune compare needs --predictions twice at least; captune score takes one system.")
    run = ScoringRun(requested, shared.scoring_options(), shared.subset, shared.images)
    names = _names(predictions, name)
    scoring.check_out(shared.out, "compare", shared.inputs(*references, *predictions))
    run.check_requirements()
    read = read_reference_files(references, shared.split)
    warnings: list[str] = []
    files = [shared.read_predictions(path, read) for path in predictions]
    with metric_progress() as on_metric:
        scored = _score_all(read, files, names, run, warnings, on_metric)
    for sentence in warnings:
        scoring.warn(sentence)
    tests = _test_all(scored, confidence, resamples, trials, seed)
    report = _json if shared.as_json else _tables
    text = report(scored, tests, form=shared.form, digits=shared.digits, confidence=confidence, warnings=warnings)
    scoring.write(text, shared.out, "compare")


def _names(paths: list[Path], names: list[str] | None) -> list[str]:
    """A different name for each system: its file's, with folders in front where files are called alike."""
    if names:
        if len(names) != len(paths):
            raise MetricInputError(f"There are {len(names)} --name for {len(paths)} --predictions; give one for each.")
    else:
        names = [path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name for path in paths]
        if len(set(names)) < len(names):
            names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise MetricInputError(
            f"The name '{max(names, key=names.count)}' is given to two systems; give each its --name."
        )
    return names


def _score_all(
    references: ReferenceFile,
    predictions: list[PredictionFile],
    names: list[str],
    run: ScoringRun,
    warnings: list[str],
    on_metric: Callable[[str], None],
) -> dict[str, Scores]:
    """Scores of every system, all on the same images with the references prepared once; adds to `warnings`."""
    if run.subset:
        references, predictions = _common(references, predictions, warnings)
    scored: dict[str, Scores] = {}
    scorer, shown = None, tuple[str, ...]()
    for name, captions in zip(names, predictions, strict=True):
        system = scoring.load_system(references, captions, name, run)
        if scorer is None:
            scorer, shown = scoring.make_scorer(system, run, on_metric)
        scored[name] = scoring.score_system(system, scorer, shown)
        warnings.extend(f"{name}: {sentence}" for sentence in system.warnings)
    return scored


def _common(
    references: ReferenceFile, predictions: list[PredictionFile], warnings: list[str]
) -> tuple[ReferenceFile, list[PredictionFile]]:
    """Keep the images that have references and a caption of every system, and warn about the number of others."""
    from captune.metrics import similar_ids_hint

    described = {image: captions for image, captions in references.captions.items() if captions}
    common = set(described).intersection(*(system.captions for system in predictions))
    if 0 < len(common) < len(described):
        extra = [image for system in predictions for image in system.captions if image not in described]
        missing = [image for image in described if image not in common]
        warnings.append(
            f"{len(missing):,} of {len(described):,} images lack a prediction of some system and are left out "
            f"(--subset){similar_ids_hint(extra, missing)}; scores of other subsets cannot be compared with these."
        )
    if common:
        references = replace(references, captions={i: texts for i, texts in described.items() if i in common})
        predictions = [
            replace(system, captions={i: text for i, text in system.captions.items() if i in common})
            for system in predictions
        ]
    return references, predictions


def _test_all(
    scored: dict[str, Scores], confidence: float, resamples: int, trials: int, seed: int
) -> dict[str, dict[str, tuple[Comparison, Comparison]]]:
    """Both tests of every system against the first: system to score to (bootstrap, randomisation)."""
    from captune.metrics import approximate_randomization, paired_bootstrap

    (_, baseline), *others = scored.items()
    results = {}
    for name, scores in others:
        drawn = paired_bootstrap(scores, baseline, confidence, resamples, seed)
        swapped = approximate_randomization(scores, baseline, trials, seed)
        results[name] = {score: (drawn[score], swapped[score]) for score in drawn}
    return results


def _shown_mark(shown: float, bootstrap: Comparison, randomization: Comparison, digits: int) -> str:
    """The stars after a number; none after one that shows as 0."""
    from captune.metrics import significance_mark
    from captune.report import shows_zero

    if shows_zero(shown, digits) or shows_zero(bootstrap.difference, digits):
        return ""
    return significance_mark(bootstrap, randomization)


def _signed(value: float, digits: int, sign: str = "+") -> str:
    """A number with its sign, and 0 without one."""
    text = f"{value:{sign}.{digits}f}"
    return text.lstrip("+-") if not float(text) else text


def _tables(
    scored: dict[str, Scores],
    tests: dict[str, dict[str, tuple[Comparison, Comparison]]],
    *,
    form: str,
    digits: int,
    confidence: float,
    **_: Any,
) -> str:
    from captune.common import table
    from captune.report import shows_zero

    baseline = next(iter(scored))
    signature = scored[baseline].signature
    scores = list(scored[baseline].corpus)
    rows = []
    for name, system in scored.items():
        marks = {score: _shown_mark(system.corpus[score], *pair, digits) for score, pair in tests.get(name, {}).items()}
        rows.append(
            [name, *(_signed(system.corpus[score], digits, sign="") + marks.get(score, "") for score in scores)]
        )
    scales = [f"{score} ({scale})" for score, scale in scoring.scales(scored[baseline]).items()]
    parts = [table(form, ["System", *scales], rows)]
    for name, results in tests.items():
        lines = []
        for score, (drawn, swapped) in results.items():
            tested = not (shows_zero(drawn.score, digits) and shows_zero(drawn.baseline, digits))
            lines.append(
                [
                    score,
                    _signed(drawn.difference, digits) + _shown_mark(drawn.difference, drawn, swapped, digits),
                    f"[{_signed(drawn.low, digits)}, {_signed(drawn.high, digits)}]",
                    *(f"{test.p_value:.4f}" if tested else "–" for test in (drawn, swapped)),
                    f"{drawn.smallest:.{digits}f}" if tested else "–",
                ]
            )
        header = [
            f"{name} - {baseline}",
            "Difference",
            f"{100 * confidence:g}% interval",
            "p boot",
            "p random",
            "Smallest",
        ]
        parts.append(table(form, header, lines))
    kept = next(
        (drawn.frequencies for results in tests.values() for drawn, _ in results.values() if drawn.frequencies), ""
    )
    weights = f"; CIDEr's document frequencies are {kept}" if kept else ""
    notes = [
        "* p < 0.05, ** p < 0.01 in both tests, with 0 outside the interval: paired bootstrap (p boot) and approximate",
        f"randomisation (p random){weights}.",
        "Smallest: the true difference that this set of images shows four times out of five at p < 0.05.",
    ]
    if len(tests) > 1:
        notes.append("Each system is tested against the first alone; p is not corrected for their number.")
    prefix = "% " if form == "latex" else ""
    mark = "`" if form == "markdown" else ""
    parts += ["\n".join(prefix + note for note in notes), f"{prefix}{mark}{signature}{mark}"]
    return "\n\n".join(parts)


def _json(
    scored: dict[str, Scores],
    tests: dict[str, dict[str, tuple[Comparison, Comparison]]],
    *,
    warnings: list[str],
    **_: Any,
) -> str:
    baseline, *_others = scored
    systems = {name: {"signature": scores.signature, "scores": scores.corpus} for name, scores in scored.items()}
    differences = {
        name: {
            score: {
                "difference": drawn.difference,
                "low": drawn.low,
                "high": drawn.high,
                "p_bootstrap": drawn.p_value,
                "p_randomization": swapped.p_value,
                "smallest_detectable": drawn.smallest,
            }
            for score, (drawn, swapped) in results.items()
        }
        for name, results in tests.items()
    }
    scales = scoring.scales(scored[baseline])
    answer = {"baseline": baseline, "images": len(scored[baseline].ids), "systems": systems, "scales": scales}
    return scoring.to_json({**answer, "differences": differences, "warnings": warnings})
