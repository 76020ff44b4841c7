"""Agreement of metrics with people as a table for the terminal, Markdown, LaTeX and CSV, and as a page with a chart.

Numbers are shown times 100, as the literature prints them, next to the published values of `published.json`, each with
its source. The page is one file that needs no network.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from captune.agreement.measure import Agreement
from captune.agreement.resampling import Difference, Estimate
from captune.common import one_line, table
from captune.report import nice_ticks, style_sheet

__all__ = [
    "FILES",
    "Published",
    "build_page",
    "csv_table",
    "difference_table",
    "neighbours",
    "published_values",
    "result_table",
    "results_json",
]

FILES = ("agreement.html", "agreement.json", "agreement.csv", "agreement.tex")
"""What is written into the folder of the output."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published value, times 100.

    Attributes:
        metric: column of the metric.
        measure: "tau-b", "tau-c", "accuracy" or "mean of categories".
        value: as printed.
        source: where.
    """

    metric: str
    measure: str
    value: float
    source: str

    @property
    def text(self) -> str:
        """The value with two digits, or with one where no more are published."""
        return str(self.value) if self.value == round(self.value, 1) else f"{self.value:.2f}"


@cache
def published_values(title: str) -> tuple[Published, ...]:
    """Published values of a data set; none for others."""
    tree = json.loads((files("captune.agreement") / "published.json").read_text(encoding="utf-8"))
    rows = tree["values"].get(title, [])
    return tuple(Published(**{**row, "source": tree["sources"][row["source"]]}) for row in rows)


def _published(agreement: Agreement, measure: str) -> dict[str, Published]:
    return {row.metric: row for row in published_values(agreement.title) if row.measure == measure}


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _interval(estimate: Estimate, digits: int = 2) -> str:
    if estimate.low is None or estimate.high is None:
        return "–"
    return f"[{100 * estimate.low:.{digits}f}, {100 * estimate.high:.{digits}f}]"


def result_table(agreement: Agreement, form: str = "text", digits: int = 2) -> str:
    """The metrics with their agreement, times 100.

    Args:
        agreement: the measured agreement.
        form: "text", "markdown" or "latex".
        digits: digits after the point.
    """
    header, rows = _cells(agreement, digits)
    return table(form, header, rows, _notes(agreement))


def _cells(agreement: Agreement, digits: int) -> tuple[list[str], list[list[str]]]:
    main, others = agreement.main, agreement.measures[1:]
    published = _published(agreement, main)
    is_published = bool(published)
    has_ties = any(share is not None for share in agreement.ties.values())
    header = ["Metric", main] + (["95 % interval"] if agreement.resamples else [])
    header += (["published"] if is_published else []) + list(others) + (["ties, %"] if has_ties else [])
    rows = []
    for metric, measured in agreement.metrics.items():
        row = [metric, _number(measured[main].value, digits)]
        if agreement.resamples:
            row.append(_interval(measured[main], digits))
        if is_published:
            row.append(published[metric].text if metric in published else "–")
        row += [_number(measured[name].value, digits) for name in others]
        if has_ties:
            row.append(_number(agreement.ties[metric], 1))
        rows.append(row)
    return header, rows


def _notes(agreement: Agreement) -> list[str]:
    notes = []
    if agreement.resamples:
        notes.append(
            f"Values times 100; 95 % interval: bootstrap of {agreement.resamples:,} resamples of the images, seed "
            f"{agreement.seed}."
        )
    else:
        notes.append("Values times 100.")
    if any(measured[agreement.main].value is None for measured in agreement.metrics.values()):
        notes.append("–: not defined, since all scores of the metric or of the people are equal, or some are missing.")
    counts = "wrong" if agreement.ties_count == 0 else "a half"
    notes.append(f"A pair that a metric ties counts as {counts}.")
    published = _published(agreement, agreement.main)
    sources = dict.fromkeys(row.source for metric, row in published.items() if metric in agreement.metrics)
    notes += [f"Published: {source}." for source in sources]
    return [*notes, agreement.signature]


def difference_table(agreement: Agreement, form: str = "text", tests: Sequence[Difference] | None = None) -> str:
    """Differences between metrics with their tests.

    Args:
        agreement: the measured agreement.
        form: "text", "markdown" or "latex".
        tests: those to show; all by default.
    """
    return table(form, _TEST_HEADER, _test_rows(agreement.tests if tests is None else tests))


_TEST_HEADER = ("Metrics", "difference", "95 % interval", "p", "p (Holm)")


def _test_rows(tests: Sequence[Difference]) -> list[list[str]]:
    return [
        [
            " vs. ".join(test.metrics),
            f"{100 * test.difference:+.2f}",
            f"[{100 * test.low:+.2f}, {100 * test.high:+.2f}]",
            f"{test.p_value:.4f}",
            f"{test.holm:.4f}",
        ]
        for test in tests
    ]


def neighbours(agreement: Agreement) -> list[Difference]:
    """The tests of metrics that follow each other in the ranking."""
    ranked = sorted(
        (name for name, measured in agreement.metrics.items() if measured[agreement.main].value is not None),
        key=lambda name: -(agreement.metrics[name][agreement.main].value or 0.0),
    )
    following = set(pairwise(ranked))
    return [test for test in agreement.tests if test.metrics in following]


def results_json(agreements: Sequence[Agreement]) -> str:
    """Everything as one JSON object, with values between -1 and 1 and published values as printed."""
    results = [
        agreement.to_dict()
        | {
            "published": [
                {"metric": row.metric, "measure": row.measure, "value": row.value, "source": row.source}
                for row in published_values(agreement.title)
            ]
        }
        for agreement in agreements
    ]
    return json.dumps({"format": "captune agreement 1", "results": results}, ensure_ascii=False, allow_nan=False)


def csv_table(agreements: Sequence[Agreement]) -> str:
    """One row for each data set, metric and measure; values between -1 and 1."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["data", "metric", "measure", "value", "low", "high", "published", "source", "signature"])
    for agreement in agreements:
        for metric, measured in agreement.metrics.items():
            for measure, estimate in measured.items():
                row = _published(agreement, measure).get(metric)
                cells = (estimate.value, estimate.low, estimate.high, row and row.value / 100, row and row.source)
                writer.writerow(
                    [agreement.title, metric, measure, *("" if c is None else c for c in cells), agreement.signature]
                )
    return stream.getvalue()


