"""Several runs on the same images: paired tests, agreement, and the images on which they differ most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from captune.common import escape_markdown, markdown_table, one_line
from captune.errors import InputError
from captune.report.caption_statistics import tokenizer_name
from captune.report.columns import SLIDES_METRICS, format_value, shows_zero
from captune.report.learning_curve import TrainingLog, split_training_rows
from captune.report.scores_json import CheckpointScores, RunScores

if TYPE_CHECKING:
    from captune.metrics import EqualLengthTests, Scores

__all__ = ["Comparison", "compare_runs", "comparison_markdown", "matrices", "most_different_lines", "pair_tests"]

MAX_DIFFERENT_IMAGES = 10
"""Number of images shown on which the runs differ most."""


@dataclass(frozen=True, slots=True)
class BestTest:
    """The best checkpoints of two runs against each other.

    Attributes:
        metric: by which they are best and compared.
        values: both scores.
        difference: the second minus the first.
        low, high: the 95 % interval of the difference.
        p_value: of the paired test.
    """

    metric: str
    values: tuple[float, float]
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side, each by its best checkpoint by CIDEr.

    Attributes:
        table: one row a run, with scores recomputed from the captions, intervals, captions and references.
        differences: metric -> (i, j) -> score of row i minus row j, for every i below j in the table.
        p_values: metric -> (i, j) -> probability of so large a difference between equal runs; absent if both scores
            are 0 apart from smoothing.
        agreement: (i, j) -> Spearman's rank correlation of both rows' CIDEr over the images; NaN where it has none.
        runs: the compared runs with all of their rows, in the order of the table.
        run_names: their names, without the names of their best rows.
        settings: the stored configuration of every run by the names of its settings; empty where there is none.
        logs: the training log of every run.
        best: test of the best checkpoints of the first two runs; None if either has no scores of its images.
        most_different: images whose CIDEr differs most between two of the rows, the most different first.
        equal_length: (i, j) -> tests of row i against row j on the images whose captions have about as many words;
            empty where all rows have captions of about the same length.
    """

    table: RunScores
    differences: Mapping[str, Mapping[tuple[int, int], float]]
    p_values: Mapping[str, Mapping[tuple[int, int], float]]
    agreement: Mapping[tuple[int, int], float]
    most_different: tuple[str, ...]
    runs: tuple[RunScores, ...] = ()
    run_names: tuple[str, ...] = ()
    settings: tuple[Mapping[str, Any], ...] = ()
    logs: tuple[TrainingLog, ...] = ()
    best: BestTest | None = None
    equal_length: Mapping[tuple[int, int], EqualLengthTests] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values; null replaces NaN."""
        names = [row.name for row in self.table.checkpoints]
        tests = [
            {
                "metric": metric,
                "run": names[i],
                "other": names[j],
                "difference": difference,
                "p_value": self.p_values[metric].get((i, j)),
            }
            for metric, pairs in self.differences.items()
            for (i, j), difference in pairs.items()
        ]
        agreement = [
            {"run": names[i], "other": names[j], "spearman": None if math.isnan(rho) else rho}
            for (i, j), rho in self.agreement.items()
        ]
        return {
            "runs": [{"run": row.name, "corpus": dict(row.corpus)} for row in self.table.checkpoints],
            "tests": tests,
            "agreement": agreement,
            "equal_length": [
                {
                    "run": names[i],
                    "other": names[j],
                    "images": tests.images,
                    "length_ratio": None if math.isnan(tests.ratio) else tests.ratio,
                    "differences": {
                        metric: {"difference": drawn.difference, "low": drawn.low, "high": drawn.high, "p_value": p}
                        if (p := drawn.p_value) == p
                        else {"difference": drawn.difference, "low": None, "high": None, "p_value": None}
                        for metric, (drawn, _) in tests.tests.items()
                        if drawn.is_tested or not tests.has_intervals
                    },
                }
                for (i, j), tests in self.equal_length.items()
            ],
            "telling_images": list(self.most_different),
        }


def compare_runs(
    runs: Mapping[str, RunScores],
    *,
    resamples: int = 1000,
    settings: Sequence[Mapping[str, Any]] = (),
    logs: Sequence[TrainingLog] = (),
) -> Comparison:
    """Compare the best checkpoints by CIDEr of several runs on the images that all of them captioned.

    Scores are recomputed from captions and references, all with the same metrics, so that tests are paired over
    images (Koehn, EMNLP 2004) whatever the runs were scored with.

    Args:
        runs: name -> its scores, with captions and references; two or more.
        resamples: of the bootstrap.
        settings: the stored configuration of every run, for what differs between them.
        logs: the training log of every run, for the curves of its loss.

    Raises:
        InputError: a run has no captions or no references, or the runs are not on the same images and references.
    """
    from captune.metrics import Scorer, ScoringOptions, confidence_intervals, paired_bootstrap

    names, (first, *_) = list(runs), list(runs.values())
    for name, run in runs.items():
        _check(name, run, names[0], first)
    scorer = Scorer(dict(first.references.items()), ScoringOptions(tokenize=tokenizer_name(first)))
    best = [_best(run) for run in runs.values()]
    scores = [scorer.score(dict(row.captions.items())) for row in best]
    rows = tuple(
        _row(_row_name(name, run, row), row, score, confidence_intervals(score, resamples=resamples))
        for (name, run), row, score in zip(runs.items(), best, scores, strict=True)
    )
    pairs = [(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
    tests = {(i, j): paired_bootstrap(scores[i], scores[j], resamples=resamples) for i, j in pairs}
    metrics = [metric for metric in SLIDES_METRICS if metric in rows[0].corpus]
    table = replace(first, checkpoints=rows, images=len(first.references))
    return Comparison(
        table=table,
        differences={m: {pair: test[m].difference for pair, test in tests.items()} for m in metrics},
        p_values={m: {pair: test[m].p_value for pair, test in tests.items() if test[m].is_tested} for m in metrics},
        agreement={(i, j): _spearman(*_columns(scores[i], scores[j])) for i, j in pairs},
        most_different=_most_different(rows),
        runs=tuple(runs.values()),
        run_names=tuple(names),
        settings=tuple(settings),
        logs=tuple(logs),
        best=_best_test(scores, resamples),
        equal_length=_equal_length(scores, best, pairs, resamples),
    )


def _equal_length(
    scores: Sequence[Scores],
    rows: Sequence[CheckpointScores],
    pairs: Sequence[tuple[int, int]],
    resamples: int,
) -> dict[tuple[int, int], EqualLengthTests]:
    """Tests at equal length of all pairs, if captions of any two rows differ by more than the tolerance."""
    from captune.metrics import LENGTH_TOLERANCE, compare_at_equal_length, length_ratio

    ratios = [length_ratio(rows[i].captions, rows[j].captions) for i, j in pairs]
    if not any(max(ratio, 1 / ratio) > 1 + LENGTH_TOLERANCE for ratio in ratios if not math.isnan(ratio)):
        return {}
    return {
        (i, j): compare_at_equal_length(
            scores[i], scores[j], (rows[i].captions, rows[j].captions), resamples=resamples, trials=resamples
        )
        for i, j in pairs
    }


def _best_test(scores: Sequence[Scores], resamples: int) -> BestTest | None:
    """The best checkpoints by CIDEr of the first two runs, paired over the images."""
    from captune.metrics import paired_bootstrap

    if "CIDEr" not in scores[0].corpus:
        return None
    test = paired_bootstrap(scores[1], scores[0], resamples=resamples)["CIDEr"]
    if not test.is_tested:
        return None
    values = test.baseline, test.score
    return BestTest("CIDEr", values, values[1] - values[0], test.low, test.high, test.p_value)


def matrices(comparison: Comparison) -> list[tuple[str, list[list[str]]]]:
    """The tests of every metric and the agreement, as headings with square tables of cells.

    A cell of a test reads "+0.0123 (p = 0.004)": the row's score minus the column's.
    """
    count = len(comparison.table.checkpoints)

    def square(cell: Mapping[tuple[int, int], str]) -> list[list[str]]:
        return [[cell.get((i, j), "–" if i == j else "") for j in range(count)] for i in range(count)]

    sections = []
    for metric, pairs in comparison.differences.items():
        cells = {}
        for (i, j), difference in pairs.items():
            p = comparison.p_values[metric].get((i, j))
            cells[i, j], cells[j, i] = _tested(difference, p), _tested(-difference, p)
        sections.append((f"{metric}: row minus column", square(cells)))
        if _has_equal_length(comparison, metric):
            sections.append(
                (f"{metric}: row minus column, {_EQUAL_LENGTH}", square(_matched_cells(comparison, metric)))
            )
    rho = {pair: "nan" if math.isnan(value) else f"{value:.2f}" for pair, value in comparison.agreement.items()}
    rho |= {(j, i): text for (i, j), text in rho.items()}
    return [*sections, ("Agreement: rank correlation of CIDEr over images", square(rho))]


_EQUAL_LENGTH_METRICS = ("BLEU-4", "CIDEr", "ROUGE-L")
_EQUAL_LENGTH = "images whose captions differ by at most 10 % in words"


def _has_equal_length(comparison: Comparison, metric: str) -> bool:
    """Whether any pair of runs has images with captions of equal length to compare by a metric."""
    return metric in _EQUAL_LENGTH_METRICS and any(metric in each.tests for each in comparison.equal_length.values())


def pair_tests(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """The tests of the first two runs, as headings with a metric and its difference in each row.

    A difference reads "+0.0123 (p = 0.004)": the second run's score minus the first's.
    """
    first, second = (one_line(row.name) for row in comparison.table.checkpoints[:2])
    rows = [
        (metric, _tested(-pairs[0, 1], comparison.p_values[metric].get((0, 1))))
        for metric, pairs in comparison.differences.items()
    ]
    sections = [(f"{second} minus {first}", rows)]
    metrics = [metric for metric in comparison.differences if _has_equal_length(comparison, metric)]
    if metrics:
        rows = [(metric, _matched_cells(comparison, metric)[1, 0]) for metric in metrics]
        sections.append((f"The same on {_EQUAL_LENGTH}", rows))
    return sections


def _matched_cells(comparison: Comparison, metric: str) -> dict[tuple[int, int], str]:
    """The tests of a metric at equal length, with intervals and the number of images."""
    cells = {}
    for (i, j), tests in comparison.equal_length.items():
        images = f"{tests.images:,} image{'s' if tests.images != 1 else ''}"
        if metric not in tests.tests:
            cells[i, j] = cells[j, i] = images
            continue
        drawn, _ = tests.tests[metric]
        if not tests.has_intervals:
            for pair, sign in (((i, j), 1), ((j, i), -1)):
                shown = format_value(0.0) if shows_zero(drawn.difference) else f"{sign * drawn.difference:+.4f}"
                cells[pair] = f"{shown}, {images}, too few to test"
            continue
        p = drawn.p_value if drawn.is_tested else None
        for pair, sign, ends in (((i, j), 1, (drawn.low, drawn.high)), ((j, i), -1, (-drawn.high, -drawn.low))):
            interval = "" if p is None else f" [{', '.join(f'{end + 0.0:+.4f}' for end in ends)}]"
            cells[pair] = f"{_tested(sign * drawn.difference, p)}{interval}, {images}"
    return cells


def _tested(difference: float, p: float | None) -> str:
    """A difference with its test; one that is shown as 0 has none."""
    return format_value(0.0) if p is None or shows_zero(difference) else f"{difference:+.4f} (p = {p:.3f})"


def most_different_lines(comparison: Comparison) -> list[str]:
    """The images on which the runs differ most, with every run's CIDEr and caption, one line each."""
    lines = []
    for image in comparison.most_different:
        lines.append(one_line(image))
        for row in comparison.table.checkpoints:
            score = row.per_image[image].get("CIDEr", math.nan)
            lines.append(one_line(f"  {row.name}: {row.captions[image][:300]} ({score:.3f})"))
    return lines


