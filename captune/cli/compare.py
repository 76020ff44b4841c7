"""`captune compare`: systems on the same images, with tests of whether they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from captune.cli import scoring, scoring_options
from captune.cli.compare_tables import (
    ComparedPair,
    ComparedRun,
    Layout,
    MatchedPair,
    TestedScore,
    format_json,
    format_tables,
)
from captune.cli.progress import metric_progress
from captune.cli.scoring import ScoringRun
from captune.cli.shared_options import with_shared_options
from captune.errors import MetricInputError
from captune.metrics import LENGTH_TOLERANCE

if TYPE_CHECKING:
    from captune.metrics import LengthMatching, PredictionFile, ReferenceFile, Scorer, Scores

__all__ = ["compare"]


@with_shared_options
def compare(
    references: scoring_options.ReferencesFile,
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
    pool_seeds: Annotated[
        bool,
        typer.Option(
            "--pool-seeds", help="Files with the same --name are seeds of one system: mean, spread, interval."
        ),
    ] = False,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Test all pairs of systems, p corrected for their number (Holm).")
    ] = False,
    match_length: Annotated[
        Literal["pairs", "truncate"] | None,
        typer.Option(
            help="Also test at equal length: pairs keeps the images whose captions have about as many words, truncate "
            "cuts the longer caption at a sentence end.",
            show_default=False,
        ),
    ] = None,
    length_tolerance: Annotated[
        float,
        typer.Option(min=0, max=0.99, help="Share by which the longer caption of a pair may exceed the shorter one."),
    ] = LENGTH_TOLERANCE,
    columns: Annotated[
        str | None, typer.Option(help="Show these scores only, in this order: CIDEr,BLEU-4.", show_default=False)
    ] = None,
    caption: Annotated[
        str | None, typer.Option(help="Caption of the LaTeX table, as LaTeX.", show_default=False)
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label of the LaTeX table.", show_default=False)] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the intervals of differences.")] = 0.95,
    resamples: Annotated[int, typer.Option(min=2, help="Resamples of the paired bootstrap.")] = 1000,
    trials: Annotated[int, typer.Option(min=2, help="Trials of approximate randomisation.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of both tests.")] = 12345,
    shared: scoring_options.SharedOptions,
) -> None:
    """Test whether systems differ: paired bootstrap and approximate randomisation on the same images.

    Examples:
        captune compare -r test.jsonl -p before.json -p after.json
        captune compare -r test.jsonl -p a.json -p b.json --metrics cider --json
        captune compare -r test.jsonl -p a.json -p b.json --format latex --scale 100 --columns CIDEr,BLEU-4
        captune compare -r test.jsonl -p a.json -p b.json -p c.json --all-pairs
        captune compare -r test.jsonl -p a.json -p b.json --match-length pairs
        captune compare -r r.jsonl -p a1.json -p a2.json -p b.json --name a --name a --name b --pool-seeds
    """
    from captune.metrics import pool_seeds as pool
    from captune.metrics import read_reference_files

    requested = scoring_options.metric_names(shared.metrics)
    shown_columns = None if columns is None else scoring.column_names(columns)
    if shown_columns is not None:
        requested = scoring.metrics_of_columns(shown_columns, requested)
    if (caption is not None or label is not None) and shared.form != "latex":
        raise MetricInputError("--caption and --label are of a LaTeX table; add --format latex.")
    if reports := [key for key in requested if key in scoring_options.REPORTED]:
        raise MetricInputError(f"{reports[0]} is not compared; see it for each system with captune score.")
    if match_length is not None and pool_seeds:
        raise MetricInputError("--match-length compares captions of two systems; leave out --pool-seeds.")
    if len(predictions) < 2:
        raise MetricInputError("captune compare needs --predictions twice at least; captune score takes one system.")
    run = ScoringRun(requested, shared.scoring_options(), shared.subset, shared.images)
    names = _names(predictions, name, pool_seeds)
    scoring.check_out(shared.out, "compare", shared.inputs(*references, *predictions))
    run.check_requirements()
    read = read_reference_files(references, shared.split)
    warnings: list[str] = []
    files = [shared.read_predictions(path, read) for path in predictions]
    with metric_progress() as on_metric:
        scored, scorer = _score_all(read, files, names, run, warnings, on_metric)
        tests = TestOptions(confidence, resamples, trials, seed)
        matched = None
        if match_length is not None:
            matched = _at_equal_length(scored, scorer, match_length, length_tolerance, all_pairs, tests)
    for sentence in warnings:
        scoring.warn(sentence)
    systems: dict[str, list[Scores]] = {}
    for system, scores, _ in scored:
        systems.setdefault(system, []).append(scores)
    several = {system: seeds for system, seeds in systems.items() if len(seeds) > 1}
    compared = ComparedRun(
        systems=systems,
        pooled={system: pool(seeds, confidence, resamples, seed) for system, seeds in several.items()},
        pairs=_test(systems, all_pairs, tests),
        columns=shown_columns or list(scored[0].scores.corpus),
        all_pairs=all_pairs,
        equal_length=matched,
        length_tolerance=length_tolerance,
    )
    if shared.as_json:
        text = format_json(compared, warnings)
    else:
        layout = Layout(shared.form, shared.shown_digits, int(shared.scale), confidence, caption, label)
        text = format_tables(compared, layout)
    scoring.write(text, shared.out, "compare")


class TestOptions(NamedTuple):
    """Options of the tests of a difference."""

    confidence: float
    resamples: int
    trials: int
    seed: int


class ScoredFile(NamedTuple):
    """The captions of a file and their scores."""

    name: str
    scores: Scores
    captions: dict[str, str]


def _names(paths: list[Path], names: list[str] | None, pool_seeds: bool) -> list[str]:
    """The name of each file's system: by default the file's, with folders in front where files are called alike.

    Raises:
        MetricInputError: their number is wrong, or names are the same or different where they should not be.
    """
    if names:
        if len(names) != len(paths):
            raise MetricInputError(f"There are {len(names)} --name for {len(paths)} --predictions; give one for each.")
    else:
        names = [path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name for path in paths]
        if len(set(names)) < len(names):
            names = [str(path) for path in paths]
    different = len(set(names))
    if pool_seeds and (different == len(names) or different < 2):
        raise MetricInputError(
            "--pool-seeds needs two systems at least, one of them with several files of the same --name; captune score "
            "--pool-seeds takes the seeds of one system."
        )
    if different < len(names) and not pool_seeds:
        raise MetricInputError(
            f"The name '{max(names, key=names.count)}' is given to two systems; give each its --name, or add "
            "--pool-seeds if these are seeds of one system."
        )
    return names


def _score_all(
    references: ReferenceFile,
    predictions: list[PredictionFile],
    names: list[str],
    run: ScoringRun,
    warnings: list[str],
    on_metric: Callable[[str], None],
) -> tuple[list[ScoredFile], Scorer]:
    """The scores of every file, all on the same images with the references prepared once; adds to `warnings`."""
    if run.subset:
        references, predictions = _common(references, predictions, warnings)
    scored: list[ScoredFile] = []
    scorer, shown = None, tuple[str, ...]()
    sentences: list[tuple[str, list[str]]] = []
    for name, captions in zip(names, predictions, strict=True):
        system = scoring.load_system(references, captions, name, run)
        if scorer is None:
            scorer, shown = scoring.make_scorer(system, run, on_metric)
        scored.append(ScoredFile(name, scoring.score_system(system, scorer, shown), system.predictions))
        sentences.append((name, system.warnings))
    # What holds for every system is about the references.
    common = [sentence for sentence in sentences[0][1] if all(sentence in others for _, others in sentences)]
    warnings.extend(common)
    warnings.extend(
        f"{name}: {sentence}" for name, others in sentences for sentence in others if sentence not in common
    )
    assert scorer is not None
    return scored, scorer


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


def _pairs(names: list[str], all_pairs: bool) -> list[tuple[str, str]]:
    """Baseline and system of each comparison."""
    return list(combinations(names, 2)) if all_pairs else [(names[0], name) for name in names[1:]]


def _test(systems: dict[str, list[Scores]], all_pairs: bool, tests: TestOptions) -> list[ComparedPair]:
    """Test every system against the first, or each against those before it with Holm's correction."""
    from captune.metrics import approximate_randomization, compare_pooled, paired_bootstrap

    pooled = any(len(seeds) > 1 for seeds in systems.values())
    pairs = []
    for baseline, name in _pairs(list(systems), all_pairs):
        ours, others = systems[name], systems[baseline]
        if pooled:
            drawn = compare_pooled(ours, others, tests.confidence, tests.resamples, tests.seed)
            tested = {score: TestedScore(test, None) for score, test in drawn.items()}
        else:
            drawn = paired_bootstrap(ours[0], others[0], tests.confidence, tests.resamples, tests.seed)
            swapped = approximate_randomization(ours[0], others[0], tests.trials, tests.seed)
            tested = {score: TestedScore(test, swapped[score]) for score, test in drawn.items()}
        pairs.append(ComparedPair(name, baseline, tested))
    return _corrected(pairs) if all_pairs else pairs


