"""The parts of the page that need no script: facts, table, charts, analysis, distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from captune.report.analysis import analyse
from captune.report.axis import checkpoint_axis
from captune.report.captions import CaptionStatistics, most_changed_words, word_classes
from captune.report.columns import column
from captune.report.comparison import Comparison, matrices
from captune.report.course import course_of, drawn_rows
from captune.report.narrative import LANGUAGES, sentences, table_notes
from captune.report.record import RunScores
from captune.report.svg import Series, line_chart
from captune.report.table import Cell, cells, daggers, leak_reasons, signatures
from captune.report.text import one_line
from captune.report.training_log import TrainingLog

__all__ = [
    "analysis_part",
    "comparison_part",
    "distributions_part",
    "facts_part",
    "leak_part",
    "notes_part",
    "score_charts",
    "table_part",
    "training_part",
]

BINS = 20

NOTHING = '<span data-t="nothing"></span>'


def leak_part(run: RunScores) -> str:
    """The marks LEAK with their reasons, or nothing."""
    return "".join(f'<p class="leak">{_safe(mark)}: {_safe(why)}</p>' for why, mark in leak_reasons(run).items())


def facts_part(run: RunScores, log: TrainingLog) -> str:
    """What was trained on what, what it cost, and the signature."""
    facts = [
        ("data", ", ".join(part for part in (run.data, run.split) if part)),
        ("protocol", run.protocol),
        ("evaluated_images", f"{run.images:,}" if run.images is not None else ""),
        ("model", str(log.facts.get("model", ""))),
        ("train_images", str(log.facts.get("images", ""))),
        ("captions_an_epoch", str(log.facts.get("captions", ""))),
        ("steps", str(log.facts.get("steps", ""))),
        ("step_captions", str(log.facts.get("step_captions", ""))),
        ("device", str(log.facts.get("device", ""))),
        ("processes", str(log.facts.get("processes", ""))),
        ("time", _duration(log.seconds) if log.seconds is not None else ""),
        ("rate", f"{log.captions_per_s:.1f}" if log.captions_per_s is not None else ""),
        ("memory", f"{log.peak_memory / 1e9:.2f} GB" if log.peak_memory is not None else ""),
        ("energy", f"{log.energy / 3.6e6:.3f} kWh" if log.energy is not None else ""),
    ]
    items = [f'<div><dt data-t="{key}"></dt><dd>{_safe(value)}</dd></div>' for key, value in facts if value]
    for label, signature in signatures(run):
        name = '<dt data-t="signature"></dt>' if label == "Signature" else f"<dt>{_safe(label)}</dt>"
        items.append(f'<div class="whole">{name}<dd><code>{_safe(signature)}</code></dd></div>')
    return "".join(items)


def table_part(run: RunScores) -> str:
    """The slides' table with its intervals and marks."""
    marks = leak_reasons(run)
    head = "".join(f'<th scope="col">{_safe(metric)}</th>' for metric in run.metrics)
    body = []
    for row, line in zip(run.checkpoints, cells(run), strict=True):
        leak = f' <span class="mark">{_safe(marks[row.leak])}</span>' if row.leak else ""
        name = f'<th scope="row"><bdi>{_safe(row.name)}</bdi>{leak}</th>'
        body.append(f"<tr>{name}{''.join(map(_table_cell, line))}</tr>")
    return (
        f'<table id="score-table"><thead><tr><th scope="col" data-t="checkpoint"></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def notes_part(run: RunScores) -> str:
    """What must be read with the table, in both languages."""
    return "".join(
        f'<ul class="notes" lang="{language}" data-only="{language}">{_items(table_notes(run, language))}</ul>'
        for language in LANGUAGES
    )


def score_charts(run: RunScores) -> str:
    """Scores over training with their intervals: metrics from 0 to 1, and CIDEr by itself."""
    axis = checkpoint_axis(run, width=3.5)
    ticks = list(zip(*axis.ticks(3.5), strict=True))
    run, joined = drawn_rows(run)
    drawn = [metric for metric in run.metrics if column(metric).top is not None]
    parts = []
    for label, metrics in (
        ("score", [metric for metric in drawn if not metric.startswith("CIDEr")]),
        ("cider", [metric for metric in drawn if metric.startswith("CIDEr")]),
    ):
        series = [
            replace(_metric_series(run, metric, index if label == "score" else 5 + index), joined=joined)
            for index, metric in enumerate(metrics)
        ]
        title = f"{', '.join(metrics)}, {', '.join(row.name for row in run.checkpoints[:40])}"
        chart = line_chart(axis.positions, series, title=title, x_label=axis.title, y_label=label, ticks=ticks)
        if chart:
            parts.append(_figure("metrics_chart", chart))
    return "".join(parts)


def analysis_part(run: RunScores) -> str:
    """The computed sentences, in both languages."""
    analysis = analyse(run)
    parts = []
    for language in LANGUAGES:
        statements = sentences(run, analysis, language)
        items = "".join(f"<dt>{_safe(item.topic)}</dt><dd>{_safe(item.text)}</dd>" for item in statements)
        parts.append(f'<dl class="analysis" lang="{language}" data-only="{language}">{items}</dl>')
    return "".join(parts)


def comparison_part(comparison: Comparison) -> str:
    """Tests between runs and their agreement, as tables."""
    names = [f"<bdi>{_safe(row.name)}</bdi>" for row in comparison.table.checkpoints]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    parts = []
    for number, (heading, rows) in enumerate(matrices(comparison)):
        body = "".join(
            f'<tr><th scope="row">{name}</th>{"".join(f"<td>{_safe(cell)}</td>" for cell in row)}</tr>'
            for name, row in zip(names, rows, strict=True)
        )
        parts.append(
            f'<h3 id="matrix-{number}">{_safe(heading)}</h3>'
            f'<div class="wide" role="region" tabindex="0" aria-labelledby="matrix-{number}"><table><thead><tr>'
            f'<th scope="col" data-t="checkpoint"></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
    return "".join(parts)


def training_part(log: TrainingLog) -> str:
    """Loss and learning rate over the steps."""
    charts = []
    for key, values, style in (("loss", log.loss, 0), ("lr", log.lr, 3)):
        series = [Series("", values, style)]
        chart = (
            line_chart(log.steps, series, title=key, x_label="step", y_label=key, markers=False) if log.steps else ""
        )
        if chart:
            charts.append(_figure(f"{key}_chart", chart))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else '<p data-t="no_log"></p>'


def distributions_part(run: RunScores, rows: Sequence[CaptionStatistics], references: CaptionStatistics) -> str:
    """Scores of single images, lengths, vocabulary, word classes and failures."""
    if not any(row.lengths for row in rows):
        return '<p data-t="no_captions"></p>'
    axis = checkpoint_axis(run, width=3.5)
    ticks = list(zip(*axis.ticks(3.5), strict=True))
    ordered, joined = drawn_rows(run)
    places = {row.name: place for place, row in enumerate(run.checkpoints)}
    rows = [rows[places[row.name]] for row in ordered.checkpoints]
    everything, run = rows, course_of(run).run
    rows = everything[: joined or 1]
    names = [row.name for row in run.checkpoints]
    ends = [0, len(names) - 1] if len(names) > 1 else [0]
    cider = [
        (names[end], [s.get("CIDEr", math.nan) for s in run.checkpoints[end].per_image.values()], 5 * (end > 0))
        for end in ends
    ]
    lengths = [(names[end], list(map(float, rows[end].lengths)), 5 * (end > 0)) for end in ends]
    if references.lengths:
        lengths.append(("references", list(map(float, references.lengths)), 7))
    mean = [Series("", [row.mean_length for row in everything], 0, joined=joined)]
    if references.lengths:
        mean.append(Series("references", [references.mean_length] * len(everything), 7, translate="references"))
    words = [Series("", [float(len(row.words)) or math.nan for row in everything], 2, joined=joined)]
    charts = [
        ("cider_distribution", _histogram(cider, "per_image_cider")),
        ("length_distribution", _histogram(lengths, "words_per_caption", whole=True)),
        (
            "length_chart",
            line_chart(
                axis.positions, mean, title="mean length", x_label=axis.title, y_label="words_per_caption", ticks=ticks
            ),
        ),
        (
            "vocabulary_chart",
            line_chart(
                axis.positions, words, title="vocabulary", x_label=axis.title, y_label="vocabulary", ticks=ticks
            ),
        ),
    ]
    figures = "".join(_figure(key, chart) for key, chart in charts if chart)
    tables = [_word_lists(rows), _class_table(run, rows, references), _failure_table(ordered, everything)]
    return f'<div class="charts">{figures}</div>{"".join(tables)}'


def _table_cell(cell: Cell) -> str:
    best = ' class="best"' if cell.best else ""
    star = "*" if cell.best else ""
    interval = f'<span class="interval">{cell.interval}</span>' if cell.interval else ""
    return f"<td{best}>{cell.value}{star}{daggers(cell)}{interval}</td>"


def _metric_series(run: RunScores, metric: str, style: int) -> Series:
    """One metric as a line with its intervals."""
    values = [math.nan if value is None else value for value in run.values(metric)]
    given = any(metric in row.intervals for row in run.checkpoints)
    bands = [row.intervals.get(metric, (math.nan, math.nan)) for row in run.checkpoints] if given else []
    return Series(metric, values, style % 10, bands)


def _histogram(groups: Sequence[tuple[str, Sequence[float], int]], x_label: str, *, whole: bool = False) -> str:
    """Shares of values in equal bins, a line a group; whole numbers are not split."""
    finite = [[value for value in values if math.isfinite(value)] for _, values, _ in groups]
    everything = sorted(value for values in finite for value in values)
    if not everything:
        return ""
    # A single caption that runs on must not squeeze all others into the first bin.
    low, high = everything[0], everything[min(len(everything) - 1, int(0.995 * len(everything)))]
    width = (high - low) / BINS or 1.0
    if whole:
        width = max(1.0, math.ceil(width))
    count = max(1, math.ceil((high - low) / width + 1e-9)) + (1 if whole else 0)
    centres = [low + (index + (0 if whole else 0.5)) * width for index in range(count)]
    series = []
    for (name, _, style), values in zip(groups, finite, strict=True):
        bins = [0] * count
        for value in values:
            bins[min(count - 1, int((value - low) / width))] += 1
        shares = [share / len(values) for share in bins] if values else [math.nan] * count
        series.append(Series(name, shares, style, translate="references" if name == "references" else ""))
    return line_chart(centres, series, title=x_label, x_label=x_label, y_label="share", markers=False)


def _word_lists(rows: Sequence[CaptionStatistics]) -> str:
    """Words that only the last or only the first checkpoint uses."""
    gained, lost = most_changed_words(rows[0].words, rows[-1].words)
    parts = []
    for key, words, counts in (("words_gained", gained, rows[-1].words), ("words_lost", lost, rows[0].words)):
        listed = ", ".join(f"<bdi>{_safe(word)}</bdi> ({counts[word]})" for word in words)
        parts.append(f'<h3 data-t="{key}"></h3><p class="words">{listed or NOTHING}</p>')
    return "".join(parts)


def _class_table(run: RunScores, rows: Sequence[CaptionStatistics], references: CaptionStatistics) -> str:
    """Shares of word classes in the first row, the last row and the references."""
    columns = [(f"<bdi>{_safe(run.checkpoints[0].name)}</bdi>", word_classes(rows[0].words))]
    if len(rows) > 1:
        columns.append((f"<bdi>{_safe(run.checkpoints[-1].name)}</bdi>", word_classes(rows[-1].words)))
    if references.words:
        columns.append(('<span data-t="references"></span>', word_classes(references.words)))
    classes = next((list(shares) for _, shares in columns if shares), [])
    lines = [(name, [shares.get(name) for _, shares in columns]) for name in classes]
    return _share_table("word_classes", [head for head, _ in columns], lines)


def _failure_table(run: RunScores, rows: Sequence[CaptionStatistics]) -> str:
    """Shares of captions with each failure, a column a checkpoint; nothing where no caption failed."""
    found = sorted({failure for row in rows for failures in row.failures.values() for failure in failures})
    lines = [
        (name, [sum(name in failures for failures in row.failures.values()) / (len(row.lengths) or 1) for row in rows])
        for name in found
    ]
    return _share_table("failures_title", [f"<bdi>{_safe(row.name)}</bdi>" for row in run.checkpoints], lines)


def _share_table(key: str, heads: Sequence[str], lines: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """A table of shares under a heading."""
    if not lines:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row" data-t="{_safe(name)}"></th>'
        + "".join("<td>–</td>" if share is None else f"<td>{100 * share:.1f} %</td>" for share in shares)
        + "</tr>"
        for name, shares in lines
    )
    return (
        f'<h3 id="{key}" data-t="{key}"></h3>'
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="{key}"><table>'
        f'<thead><tr><th scope="col" data-t="class"></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figure(key: str, chart: str) -> str:
    return f'<figure><figcaption data-t="{key}"></figcaption>{chart}</figure>'


def _items(lines: Sequence[str]) -> str:
    return "".join(f"<li>{_safe(line)}</li>" for line in lines)


def _duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _safe(text: str) -> str:
    return escape(one_line(text), quote=True)