def comparison_markdown(comparison: Comparison) -> str:
    """Tests, agreement and the images on which the runs differ most, as Markdown below the table."""
    names = [escape_markdown(row.name) for row in comparison.table.checkpoints]
    lines = ["# Comparison", ""]
    for heading, rows in matrices(comparison):
        table = markdown_table(["", *names], [[name, *row] for name, row in zip(names, rows, strict=True)])
        lines += [f"## {escape_markdown(heading)}", "", f"| | {' | '.join(names)} |", *table[1:], ""]
    lines += ["## Images on which the runs differ most (CIDEr)", ""]
    for line in most_different_lines(comparison):
        indent = "  " if line.startswith(" ") else ""
        lines.append(f"{indent}- {escape_markdown(line.strip())}")
    return "\n".join([*lines, ""])


def _check(name: str, run: RunScores, first_name: str, first: RunScores) -> None:
    """Refuse runs that cannot be compared image by image."""
    row = _best(run)
    if not row.captions or not run.references:
        raise InputError(f"{name} holds no captions or no references, so it cannot be compared; evaluate it again.")
    if set(row.captions) != set(run.references):
        raise InputError(f"{name} has captions of other images than references; evaluate it again.")
    if dict(run.references) != dict(first.references):
        raise InputError(
            f"{name} and {first_name} were not evaluated on the same images and references "
            f"({len(run.references):,} and {len(first.references):,} images); evaluate both on the same data."
        )