def build_page(title: str, agreements: Sequence[Agreement]) -> str:
    """The page of one data set with all of its conditions.

    Args:
        title: name of the data.
        agreements: the measured agreement of each condition.
    """
    environment = Environment(
        loader=PackageLoader("captune.agreement", "page_files"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else one_line(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = []
    for agreement in agreements:
        header, rows = _cells(agreement, 2)
        parts.append(
            {
                "agreement": agreement,
                "header": header,
                "rows": rows,
                "notes": [*_notes(agreement)[:-1], *agreement.notes],
                "tests": _test_rows(agreement.tests),
                "published": published_values(agreement.title),
                "chart": Markup(_chart(agreement)),
            }
        )
    page: str = environment.get_template("agreement.html").render(
        title=title, parts=parts, style_sheet=Markup(style_sheet()), test_header=_TEST_HEADER
    )
    return page


_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 760.0, 150.0, 740.0, 24.0, 12.0


def _chart(agreement: Agreement) -> str:
    """A row for each metric, best first: a dot with its interval, and a diamond at the published value."""
    published = _published(agreement, agreement.main)
    marks: dict[str, tuple[Estimate | None, float | None]] = {
        metric: (measured[agreement.main], published[metric].value if metric in published else None)
        for metric, measured in agreement.metrics.items()
    }
    marks |= {metric: (None, row.value) for metric, row in published.items() if metric not in marks}
    ends = [end for mark in marks.values() for end in (*_ends(mark[0]), *([] if mark[1] is None else [mark[1]]))] or [
        0.0,
        1.0,
    ]
    low, high = min(0.0, *ends), max(ends)
    high = high + 0.05 * ((high - low) or 1.0)
    bottom = _TOP + _ROW * len(marks)
    svg = ElementTree.Element(
        "svg",
        {
            "class": "chart",
            "viewBox": f"0 0 {_WIDTH:g} {bottom + 24:g}",
            "role": "img",
            "aria-label": f"{agreement.main} of each metric on {one_line(agreement.title)}",
        },
    )

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT)

    for tick in nice_ticks(low, high):
        _add(svg, "line", "grid", x1=x(tick), x2=x(tick), y1=_TOP, y2=bottom)
        _add(svg, "text", "axis", text=f"{tick:g}", x=x(tick), y=bottom + 16, **{"text-anchor": "middle"})
    ranked = sorted(marks.items(), key=lambda item: -_rank(*item[1]))
    for index, (metric, (estimate, value)) in enumerate(ranked):
        y = _TOP + _ROW * (index + 0.5)
        _add(svg, "text", "", text=one_line(metric)[:22], x=_LEFT - 10, y=y + 4, **{"text-anchor": "end"})
        if estimate is not None and estimate.low is not None and estimate.high is not None:
            _add(svg, "line", "interval", x1=x(100 * estimate.low), x2=x(100 * estimate.high), y1=y, y2=y)
        if estimate is not None and estimate.value is not None:
            _add(svg, "circle", "mark s0", cx=x(100 * estimate.value), cy=y, r=4.0)
        if value is not None:
            corners = ((0, -6), (6, 0), (0, 6), (-6, 0))
            points = " ".join(f"{x(value) + a:.1f},{y + b:.1f}" for a, b in corners)
            _add(svg, "polygon", "published", points=points)
    return ElementTree.tostring(svg, encoding="unicode")


def _ends(estimate: Estimate | None) -> list[float]:
    if estimate is None:
        return []
    return [100 * end for end in (estimate.value, estimate.low, estimate.high) if end is not None]


def _rank(estimate: Estimate | None, published: float | None) -> float:
    if estimate is not None and estimate.value is not None:
        return 100 * estimate.value
    return float("-inf") if published is None else published


def _add(svg: ElementTree.Element, tag: str, kind: str, *, text: str = "", **attributes: float | str) -> None:
    shown = {name: f"{v:.1f}" if isinstance(v, float) else str(v) for name, v in attributes.items()}
    node = ElementTree.SubElement(svg, tag, {"class": kind, **shown} if kind else shown)
    node.text = text or None
