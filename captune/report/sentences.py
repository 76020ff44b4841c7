"""The analysis in words: every sentence is filled from computed values and says by which rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from captune.common import listed
from captune.report.analysis import TREND_WINDOW, Analysis, Jump, MetricAnalysis, Trend
from captune.report.columns import SLIDES_METRICS, column, format_value, shows_zero
from captune.report.course import course_of
from captune.report.record import RunScores
from captune.report.table import SIGNIFICANT
from captune.report.text import markdown, one_line

__all__ = ["Sentence", "analysis_markdown", "percent", "sentences"]

MOST, SOME = 6, 3
"""How many drops, and how many disagreements, are spelt out before the rest is counted."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One statement of the report.

    Attributes:
        topic: a word or two that say what it is about.
        text: one or more whole sentences on one line.
    """

    topic: str
    text: str


def sentences(run: RunScores, analysis: Analysis) -> list[Sentence]:
    """Say in words what was computed.

    Args:
        run: the rows.
        analysis: what `analyse` computed from them.
    """
    found = [*_leaks(run), *_missing(analysis)]
    if analysis.is_training:
        rows = course_of(run).run
        found += _several_rows(rows, analysis) if len(analysis.rows) > 1 else _single_row(analysis)
        found += [*_overfit(analysis), *_lengths(analysis)]
    found += _others(analysis)
    return [Sentence(topic, one_line(text)) for topic, text in found]


def analysis_markdown(run: RunScores, analysis: Analysis) -> str:
    """The sentences as a Markdown list under a heading."""
    lines = [f"- **{markdown(item.topic)}.** {markdown(item.text)}" for item in sentences(run, analysis)]
    return "\n".join(["# Analysis", "", *lines, ""])


def percent(share: float) -> str:
    """A relative change such as "+23 %", with as many decimals as a small one needs; huge ones as "+2e+06-fold"."""
    if abs(share) >= 1e4:
        return f"{share:+.2g}-fold"
    size = abs(share) * 100
    if size < 0.005:
        return "+0 %"
    decimals = 0 if size >= 9.95 or share == 0 else 1 if size >= 0.95 else 2
    return f"{share * 100:+,.{decimals}f} %"


def _several_rows(run: RunScores, analysis: Analysis) -> list[tuple[str, str]]:
    """Everything that compares rows."""
    if all(len({format_value(value) for value in run.values(entry.metric)}) == 1 for entry in analysis.metrics):
        text = f"All {len(analysis.rows)} rows show the same scores: either training changed nothing that these "
        return [("Gain", text + "metrics see, or the same captions were scored each time.")]
    return [
        ("Gain", _gains(analysis)),
        *_ranking(analysis),
        ("Best checkpoint", _best(analysis)),
        *_largest_jumps(analysis),
        ("Drops", _drops(analysis)),
        *_trends(analysis),
        ("Agreement", _agreement(analysis)),
        *_significance(analysis),
    ]


def _single_row(analysis: Analysis) -> list[tuple[str, str]]:
    """What can be said about one checkpoint."""
    return [("Gain", f"There is only one checkpoint, {analysis.rows[0]}, so nothing can be compared yet.")]


def _leaks(run: RunScores) -> list[tuple[str, str]]:
    marked = [row for row in run.checkpoints if row.leak]
    if not marked:
        return []
    every = len(marked) == len(run.checkpoints)
    rows = "All rows" if every and len(marked) > 1 else listed(row.name for row in marked)
    reasons = "; ".join(dict.fromkeys((row.leak or "").rstrip(".") for row in marked))
    verb = "is" if len(marked) == 1 else "are"
    return [("Leak", f"{rows} {verb} marked LEAK ({reasons}): not to be compared with published scores.")]


def _missing(analysis: Analysis) -> list[tuple[str, str]]:
    """Scores that are absent or not a number."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for entry in analysis.metrics:
        if entry.missing:
            groups.setdefault(entry.missing, []).append(entry.metric)
    parts = [
        f"at {'any row' if len(rows) == len(analysis.rows) > 1 else listed(rows)} for {listed(metrics)}"
        for rows, metrics in groups.items()
    ]
    return [("Missing", f"There is no value {'; '.join(parts)}.")] if parts else []


