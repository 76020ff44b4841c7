"""The analysis in words: one code path selects the statements, a message catalogue words them in each language."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from captune.common import escape_markdown, one_line
from captune.report.analysis import TREND_WINDOW, Analysis, Jump, MetricAnalysis, Trend
from captune.report.columns import SLIDES_METRICS, column, format_value, shows_zero
from captune.report.learning_curve import SIGNIFICANT, split_training_rows
from captune.report.scores_json import RunScores

__all__ = [
    "LANGUAGES",
    "Catalogue",
    "Sentence",
    "analysis_markdown",
    "catalogue",
    "percent",
    "recommends_more_epochs",
    "sentences",
    "summary",
]

LANGUAGES = {"en": "English", "zh": "中文"}
"""Languages of the page and their names; each has a catalogue in `messages/`."""

MAX_DROPS, MAX_DISAGREEMENTS = 6, 3
"""How many drops and disagreements are listed before the others are counted."""


class Catalogue:
    """The texts of one language, from `messages/LANGUAGE.json`.

    Attributes:
        page: the words of the page, which its script uses too.
        messages: key -> template, or its forms "one" and "other".
        metrics: name of a metric -> what it measures, if the language has its own explanation.
    """

    def __init__(self, language: str) -> None:
        tree = json.loads((files("captune.report") / "messages" / f"{language}.json").read_text(encoding="utf-8"))
        self.page: Mapping[str, str] = tree["page"]
        self.messages: Mapping[str, str | Mapping[str, str]] = tree["analysis"]
        self.metrics: Mapping[str, str] = tree.get("metrics", {})

    def text(self, key: str, **values: Any) -> str:
        """One message with its values.

        Args:
            key: its id. A message with the forms "one" and "other" takes the form that fits the value `count`.
            values: what its template, a `str.format` string, names; a language may leave some of them out. A list is
                written as "a, b and c".
        """
        message = self.messages[key]
        if not isinstance(message, str):
            message = message["one" if values["count"] == 1 else "other"]
        shown = {name: self._enumerated(value) if isinstance(value, list) else value for name, value in values.items()}
        return message.format(**shown)

    def join(self, key: str, items: Iterable[str]) -> str:
        """Items with the separator `key` between them."""
        return self.text(key).join(items)

    def _enumerated(self, items: list[str]) -> str:
        *head, last = items
        return f"{self.join('list', head)}{self.text('list.last')}{last}" if head else last


@cache
def catalogue(language: str) -> Catalogue:
    """The texts of a language of `LANGUAGES`, read once."""
    return Catalogue(language)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One statement of the report.

    Attributes:
        topic: a word or two that name its subject.
        text: one or more complete sentences on one line.
    """

    topic: str
    text: str


def sentences(run: RunScores, analysis: Analysis, language: str = "en") -> list[Sentence]:
    """Put the computed values into words.

    Args:
        run: the rows.
        analysis: what `analyse` computed from them.
        language: one of `LANGUAGES`.
    """
    texts = catalogue(language)
    statements = _Narrative(analysis, texts).statements(run)
    return [Sentence(texts.text(f"topic.{topic}"), one_line(text)) for topic, text in statements]


def summary(run: RunScores, analysis: Analysis, language: str = "en") -> str:
    """The statements to read first as one paragraph: advice, over-fitting, other captioners; empty without any.

    Args:
        run: the rows.
        analysis: what `analyse` computed from them.
        language: one of `LANGUAGES`.
    """
    texts = catalogue(language)
    topics = ["failed", "missing", "thinking", "captioners", "models"]
    topics += ["advice"] if analysis.is_training else []
    topics += ["overfit"] if analysis.overfit else []
    statements = dict(_Narrative(analysis, texts).statements(run))
    return texts.text("verdict.separator").join(one_line(statements[key]) for key in topics if key in statements)


def analysis_markdown(run: RunScores, analysis: Analysis) -> str:
    """The sentences in English as a Markdown list under a heading."""
    lines = [f"- **{escape_markdown(item.topic)}.** {_markdown_text(item.text)}" for item in sentences(run, analysis)]
    return "\n".join(["# Analysis", "", *lines, ""])