def _best(run: RunScores) -> CheckpointScores:
    """The best checkpoint of a run by CIDEr, or its last row if no epoch has captions of all images."""
    rows = split_training_rows(run).run.checkpoints
    images = set(run.references)
    epochs = [row for row in rows if row.epoch is not None and set(row.captions) == images]
    return max(epochs, key=lambda row: row.corpus.get("CIDEr", -math.inf), default=rows[-1])


def _row_name(name: str, run: RunScores, row: CheckpointScores) -> str:
    """The name of a run's row, with its checkpoint if the run has several."""
    return f"{name} {row.name}" if len(run.checkpoints) > 1 else name


def _row(name: str, row: CheckpointScores, scores: Scores, intervals: Mapping[str, Any]) -> CheckpointScores:
    """A checkpoint as a row of the comparison's table."""
    return CheckpointScores(
        name=name,
        corpus=dict(scores.corpus),
        signature=scores.signature,
        leak=row.leak,
        per_image={str(image): values for image, values in scores.per_image.items()},
        captions=row.captions,
        intervals={metric: (interval.low, interval.high) for metric, interval in intervals.items()},
        unfinished=row.unfinished,
        notes=row.notes,
        thinking=row.thinking,
    )


def _columns(one: Scores, other: Scores) -> tuple[list[float], list[float]]:
    """CIDEr of both, image by image."""
    return [v["CIDEr"] for v in one.per_image.values()], [other.per_image[i]["CIDEr"] for i in one.per_image]


def _spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; NaN where one side is constant."""
    import numpy as np

    def ranks(values: Sequence[float]) -> Any:
        _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        return (ends - (counts - 1) / 2)[inverse]

    x, y = ranks(one), ranks(other)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / scale if scale else math.nan


def _most_different(rows: Sequence[CheckpointScores]) -> tuple[str, ...]:
    """Images by the largest difference of CIDEr between any two rows, equal ones in the order of the data."""

    def spread(image: str) -> float:
        values = [row.per_image[image]["CIDEr"] for row in rows]
        return max(values) - min(values)

    return tuple(sorted(rows[0].per_image, key=lambda image: -spread(image))[:MAX_DIFFERENT_IMAGES])