def _gains(analysis: Analysis) -> str:
    """Relative gain of every metric, first row to last."""
    parts: list[str] = []
    unclear: list[str] = []
    equal: list[str] = []
    for entry in analysis.metrics:
        if entry.differs is False:
            (equal if shows_zero(entry.gain) else unclear).append(entry.metric)
            continue
        road = f"{format_value(entry.first)} to {format_value(entry.last)}"
        if entry.relative_gain is not None:
            bounds = entry.relative_interval
            between = f", between {percent(bounds[0])} and {percent(bounds[1])}" if bounds else ""
            parts.append(f"{entry.metric} {percent(entry.relative_gain)} ({road}{between})")
        elif math.isfinite(entry.gain):
            parts.append(f"{entry.metric} {entry.gain:+.4f} ({road}; no relative gain, for it starts at 0)")
        else:
            parts.append(f"{entry.metric} unknown ({road})")
    text = f"From {analysis.rows[0]} to {analysis.rows[-1]}: {', '.join(parts)}." if parts else ""
    if unclear:
        verb = "differs" if len(unclear) == 1 else "differ"
        text = text or f"From {analysis.rows[0]} to {analysis.rows[-1]}:"
        text += f" {listed(unclear)} {verb} by no more than chance."
    if equal:
        text += f" {listed(equal)} {'stays as it is' if len(equal) == 1 else 'stay as they are'}."
    if any(entry.relative_interval and not entry.paired and entry.differs is not False for entry in analysis.metrics):
        text += " The bounds combine both rows' intervals; paired on the same images they would be narrower."
    return text.strip()


def _ranking(analysis: Analysis) -> list[tuple[str, str]]:
    """Fastest and slowest growing metric."""
    ranked = [analysis[name] for name in analysis.ranking]
    if len(ranked) < 2:
        return []

    def shown(entry: MetricAnalysis) -> str:
        return f"{entry.metric} ({percent(entry.relative_gain or 0.0)})"

    improved = [entry for entry in ranked if _improvement(entry) > 0]
    worse = [entry for entry in reversed(ranked) if _improvement(entry) < 0]
    parts = []
    if improved:
        verb = "rose" if all(column(entry.metric).direction > 0 for entry in ranked) else "improved"
        parts.append(f"{improved[0].metric} {verb} fastest ({percent(improved[0].relative_gain or 0.0)})")
        slowest = improved[-2:][::-1] if len(improved) > 3 else improved[-1:]
        if len(improved) > 1 and not worse:
            parts.append(f"{listed(shown(entry) for entry in slowest)} least")
    else:
        parts.append("no metric improved")
    if worse:
        parts.append(f"{listed(shown(entry) for entry in worse)} got worse")
    return [("Fastest and slowest", f"Relative to the first row, {('; ' if worse else ', ').join(parts)}.")]


def _improvement(entry: MetricAnalysis) -> float:
    """The relative gain, turned so that larger is better; 0 where there is none that can be seen."""
    if entry.differs is False:
        return 0.0
    return (entry.relative_gain or 0.0) * (column(entry.metric).direction or 1)


def _best(analysis: Analysis) -> str:
    """Best checkpoint of every metric, grouped."""
    known = [entry for entry in analysis.metrics if column(entry.metric).direction]
    groups: dict[str, list[str]] = {}
    leads: dict[str, list[str]] = {}
    for entry in known:
        if entry.best is not None:
            (groups if entry.best_is_sure else leads).setdefault(entry.best, []).append(entry.metric)
    if not groups and not leads:
        return "No row is better than another."

    def metrics_of(metrics: list[str]) -> str:
        return f"all {len(known)} metrics" if len(metrics) == len(known) > 1 else listed(metrics)

    parts = [f"{name} is best on {metrics_of(metrics)}" for name, metrics in groups.items()]
    parts += [
        f"{name} scores highest on {metrics_of(metrics)}, though not by more than chance over every other row"
        for name, metrics in leads.items()
    ]
    return f"{'; '.join(parts)}."