def _markdown_text(text: str) -> str:
    """Text for Markdown, escaped only where a reader of it would take a character for markup."""
    escaped = escape_markdown(text)
    # Neither "<=" nor an underscore inside a word is markup.
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", escaped.replace("&lt;=", "<="))


def percent(share: float) -> str:
    """A relative change such as "+23 %", with as many decimals as a small one needs; huge ones as "+2e+06-fold"."""
    if abs(share) >= 1e4:
        return f"{share:+.2g}-fold"
    size = abs(share) * 100
    if size < 0.005:
        return "+0 %"
    decimals = 0 if size >= 9.95 or share == 0 else 1 if size >= 0.95 else 2
    return f"{share * 100:+,.{decimals}f} %"


class _Narrative:
    """Selects the statements of one analysis; every method returns a text, or nothing where there is none to make."""

    def __init__(self, analysis: Analysis, texts: Catalogue) -> None:
        self.analysis = analysis
        self.say, self.join = texts.text, texts.join
        self.first, self.last = analysis.rows[0], analysis.rows[-1]
        self.tested = [(entry.metric, entry.p_value) for entry in analysis.metrics if entry.p_value is not None]

    def statements(self, run: RunScores) -> Iterator[tuple[str, str]]:
        """The topic and text of every statement, in the order of the report."""
        analysis = self.analysis
        texts = [
            ("leak", self.leak(run)),
            ("failed", self.failed(run)),
            ("missing", self.missing()),
            ("thinking", self.thinking(run)),
        ]
        if analysis.is_training:
            rows = split_training_rows(run).run
            if len(analysis.rows) == 1:
                texts.append(("gain", self.say("gain.single", row=self.first)))
            elif all(len({format_value(value) for value in rows.values(e.metric)}) == 1 for e in analysis.metrics):
                texts.append(("gain", self.say("gain.same", count=len(analysis.rows))))
            else:
                texts += [
                    ("gain", self.gain()),
                    ("ranking", self.ranking()),
                    ("best", self.best()),
                    ("jump", self.largest_jump()),
                    ("drops", self.drops()),
                    ("trends", self.trends()),
                    ("advice", self.advice(run)),
                    ("agreement", self.agreement()),
                    ("significance", self.significance()),
                ]
            texts += [("overfit", self.overfit()), ("length", self.length())]
        texts.append(("captioners" if analysis.is_training else "models", self.others()))
        return ((topic, text) for topic, text in texts if text)

    def leak(self, run: RunScores) -> str:
        """Rows whose training saw images of the evaluation."""
        marked = [row for row in run.checkpoints if row.leak]
        if not marked:
            return ""
        reasons = self.join("leak.separator", dict.fromkeys((row.leak or "").rstrip(".") for row in marked))
        key = "leak.all" if len(marked) == len(run.checkpoints) > 1 else "leak"
        return self.say(key, rows=[row.name for row in marked], reasons=reasons, count=len(marked))

    def missing(self) -> str:
        """Scores that are absent or not a number."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for entry in self.analysis.metrics:
            if entry.missing:
                groups.setdefault(entry.missing, []).append(entry.metric)
        parts = []
        for rows, metrics in groups.items():
            key = "missing.part_all" if len(rows) == len(self.analysis.rows) > 1 else "missing.part"
            parts.append(self.say(key, rows=list(rows), metrics=metrics))
        return self._parts("missing", parts)

    def failed(self, run: RunScores) -> str:
        """Rows that were not scored."""
        rows = [row for row in run.checkpoints if row.error is not None]
        parts = [self.say("failed.part", row=row.name, reason=(row.error or "").rstrip(".")) for row in rows]
        return self._parts("failed", parts)

    def thinking(self, run: RunScores) -> str:
        """Captions whose thinking text never ends."""
        parts = [
            self.say("thinking.part", row=row.name, captions=len(row.captions), **row.thinking_counts)
            for row in run.checkpoints
            if row.thinking_counts.get("unclosed")
        ]
        return self._parts("thinking", parts)

    def gain(self) -> str:
        """Relative gain of every metric, first row to last."""
        changes: list[str] = []
        from_zero: list[str] = []
        unclear: list[str] = []
        equal: list[str] = []
        for entry in self.analysis.metrics:
            if entry.differs is False:
                (equal if shows_zero(entry.gain) else unclear).append(entry.metric)
            else:
                at_zero = entry.relative_gain is None and math.isfinite(entry.gain)
                (from_zero if at_zero else changes).append(self._change(entry))
        parts = [self.join("gain.changes_separator", changes)] if changes else []
        if from_zero:
            # One sentence for all of them, which would repeat it.
            parts.append(
                self.say("gain.from_zero", parts=self.join("gain.changes_separator", from_zero), count=len(from_zero))
            )
        for key, metrics in (("gain.unclear", unclear), ("gain.equal", equal)):
            if metrics:
                parts.append(self.say(key, metrics=metrics, count=len(metrics)))
        text = self.say(
            "gain" if changes or from_zero or unclear else "gain.all_equal",
            first=self.first,
            last=self.last,
            parts=self.join("gain.separator", parts),
        )
        unpaired = any(e.relative_interval and not e.paired and e.differs is not False for e in self.analysis.metrics)
        return text + (self.say("gain.unpaired") if unpaired else "")

    def _change(self, entry: MetricAnalysis) -> str:
        """One metric's change from the first row to the last."""
        values = {"metric": entry.metric, "first": format_value(entry.first), "last": format_value(entry.last)}
        if entry.relative_gain is None:
            key = "gain.absolute" if math.isfinite(entry.gain) else "gain.unknown"
            return self.say(key, gain=entry.gain, **values)
        relative = percent(entry.relative_gain)
        if not entry.relative_interval:
            return self.say("gain.relative", relative=relative, **values)
        low, high = map(percent, entry.relative_interval)
        return self.say("gain.interval", relative=relative, low=low, high=high, **values)

    def ranking(self) -> str:
        """Fastest and slowest growing metric."""
        ranked = [self.analysis[name] for name in self.analysis.ranking]
        if len(ranked) < 2:
            return ""

        def with_gains(entries: Iterable[MetricAnalysis]) -> list[str]:
            items = ((entry.metric, percent(entry.relative_gain or 0.0)) for entry in entries)
            return [self.say("ranking.item", metric=metric, gain=gain) for metric, gain in items]

        improved = [entry for entry in ranked if _improvement(entry) > 0]
        worse = [entry for entry in reversed(ranked) if _improvement(entry) < 0]
        parts = []
        if improved:
            key = "rose" if all(column(entry.metric).direction > 0 for entry in ranked) else "improved"
            gain = percent(improved[0].relative_gain or 0.0)
            parts.append(self.say(f"ranking.{key}", metric=improved[0].metric, gain=gain))
            slowest = improved[-2:][::-1] if len(improved) > 3 else improved[-1:]
            if len(improved) > 1 and not worse:
                parts.append(self.say("ranking.slowest", metrics=with_gains(slowest)))
        else:
            parts.append(self.say("ranking.none"))
        if worse:
            parts.append(self.say("ranking.worse", metrics=with_gains(worse)))
        separator = "ranking.separator_worse" if worse else "ranking.separator"
        return self.say("ranking", parts=self.join(separator, parts))

    def best(self) -> str:
        """Best checkpoint of every metric, grouped; those that are best by more than chance first."""
        known = [entry for entry in self.analysis.metrics if column(entry.metric).direction]
        groups: dict[tuple[str, str], list[str]] = {}
        for entry in sorted(known, key=lambda entry: not entry.best_is_sure):
            if entry.best is not None:
                key = "best.sure" if entry.best_is_sure else "best.unsure"
                groups.setdefault((key, entry.best), []).append(entry.metric)
        parts = [
            self.say(key, row=row, metrics=self._metrics(metrics, len(known), least=2))
            for (key, row), metrics in groups.items()
        ]
        return self._parts("best", parts) or self.say("best.none")

    def largest_jump(self) -> str:
        """The step on which every metric improved most, grouped by step."""
        groups: dict[tuple[str, str], list[str]] = {}
        for entry in self.analysis.metrics:
            if jump := entry.largest_jump:
                item = self.say("jump.item", metric=entry.metric, change=jump.change)
                groups.setdefault((jump.before, jump.after), []).append(item)
        parts = [
            self.say("jump.part", before=before, after=after, metrics=items)
            for (before, after), items in groups.items()
        ]
        return self._parts("jump", parts)

    def drops(self) -> str:
        """Every step on which a metric got worse, the largest first."""
        drops = [(entry.metric, jump) for entry in self.analysis.metrics for jump in entry.drops]
        if not drops:
            return self.say("drops.none_tested" if self.tested else "drops.none")
        drops.sort(key=lambda drop: -abs(drop[1].change) / (column(drop[0]).top or 1))
        parts = [
            self.say("drops.item", metric=metric, change=jump.change, before=jump.before, after=jump.after)
            for metric, jump in drops[:MAX_DROPS]
        ]
        return self._parts("drops", parts, more=len(drops) - MAX_DROPS)

    def trends(self) -> str:
        """Whether the last checkpoints still rise, and by which rule."""
        rows = len(self.analysis.rows)
        groups: dict[Trend, list[str]] = {}
        for entry in self.analysis.metrics:
            if entry.trend and column(entry.metric).direction:
                item = entry.metric
                if entry.pace:
                    item = self.say("trends.item", metric=item, share=100 * entry.slope / entry.pace)
                groups.setdefault(entry.trend, []).append(item)
        if not groups:
            few = self.say("trends.few", count=rows, needed=TREND_WINDOW + 1)
            return few if rows <= TREND_WINDOW else ""
        joined = self.join(
            "trends.separator",
            (self.say("trends.part", trend=self.say(f"trend.{key}"), metrics=m) for key, m in groups.items()),
        )
        return self.say("trends", parts=joined[:1].upper() + joined[1:], window=TREND_WINDOW)

    def advice(self, run: RunScores) -> str:
        """What to do next, and which metrics lead to it."""
        advice, voters = self.analysis.advice, self.analysis.advised_by
        first = self.analysis.rows[0]
        select = (run.select or "CIDEr").lower()
        selected = next((entry for entry in self.analysis.metrics if entry.metric.lower() == select), None)
        best = self.analysis.best if selected is None else selected.best
        fall = None if selected is None else _fall(selected, self.analysis.rows)
        if best == first and (advice in ("stop", "lower learning rate") or (fall is not None and advice != "continue")):
            return self.say("advice.none better", first=first)
        if not advice or not voters:
            return ""
        if selected is not None and fall is not None and best != first and advice in ("continue", "more images"):
            low = split_training_rows(run).run.values(selected.metric)[self.analysis.rows.index(fall.after)]
            return self.say(
                "advice.fell",
                metric=selected.metric,
                best=best,
                value=selected.best_value,
                low=low,
                after=fall.after,
                end=selected.last,
                last=self.last,
            )
        total = sum(1 for e in self.analysis.metrics if e.trend and e.metric in SLIDES_METRICS)
        key = "advice.votes_with_cider" if len(voters) * 2 <= total and "CIDEr" in voters else "advice.votes"
        votes = self.say(key, count=len(voters), total=total, metrics=list(voters))
        swinging = advice == "lower learning rate" and any(
            self.analysis[metric].trend == "swinging" for metric in voters
        )
        return self.say(f"advice.{'swinging' if swinging else advice}", votes=votes, best=self.analysis.best)

    def agreement(self) -> str:
        """Steps on which some metrics improve while others get worse."""
        # A disagreement from the first row to the last matters more than any single step.
        steps = sorted(self.analysis.disagreements, key=lambda step: step[:2] != (self.first, self.last))
        if not steps:
            return self.say("agreement.none_tested" if self.tested else "agreement.none")
        parts = []
        for before, after, up, down in steps[:MAX_DISAGREEMENTS]:
            worse, better = self._side("agreement.worse", down, up), self._side("agreement.better", up, down)
            parts.append(self.say("agreement.part", before=before, after=after, worse=worse, better=better))
        return self._parts("agreement", parts, more=len(steps) - MAX_DISAGREEMENTS)

    def _side(self, key: str, metrics: Sequence[str], others: Sequence[str]) -> str:
        """The metrics that improve or get worse, the larger side by its number where it is long."""
        names: list[str] | str = list(metrics)
        if len(metrics) > MAX_DISAGREEMENTS and len(metrics) >= len(others):
            names = self.say("agreement.others", count=len(metrics), metrics=names)
        return self.say(key, metrics=names, count=len(metrics))

    def significance(self) -> str:
        """Which metrics of the last row differ from the first by more than chance."""
        sure = [(metric, p) for metric, p in self.tested if p < SIGNIFICANT]
        unsure = [(metric, p) for metric, p in self.tested if p >= SIGNIFICANT]
        parts = []
        if sure:
            items = [self.say("significance.sure_item", metric=metric, p=p) for metric, p in sure]
            metrics = self._metrics(items, len(self.tested), least=3)
            largest = max(0.001, *(p for _, p in sure), 0.0)
            text = self.say("significance.sure", first=self.first, last=self.last, metrics=metrics, p=largest)
            parts.append(text)
        if unsure:
            items = [self.say("significance.unsure_item", metric=metric, p=p) for metric, p in unsure]
            parts.append(self.say("significance.unsure", metrics=items))
        return self._parts("significance", parts, last=self.last)

    def overfit(self) -> str:
        """Whether training images improve at the cost of the others."""
        if self.analysis.overfit is None:
            return ""
        parts = [
            self.say("overfit.part", since=o.since, metric=o.metric, trained=o.trained, evaluated=o.evaluated)
            for o in self.analysis.overfit
        ]
        return self._parts("overfit", parts) or self.say("overfit.none")

    def length(self) -> str:
        """How the length of captions drifts."""
        first, last = self.analysis.lengths[0], self.analysis.lengths[-1]
        if not math.isfinite(last):
            return ""
        text = self.say("length.last", row=self.last, words=last)
        if len(self.analysis.rows) > 1 and math.isfinite(first):
            text += self.say("length.first", row=self.first, words=first)
        if math.isfinite(self.analysis.reference_length):
            text += self.say("length.references", words=self.analysis.reference_length)
        return self.say("length", parts=text)

    def others(self) -> str:
        """Rows of other captioners, each against the last checkpoint (or several models, against the first)."""
        if not self.analysis.others:
            return ""
        rows = []
        for row in self.analysis.others:
            count = len(row.higher) + len(row.lower) + len(row.unclear)
            parts = [
                self.say(f"others.{key}", metrics=self._metrics(metrics, count, least=3))
                for key, metrics in (("higher", row.higher), ("lower", row.lower), ("unclear", row.unclear))
                if metrics
            ]
            text = self.join("others.row_separator", parts) or self.say("others.nothing")
            rows.append(self.say("others.row", row=row.name, parts=text))
        return self.say(
            "captioners" if self.analysis.is_training else "models",
            reference=self.analysis.others[0].reference,
            parts=self.join("others.separator", rows),
        )

    def _metrics(self, metrics: Sequence[str], total: int, *, least: int) -> list[str] | str:
        """Metrics by their names, or as all of them where they are all of at least `least`."""
        names = list(metrics)
        return self.say("metrics.all", count=total, metrics=names) if len(names) == total >= least else names

    def _parts(self, key: str, parts: Iterable[str], *, more: int = 0, **values: str) -> str:
        """The message `key` with its parts joined, and how many `more` there are; nothing without parts."""
        joined = self.join(f"{key}.separator", parts)
        if not joined:
            return ""
        return self.say(f"{key}.more" if more > 0 else key, parts=joined, count=more, **values)


def recommends_more_epochs(run: RunScores, analysis: Analysis) -> bool:
    """Whether the advice of `sentences` is to continue training."""
    if analysis.advice != "continue" or not analysis.advised_by:
        return False
    select = (run.select or "CIDEr").lower()
    selected = next((entry for entry in analysis.metrics if entry.metric.lower() == select), None)
    # Scores that have fallen lead to another sentence.
    return selected is None or selected.best == analysis.rows[0] or _fall(selected, analysis.rows) is None


def _fall(entry: MetricAnalysis, rows: Sequence[str]) -> Jump | None:
    """The largest drop after the best row, if the last row has not made up for half of it."""
    if entry.best is None:
        return None
    later = [drop for drop in entry.drops if rows.index(drop.before) >= rows.index(entry.best)]
    fall = max(later, key=lambda drop: abs(drop.change), default=None)
    is_lasting = fall is not None and abs(entry.best_value - entry.last) >= abs(fall.change) / 2
    return fall if is_lasting else None


def _improvement(entry: MetricAnalysis) -> float:
    """The relative gain, turned so that larger is better; 0 where there is none that can be seen."""
    if entry.differs is False:
        return 0.0
    return (entry.relative_gain or 0.0) * (column(entry.metric).direction or 1)
