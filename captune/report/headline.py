"""The top of a report: one verdict with its interval, and three images that show what changed.

The rules, so that the headline can be verified:

- The metric is CIDEr, or the first metric of the table with a known direction.
- The best checkpoint on it is compared with the first row. "Helped" and "worse" need a test, or intervals that do not
  overlap; without one that passes there is no significant change, and without any statistic the change is untested.
- A result is mixed if another metric changed significantly in the other direction.
- Rows marked LEAK get no verdict, and scores that are shown as 0 are not compared.
- Other captioners of the table are no epochs. In a table without a training, the best row is named, and it is a clear
  winner only if it differs from every other row by more than chance.
- Of the images, the most improved, the most regressed, and the one whose change is nearest to the median are shown;
  the first in the order of the data where several are equal.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from captune.common import one_line
from captune.report.columns import column, shows_zero
from captune.report.comparison import Comparison
from captune.report.learning_curve import SIGNIFICANT, differ, has_statistics, split_training_rows
from captune.report.narrative import Catalogue, catalogue
from captune.report.scores_json import CheckpointScores, RunScores

__all__ = ["Example", "Headline", "comparison_headline", "examples", "headline", "headline_metric"]


@dataclass(frozen=True, slots=True)
class Headline:
    """The verdict in one language.

    Attributes:
        kind: "helped", "worse", "same", "mixed", "untested", "leak", "zero", "single", "best", "tie" or "none".
        title: a few words with the scores.
        detail: sentences with interval, best epoch and the tests of all metrics.
    """

    kind: str
    title: str
    detail: str


@dataclass(frozen=True, slots=True)
class Example:
    """One image before and after.

    Attributes:
        kind: "improved", "least_improved", "typical", "regressed" or "least_regressed".
        image: its id.
        reference: its first reference, or empty.
        before, after: names of both rows.
        captions: both captions.
        scores: both scores of the image.
    """

    kind: str
    image: str
    reference: str
    before: str
    after: str
    captions: tuple[str, str]
    scores: tuple[float, float]


def headline_metric(run: RunScores) -> str | None:
    """CIDEr, or the first metric of a known direction with a finite score; None without any."""
    usable = [metric for metric in run.metrics if column(metric).direction and run.finite(metric)]
    return "CIDEr" if "CIDEr" in usable else next(iter(usable), None)


def headline(run: RunScores, language: str = "en") -> Headline:
    """The verdict on a table by the rules at the top of this file.

    Args:
        run: the rows.
        language: of `captune.report.LANGUAGES`.
    """
    texts = catalogue(language)
    metric = headline_metric(run)
    course = split_training_rows(run)
    if metric is None:
        return _worded(texts, "none", "")
    if len(run.checkpoints) == 1:
        return _single(texts, run.checkpoints[0], metric)
    if not course.is_training:
        return _among_models(texts, run, metric)
    rows = course.run.checkpoints
    if len(rows) == 1:
        return _single(texts, rows[0], metric)
    return _training(texts, course.run, metric)


def _training(texts: Catalogue, run: RunScores, metric: str) -> Headline:
    """The best checkpoint of a training against its first row."""
    rows = run.checkpoints
    best = _best_index(run, metric)
    start = rows[0].corpus.get(metric, math.nan)
    if best is None or not math.isfinite(start):
        return _worded(texts, "none", "")
    end = rows[best].corpus[metric]
    if shows_zero(start) and shows_zero(end):
        return _worded(texts, "zero", "", metric=metric)
    change = end - start
    tests = {name: differ(run, name, 0, best) for name in run.metrics if column(name).direction}
    changed = {name: _gain(run, name, best) for name, result in tests.items() if result}
    better = [name for name, gain in changed.items() if gain > 0]
    worse = [name for name, gain in changed.items() if gain < 0]
    if rows[0].leak or rows[best].leak:
        kind = "leak"
    elif better and worse:
        kind = "mixed"
    elif tests[metric]:
        kind = "helped" if metric in better else "worse"
    elif has_statistics(run) and tests[metric] is not None:
        kind = "same"
    else:
        # Intervals that overlap, without a test of this pair, show no change either.
        kind = "same" if has_statistics(run) else "untested"
    first, last = _shown(start, end)
    epochs = len(rows) - 1
    sign = "+" if change >= 0 else "−"
    bounds = rows[best].differences.get(metric, {}).get("pretrained")
    values = {
        "metric": one_line(metric),
        "gain": f"{sign}{_shown(abs(change), start)[0] if abs(change) < 0.1 else f'{abs(change):.2f}'}",
        "row": one_line(rows[best].name),
        "first": one_line(rows[0].name),
        "count": epochs,
    }
    key = "change" if bounds is None else "change_interval"
    if bounds is not None:
        values |= {"low": _signed(bounds[0]), "high": _signed(bounds[1])}
    details = [texts.text(f"verdict.{key}", **values), texts.text("verdict.best", **values)]
    unclear = [name for name, result in tests.items() if name not in changed and result is not None]
    for name, metrics in (("better", better), ("lower", worse), ("unclear", unclear)):
        if metrics and has_statistics(run):
            shown: str | list[str] = [one_line(each) for each in metrics]
            if len(metrics) == len(tests) > 2:
                shown = texts.text("metrics.all", count=len(metrics), metrics=shown)
            details.append(texts.text(f"verdict.{name}", metrics=shown))
    if best != len(rows) - 1 and metric in rows[-1].corpus:
        final = _shown(rows[-1].corpus[metric], start)[0]
        details.append(texts.text("verdict.last", row=one_line(rows[-1].name), value=final))
    return _worded(texts, kind, texts.text("verdict.separator").join(details), metric=metric, start=first, end=last)


def _single(texts: Catalogue, row: CheckpointScores, metric: str) -> Headline:
    """A single row: its score and interval."""
    value = row.corpus.get(metric, math.nan)
    bounds = row.intervals.get(metric)
    detail = texts.text("verdict.nothing_to_compare")
    if bounds is not None:
        low, high = _shown(*bounds)
        detail = texts.text("verdict.separator").join(
            [texts.text("verdict.interval", metric=one_line(metric), low=low, high=high), detail]
        )
    kind = "leak_single" if row.leak else "zero" if shows_zero(value) else "single"
    return _worded(texts, kind, detail, metric=metric, row=one_line(row.name), end=_shown(value, value)[0])


def _among_models(texts: Catalogue, run: RunScores, metric: str) -> Headline:
    """The best of several models, and whether it is best by more than chance."""
    best = _best_index(run, metric, start=0)
    if best is None:
        return _worded(texts, "none", "")
    row = run.checkpoints[best]
    value = row.corpus[metric]
    if shows_zero(value) and all(map(shows_zero, run.finite(metric))):
        return _worded(texts, "zero", "", metric=metric)
    rivals = [i for i, other in enumerate(run.checkpoints) if i != best and metric in other.corpus]
    clear = has_statistics(run) and all(differ(run, metric, *sorted((i, best))) for i in rivals)
    kind = "leak_single" if any(each.leak for each in run.checkpoints) else "best" if clear else "tie"
    details = [texts.text("verdict.clear" if clear else "verdict.not_clear", metric=one_line(metric))]
    if bounds := row.intervals.get(metric):
        low, high = _shown(*bounds)
        details.insert(0, texts.text("verdict.interval", metric=one_line(metric), low=low, high=high))
    detail = texts.text("verdict.separator").join(details)
    return _worded(texts, kind, detail, metric=metric, row=one_line(row.name), end=_shown(value, value)[0])


def comparison_headline(comparison: Comparison, language: str = "en") -> Headline:
    """The verdict on compared runs: the best checkpoints of the first two against each other.

    Args:
        comparison: the runs.
        language: of `captune.report.LANGUAGES`.
    """
    texts, test = catalogue(language), comparison.best
    rows = comparison.table.checkpoints
    if test is None:
        return headline(comparison.table, language)
    better = 1 if test.difference > 0 else 0
    gain, low, high = test.difference, test.low, test.high
    if not better:
        gain, low, high = -gain, -high, -low
    end, start = _shown(test.values[better], test.values[1 - better])
    names = [one_line(row.name) for row in rows[:2]]
    values = {
        "metric": test.metric,
        "row": names[better],
        "other": names[1 - better],
        "start": start,
        "end": end,
        "first": names[better],
        "second": names[1 - better],
        "gain": _signed(gain),
        "low": _signed(low),
        "high": _signed(high),
        "p": f"= {test.p_value:.3f}" if test.p_value >= 0.001 else "< 0.001",
    }
    if any(row.leak for run in comparison.runs for row in run.checkpoints):
        kind = "leak"
    else:
        kind = "better" if test.p_value < SIGNIFICANT else "same"
    key = {"leak": "runs_leak", "better": "run_better", "same": "runs_same"}[kind]
    return Headline(kind, texts.text(f"verdict.title.{key}", **values), texts.text("verdict.runs", **values))


def _worded(texts: Catalogue, kind: str, detail: str, **values: str) -> Headline:
    shown = {name: one_line(value) for name, value in values.items()}
    return Headline(kind.removesuffix("_single"), texts.text(f"verdict.title.{kind}", **shown), detail)


def _best_index(run: RunScores, metric: str, start: int = 1) -> int | None:
    """The row with the best finite score, from `start` on; the earlier one of equal ones."""
    direction = column(metric).direction
    scores = {
        index: direction * row.corpus[metric]
        for index, row in enumerate(run.checkpoints)
        if index >= start and math.isfinite(row.corpus.get(metric, math.nan))
    }
    return max(scores, key=lambda index: scores[index], default=None)


def _gain(run: RunScores, metric: str, best: int) -> float:
    """The change from the first row, positive where it is an improvement."""
    return column(metric).direction * (run.checkpoints[best].corpus[metric] - run.checkpoints[0].corpus[metric])


def _shown(one: float, other: float) -> tuple[str, str]:
    """Two scores with two decimals, or four where they are small or two do not separate them well."""
    decimals = 2 if min(abs(one), abs(other)) >= 1 and (one == other or abs(one - other) >= 0.05) else 4
    return f"{one:.{decimals}f}", f"{other:.{decimals}f}"


def _signed(value: float) -> str:
    text = f"{abs(value):.2f}" if abs(value) >= 0.1 else f"{abs(value):.4f}"
    return f"{'+' if value >= 0 else '−'}{text}"


def examples(run: RunScores) -> list[Example]:
    """Three images by the rule at the top of this file; none without captions and scores of images.

    Args:
        run: the rows. Those of a training are compared from the first to the best, others from the first to the second.
    """
    course = split_training_rows(run)
    metric = headline_metric(run)
    rows = course.run if course.is_training else run
    if metric is None or len(rows.checkpoints) < 2:
        return []
    best = _best_index(rows, metric) if course.is_training else 1
    if best is None:
        return []
    first, last = rows.checkpoints[0], rows.checkpoints[best]
    direction = column(metric).direction
    changes: dict[str, float] = {}
    for image in first.captions:
        before, after = (row.per_image.get(image, {}).get(metric, math.nan) for row in (first, last))
        if image in last.captions and math.isfinite(before) and math.isfinite(after):
            changes[image] = direction * (after - before)
    if not changes:
        return []
    middle = statistics.median(changes.values())
    ranked: Sequence[tuple[str, str]] = (
        ("improved", max(changes, key=lambda image: changes[image])),
        ("typical", min(changes, key=lambda image: abs(changes[image] - middle))),
        ("regressed", min(changes, key=lambda image: changes[image])),
    )
    shown: list[Example] = []
    for kind, image in ranked:
        if any(example.image == image for example in shown):
            continue
        is_visible = not shows_zero(changes[image])
        if kind == "improved" and not (is_visible and changes[image] > 0):
            kind = "least_regressed"
        elif kind == "regressed" and not (is_visible and changes[image] < 0):
            kind = "least_improved"
        shown.append(
            Example(
                kind,
                image,
                next(iter(run.references.get(image, ())), ""),
                first.name,
                last.name,
                (first.captions[image], last.captions[image]),
                (first.per_image[image][metric], last.per_image[image][metric]),
            )
        )
    return shown