def _largest_jumps(analysis: Analysis) -> list[tuple[str, str]]:
    """The step on which every metric improved most, grouped by step."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in analysis.metrics:
        if jump := entry.largest_jump:
            groups.setdefault((jump.before, jump.after), []).append(f"{entry.metric} ({jump.change:+.4f})")
    parts = [f"at {after}, from {before}, for {listed(items)}" for (before, after), items in groups.items()]
    return [("Largest jump", f"The largest jump comes {'; '.join(parts)}.")] if parts else []


def _drops(analysis: Analysis) -> str:
    """Every step on which a metric got worse."""
    drops = [(entry.metric, jump) for entry in analysis.metrics for jump in entry.drops]
    if not drops:
        tested = any(entry.p_value is not None for entry in analysis.metrics)
        return f"No metric gets worse at any step{' by more than chance' if tested else ''}."
    drops.sort(key=lambda drop: -abs(drop[1].change) / (column(drop[0]).top or 1))

    def shown(metric: str, jump: Jump) -> str:
        return f"{metric} {jump.change:+.4f} from {jump.before} to {jump.after}"

    more = f", and {len(drops) - MOST} smaller ones" if len(drops) > MOST else ""
    return f"{', '.join(shown(*drop) for drop in drops[:MOST])}{more}."


_TREND_WORDS: dict[Trend, str] = {
    "rising": "still improving",
    "flat": "flat",
    "falling": "getting worse",
    "swinging": "swinging up and down",
    "unclear": "moving by no more than noise",
}


def _trends(analysis: Analysis) -> list[tuple[str, str]]:
    """Whether the last checkpoints still rise, by which rule, and what to do."""
    known = [entry for entry in analysis.metrics if entry.trend and column(entry.metric).direction]
    if not known:
        if len(analysis.rows) > TREND_WINDOW:
            return []
        text = f"{len(analysis.rows)} rows are too few to tell a plateau; it takes {TREND_WINDOW + 1}."
        return [("Last epochs", text)]
    groups: dict[Trend, list[str]] = {}
    for entry in known:
        if entry.trend:
            share = f" ({100 * entry.slope / entry.pace:.0f} %)" if entry.pace else ""
            groups.setdefault(entry.trend, []).append(entry.metric + share)
    parts = [f"{_TREND_WORDS[trend]}: {listed(items)}" for trend, items in groups.items()]
    rule = (
        f"In brackets, the slope of the line through the last {TREND_WINDOW} checkpoints as a share of the metric's "
        "pace, which is its range over all rows divided by the training between them; below 25 % it counts as flat."
    )
    found = [("Last epochs", f"{_capital('; '.join(parts))}. {rule}")]
    if analysis.advice and analysis.advised_by:
        found.append(("Advice", _advice(analysis)))
    return found


def _advice(analysis: Analysis) -> str:
    """What to do next, and which metrics say so."""
    voters = [entry for entry in analysis.metrics if entry.trend and entry.metric in SLIDES_METRICS]
    votes = f"{len(analysis.advised_by)} of {len(voters)} metrics"
    if len(analysis.advised_by) * 2 <= len(voters) and "CIDEr" in analysis.advised_by:
        votes += ", CIDEr among them,"
    best = analysis.best
    match analysis.advice:
        case "go on":
            return f"Go on: {votes} still improve."
        case "stop":
            return f"Stop: {votes} have reached a plateau; take {best}."
        case "more images":
            return f"Undecided: the last changes of {votes} are within noise; evaluate on more images."
    if any(analysis[metric].trend == "swinging" for metric in analysis.advised_by):
        return f"Lower the learning rate: {votes} swing up and down; take {best} until then."
    return f"Stop and take {best}: {votes} get worse; to train further, lower the learning rate."


def _agreement(analysis: Analysis) -> str:
    """Steps on which some metrics improve while others get worse."""
    found = analysis.disagreements
    if not found:
        tested = any(entry.p_value is not None for entry in analysis.metrics)
        chance = ", as far as it is more than chance" if tested else ""
        return f"No two metrics disagree about the direction of any step{chance}."
    # The whole road, when the metrics part on it, matters more than any single step.
    ends = (analysis.rows[0], analysis.rows[-1])
    ordered = sorted(found, key=lambda item: item[:2] != ends)
    parts = [f"from {before} to {after}, {_sides(up, down)}" for before, after, up, down in ordered[:SOME]]
    rest = len(ordered) - SOME
    more = f"; metrics disagree on {rest} more step{'' if rest == 1 else 's'}" if rest > 0 else ""
    return f"{_capital('; '.join(parts) + more)}."


def _sides(up: tuple[str, ...], down: tuple[str, ...]) -> str:
    """Who improves and who gets worse, the larger side by its number where it is long."""

    def side(names: tuple[str, ...], other: tuple[str, ...], plural: str, singular: str) -> str:
        short = len(names) <= SOME or len(names) < len(other)
        who = listed(names) if short else f"{len(names)} others"
        return f"{who} {singular if len(names) == 1 else plural}"

    return f"{side(down, up, 'get worse', 'gets worse')} while {side(up, down, 'improve', 'improves')}"


def _significance(analysis: Analysis) -> list[tuple[str, str]]:
    """Which metrics of the last row differ from the first by more than chance."""
    tested = [(entry.metric, entry.p_value) for entry in analysis.metrics if entry.p_value is not None]
    if not tested:
        return []
    sure = [(metric, p) for metric, p in tested if p < SIGNIFICANT]
    unsure = [f"{metric} (p = {p:.2f})" for metric, p in tested if p >= SIGNIFICANT]
    parts = []
    if sure:
        largest = max(0.001, *(p for _, p in sure), 0.0)
        metrics = f"all {len(sure)} metrics" if len(sure) == len(tested) > 2 else listed(name for name, _ in sure)
        parts.append(f"differs from {analysis.rows[0]} by more than chance on {metrics} (p <= {largest:.2g})")
    if unsure:
        parts.append(f"the difference may be chance on {listed(unsure)}")
    return [("Significance", f"{analysis.rows[-1]} {' but '.join(parts)}.")]


def _overfit(analysis: Analysis) -> list[tuple[str, str]]:
    """Whether training images improve at the cost of the others."""
    if analysis.overfit is None:
        return []
    if not analysis.overfit:
        return [("Over-fitting", "No metric rises on the training images while it falls on the evaluated ones.")]
    parts = [
        f"since {item.since}, {item.metric} rises on training images ({item.trained:+.4f}) and falls on the evaluated "
        f"ones ({item.evaluated:+.4f})"
        for item in analysis.overfit
    ]
    return [("Over-fitting", f"{_capital('; '.join(parts))}.")]


def _others(analysis: Analysis) -> list[tuple[str, str]]:
    """Rows of other captioners, each against the last checkpoint (or several models, against the first)."""
    if not analysis.others:
        return []
    reference = analysis.others[0].reference
    texts = []
    for row in analysis.others:
        count = len(row.higher) + len(row.lower) + len(row.unclear)
        parts = [
            f"{verb} on {f'all {len(metrics)} metrics' if len(metrics) == count > 2 else listed(metrics)}"
            for verb, metrics in (
                ("scores higher", row.higher),
                ("scores lower", row.lower),
                ("shows no difference", row.unclear),
            )
            if metrics
        ]
        texts.append(f"{row.name} {', '.join(parts) or 'has no score in common with it'}")
    what = "Other captioners" if analysis.is_training else "Models"
    kind = " (these rows are no checkpoints of the training)" if analysis.is_training else ""
    return [(what, f"Compared with {reference}{kind}: {'; '.join(texts)}.")]


def _lengths(analysis: Analysis) -> list[tuple[str, str]]:
    """How the length of captions drifts."""
    first, last = analysis.lengths[0], analysis.lengths[-1]
    if not math.isfinite(last):
        return []
    text = f"{analysis.rows[-1]} writes {last:.1f} words a caption"
    if len(analysis.rows) > 1 and math.isfinite(first):
        text += f", {analysis.rows[0]} wrote {first:.1f}"
    if math.isfinite(analysis.reference_length):
        text += f"; references have {analysis.reference_length:.1f}"
    return [("Length", f"{text}.")]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