def _corrected(pairs: list[ComparedPair]) -> list[ComparedPair]:
    """The pairs with Holm's correction of each score for their number; a pair without tests does not count."""
    from captune.metrics import holm

    tested = [pair for pair in pairs if pair.tests]
    scores = tested[0].tests if tested else {}
    corrected = {score: holm([pair.tests[score].p_value for pair in tested]) for score in scores}
    row_of = {(pair.system, pair.baseline): row for row, pair in enumerate(tested)}
    return [
        pair._replace(
            tests={
                score: test._replace(holm=corrected[score][row_of[pair.system, pair.baseline]])
                for score, test in pair.tests.items()
            }
        )
        for pair in pairs
    ]


def _at_equal_length(
    scored: list[ScoredFile],
    scorer: Scorer,
    method: LengthMatching,
    tolerance: float,
    all_pairs: bool,
    tests: TestOptions,
) -> list[MatchedPair]:
    """The same comparisons at equal length."""
    from captune.metrics import compare_at_equal_length

    files = {file.name: file for file in scored}
    results = []
    for baseline, name in _pairs(list(files), all_pairs):
        ours, others = files[name], files[baseline]
        result = compare_at_equal_length(
            ours.scores,
            others.scores,
            (ours.captions, others.captions),
            method,
            tolerance=tolerance,
            score=scorer.score,
            **tests._asdict(),
        )
        tested = {score: TestedScore(*pair) for score, pair in result.tests.items()}
        results.append((ComparedPair(name, baseline, tested), result))
    pairs = [pair for pair, _ in results]
    pairs = _corrected(pairs) if all_pairs else pairs
    return [MatchedPair(pair, result) for pair, (_, result) in zip(pairs, results, strict=True)]
