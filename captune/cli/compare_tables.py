"""The output of `captune compare`: tables of scores and of differences in three forms, and one JSON object."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from captune.cli import scoring

if TYPE_CHECKING:
    from captune.metrics import Comparison, EqualLengthTests, PooledScore, Scores

__all__ = [
    "ComparedPair",
    "ComparedRun",
    "Layout",
    "MatchedPair",
    "TestedScore",
    "format_json",
    "format_tables",
]


class TestedScore(NamedTuple):
    """How two systems differ in one score.

    Attributes:
        bootstrap: over images, and over seeds where systems have several.
        randomization: None for systems of several seeds.
        holm: the larger p-value corrected for all pairs; None without correction.
    """

    bootstrap: Comparison
    randomization: Comparison | None
    holm: float | None = None

    @property
    def p_value(self) -> float:
        """The larger p-value of the tests."""
        return max(test.p_value for test in (self.bootstrap, self.randomization) if test is not None)

    def mark(self, digits: int, *, shown: float, factor: float = 1.0) -> str:
        """The stars of the difference; none after a number that shows as 0."""
        from captune.metrics import significance_mark
        from captune.report import shows_zero

        if shows_zero(shown * factor, digits) or shows_zero(self.bootstrap.difference * factor, digits):
            return ""
        tested = replace(self.bootstrap, p_value=self.p_value if self.holm is None else self.holm)
        return significance_mark(tested, tested)


class ComparedPair(NamedTuple):
    """Two systems and the tests of each score."""

    system: str
    baseline: str
    tests: Mapping[str, TestedScore]


class MatchedPair(NamedTuple):
    """Two systems at equal length: the tests of each score, and the images that they are of."""

    pair: ComparedPair
    matching: EqualLengthTests


@dataclass(frozen=True)
class ComparedRun:
    """Everything that the output shows.

    Attributes:
        systems: the scores of the seeds of each system; most systems have one.
        pooled: mean, spread and interval of each score of the systems with several seeds.
        pairs: each system against the first, or all pairs.
        columns: the scores to show, in order.
        all_pairs: whether these are all pairs, with Holm's correction.
        equal_length: the pairs at equal length, where that was requested.
        length_tolerance: share by which the longer caption of an image may exceed the shorter one.
    """

    systems: Mapping[str, Sequence[Scores]]
    pooled: Mapping[str, Mapping[str, PooledScore]]
    pairs: Sequence[ComparedPair]
    columns: Sequence[str]
    all_pairs: bool
    equal_length: Sequence[MatchedPair] | None = None
    length_tolerance: float = 0.0

    @property
    def first(self) -> Scores:
        """The scores of the first file."""
        return next(iter(self.systems.values()))[0]

    def score(self, system: str, column: str) -> float:
        """The corpus score of a system, the mean over its seeds."""
        if system in self.pooled:
            return self.pooled[system][column].mean
        return self.systems[system][0].corpus[column]


@dataclass(frozen=True)
class Layout:
    """How the tables look.

    Attributes:
        form: "text", "markdown" or "latex".
        digits: after the point.
        scale: scores are multiplied by it.
        confidence: of the intervals.
        caption: of the LaTeX table, which is a `table` environment with a caption or a label.
        label: for `\\ref`.
    """

    form: str
    digits: int
    scale: int
    confidence: float
    caption: str | None = None
    label: str | None = None

    def number(self, value: float, column: str, *, signed: bool = False) -> str:
        """A score as it is printed; 0 has no sign."""
        text = f"{value * scoring.factor(column, self.scale):{'+' if signed else ''}.{self.digits}f}"
        return text.lstrip("+-") if not float(text) else text

    def interval(self, low: float, high: float, column: str, *, signed: bool = False) -> str:
        """Both ends of an interval."""
        return f"[{self.number(low, column, signed=signed)}, {self.number(high, column, signed=signed)}]"


def format_tables(run: ComparedRun, layout: Layout) -> str:
    """Scores of all systems, seeds, differences, notes and the signature."""
    from captune.common import table

    parts = [_main_table(run, layout)]
    percent = f"{100 * layout.confidence:g}% interval"
    for name, scores in run.pooled.items():
        rows = []
        for column in run.columns:
            pooled = scores[column]
            numbers = (layout.number(value, column) for value in (pooled.mean, pooled.spread))
            rows.append([column, *numbers, layout.interval(pooled.low, pooled.high, column)])
        header = [f"{name} ({len(run.systems[name])} seeds)", "Mean", "Spread", percent]
        parts.append(table(layout.form, header, rows))
    p_values = ["p boot"] if run.pooled else ["p boot", "p random"]
    rest = ["Difference", percent, *p_values, *(["p Holm"] if run.all_pairs else []), "Smallest"]
    if run.all_pairs:
        for column in run.columns:
            rows = [[f"{pair.system} - {pair.baseline}", *_difference(pair, column, layout)] for pair in run.pairs]
            parts.append(table(layout.form, [column, *rest], rows))
    else:
        for pair in run.pairs:
            rows = [[column, *_difference(pair, column, layout)] for column in run.columns]
            parts.append(table(layout.form, [f"{pair.system} - {pair.baseline}", *rest], rows))
    for pair, _ in run.equal_length or ():
        if pair.tests:
            rows = [[column, *_difference(pair, column, layout)] for column in run.columns]
            parts.append(table(layout.form, [f"{pair.system} - {pair.baseline}, equal length", *rest], rows))
    prefix = "% " if layout.form == "latex" else ""
    mark = "`" if layout.form == "markdown" else ""
    signature = f"{prefix}{mark}{run.first.signature}{mark}"
    return "\n\n".join([*parts, "\n".join(prefix + note for note in _notes(run)), signature])


def _notes(run: ComparedRun) -> list[str]:
    tests = [test.bootstrap for pair in run.pairs for test in pair.tests.values()]
    kept = next((test.frequencies for test in tests if test.frequencies), "")
    weights = f"; CIDEr's document frequencies are {kept}" if kept else ""
    if run.pooled:
        notes = [
            "Systems of several seeds: mean ± standard deviation over the seeds.",
            f"* p < 0.05, ** p < 0.01, with 0 outside the interval: bootstrap over images and seeds (p boot){weights}.",
        ]
    else:
        notes = [
            "* p < 0.05, ** p < 0.01 in both tests, with 0 outside the interval: paired bootstrap (p boot) and",
            f"approximate randomisation (p random){weights}.",
        ]
    notes.append("Smallest: the true difference that this set of images shows four times out of five at p < 0.05.")
    if run.all_pairs:
        corrected = "p boot" if run.pooled else "the larger p"
        notes.append(
            f"p Holm: {corrected}, corrected for all {len(run.pairs)} pairs of a score (Holm); the stars follow it."
        )
    elif len(run.pairs) > 1:
        notes.append("Each system is tested against the first alone; p is not corrected for their number.")
    return notes + [_about_length(matched, run.length_tolerance) for matched in run.equal_length or ()]


def _about_length(matched: MatchedPair, tolerance: float) -> str:
    """How two systems differ in length, and what was compared at equal length."""
    from captune.metrics import FEWEST_IMAGES

    (system, baseline, _), matching = matched
    if math.isnan(matching.ratio):
        return f"No image has words in the captions of both {system} and {baseline}; they have no equal length."
    about = f"Captions of {system} are {matching.ratio:.2f} times as long as those of {baseline}"
    then = f"{matching.matched_ratio:.2f} times as long then"
    if matching.method == "truncate":
        few = "" if matching.has_intervals else f"; intervals and tests need {FEWEST_IMAGES} images"
        return f"{about}; equal length: the longer one of each image is cut at a sentence end ({then}){few}."
    images = f"{matching.images:,} of {matching.total:,} images have captions that differ by at most "
    images += f"{100 * tolerance:g} % in words"
    if not matching.has_intervals:
        few = f"fewer than the {FEWEST_IMAGES} that intervals and tests need"
        other = "; --match-length truncate compares all images" if matching.total >= FEWEST_IMAGES else ""
        return f"{about}; {images}, {few}{other}."
    return f"{about}; equal length: {images} ({then})."


def _difference(pair: ComparedPair, column: str, layout: Layout) -> list[str]:
    """The cells of one difference."""
    from captune.report import shows_zero

    test = pair.tests[column]
    drawn, factor = test.bootstrap, scoring.factor(column, layout.scale)
    is_tested = drawn.is_tested and not all(
        shows_zero(value * factor, layout.digits) for value in (drawn.score, drawn.baseline)
    )
    p_values = [drawn.p_value]
    p_values += [] if test.randomization is None else [test.randomization.p_value]
    p_values += [] if test.holm is None else [test.holm]
    return [
        layout.number(drawn.difference, column, signed=True)
        + test.mark(layout.digits, shown=drawn.difference, factor=factor),
        "–" if math.isnan(drawn.low) else layout.interval(drawn.low, drawn.high, column, signed=True),
        *(f"{value:.4f}" if is_tested else "–" for value in p_values),
        layout.number(drawn.smallest, column) if is_tested else "–",
    ]


def _main_table(run: ComparedRun, layout: Layout) -> str:
    """One row a system; the best score of a column is bold in Markdown and LaTeX."""
    from captune.common import escape_latex, latex_tabular, table
    from captune.report import heading

    # All pairs have no baseline that a star could refer to.
    against_first = {} if run.all_pairs else {pair.system: pair.tests for pair in run.pairs}
    best = {column: _best(run, column, layout) for column in run.columns}
    bold, plus_minus = {"latex": (r"\textbf{", "}"), "markdown": ("**", "**")}.get(layout.form, ("", "")), " ± "
    rows = []
    for name in run.systems:
        row = [name]
        for column in run.columns:
            value = run.score(name, column)
            number = layout.number(value, column)
            cell = number.join(bold) if number == best[column] else number
            if name in run.pooled:
                cell += plus_minus + layout.number(run.pooled[name][column].spread, column)
            if name in against_first:
                factor = scoring.factor(column, layout.scale)
                cell += against_first[name][column].mark(layout.digits, shown=value, factor=factor)
            row.append(cell)
        rows.append(row)
    scales = scoring.scales(run.first, layout.scale)
    header = ["System", *(f"{heading(column)} ({scales[column]})" for column in run.columns)]
    if layout.form != "latex":
        return table(layout.form, header, rows)
    latex_rows = [[escape_latex(row[0]), *(cell.replace("±", r"$\pm$") for cell in row[1:])] for row in rows]
    latex_header = (escape_latex(name).replace("↓", r"$\downarrow$") for name in header)
    if layout.caption is None and layout.label is None:
        return "\n".join(latex_tabular(latex_header, latex_rows))
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            *([] if layout.caption is None else [f"  \\caption{{{layout.caption}}}"]),
            *([] if layout.label is None else [f"  \\label{{{layout.label}}}"]),
            *latex_tabular(latex_header, latex_rows, indent="  "),
            r"\end{table}",
        ]
    )


def _best(run: ComparedRun, column: str, layout: Layout) -> str | None:
    """The best score of a column as it is printed; None where all are printed alike or the best is 0."""
    from captune.metrics import find_column

    values = [run.score(name, column) for name in run.systems]
    if len({layout.number(value, column) for value in values}) < 2:
        return None
    described = find_column(column)
    higher = described is None or described.higher_is_better
    text = layout.number(max(values) if higher else min(values), column)
    return None if higher and not float(text) else text


def format_json(run: ComparedRun, warnings: Iterable[str]) -> str:
    """One JSON object, with scores in their scale whatever `--scale` is."""
    systems: dict[str, dict[str, Any]] = {}
    for name, seeds in run.systems.items():
        scores = {column: run.score(name, column) for column in run.columns}
        systems[name] = {"signature": seeds[0].signature, "scores": scores}
        if name in run.pooled:
            pooled = {column: run.pooled[name][column] for column in run.columns}
            systems[name]["seeds"] = len(seeds)
            systems[name]["spread"] = {column: score.spread for column, score in pooled.items()}
            systems[name]["intervals"] = {
                column: {"low": score.low, "high": score.high} for column, score in pooled.items()
            }
    scales = scoring.scales(run.first)
    answer: dict[str, Any] = {"images": len(run.first.ids), "systems": systems}
    answer["scales"] = {column: scales[column] for column in run.columns}
    if run.all_pairs:
        answer["pairs"] = [
            {"system": pair.system, "baseline": pair.baseline, "differences": _record(pair, run.columns)}
            for pair in run.pairs
        ]
    else:
        answer = {"baseline": next(iter(run.systems)), **answer}
        answer["differences"] = {pair.system: _record(pair, run.columns) for pair in run.pairs}
    if run.equal_length is not None:
        answer["equal_length"] = [_matched_record(matched, run) for matched in run.equal_length]
    return scoring.to_json({**answer, "warnings": list(warnings)})


def _matched_record(matched: MatchedPair, run: ComparedRun) -> dict[str, Any]:
    pair, matching = matched
    return {
        "system": pair.system,
        "baseline": pair.baseline,
        "method": matching.method,
        **({"tolerance": run.length_tolerance} if matching.method == "pairs" else {}),
        "images": matching.images,
        "length_ratio": matching.ratio,
        "matched_length_ratio": matching.matched_ratio,
        "differences": _record(pair, run.columns) if pair.tests else {},
    }


def _record(pair: ComparedPair, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    records = {}
    for column in columns:
        drawn, swapped, holm = pair.tests[column]
        records[column] = {
            "difference": drawn.difference,
            "low": drawn.low,
            "high": drawn.high,
            "p_bootstrap": drawn.p_value,
            **({} if swapped is None else {"p_randomization": swapped.p_value}),
            **({} if holm is None else {"p_holm": holm}),
            "smallest_detectable": drawn.smallest,
        }
    return records
