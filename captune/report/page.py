"""`report.html`: one self-contained page that shows what training did, image by image.

The page is rendered from the templates, the style sheet and the script in `page_files/`, the words in `messages/` and
what a run holds. It needs no network, its content security policy forbids it any, and it opens from a mail attachment
years later.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from captune.common import one_line
from captune.report.analysis import analyse
from captune.report.captions import CaptionStatistics, caption_statistics, most_changed_words, word_classes
from captune.report.columns import scale_sentence
from captune.report.comparison import Comparison, matrices
from captune.report.course import SIGNIFICANT, course_of, drawn_rows
from captune.report.explorer import explorer_json
from captune.report.matrix import Matrix, matrix_section
from captune.report.narrative import LANGUAGES, catalogue, sentences
from captune.report.page_charts import distribution_charts, score_charts, training_charts
from captune.report.rating import Rating, rating_counts, rating_tables
from captune.report.record import RunScores
from captune.report.table import DAGGERS, cells, daggers, leak_reasons, notes, provenance, signatures
from captune.report.training_log import TrainingLog

__all__ = ["LANGUAGES", "build_page"]


def build_page(
    run: RunScores,
    log: TrainingLog,
    *,
    run_dir: Path | None = None,
    language: str = "en",
    comparison: Comparison | None = None,
    rating: Rating | None = None,
    matrix: Matrix | None = None,
) -> str:
    """Build the page of a run.

    Args:
        run: the scores, with captions and references where there are some.
        log: what the training log holds; an empty one leaves its parts out.
        run_dir: where the thumbnails are (`captune.report.thumbnails`); None for a page without pictures.
        language: "en" or "zh", in which the page opens; a reader can switch.
        comparison: when the rows are several runs and not the checkpoints of one; their tests then replace the
            analysis and the charts of a training.
        rating: the results of a human rating of the captions (`captune.report.rating`), where there are some.
        matrix: scores on other data, damaged images and prompts, where they were evaluated.

    Returns:
        The complete HTML document, the same for the same run.
    """
    words = catalogue(language).page
    statistics, references = caption_statistics(run)
    script = _page_file("page.js")
    analysis = analyse(run) if comparison is None else None
    picture = run_dir / "matrix.png" if run_dir is not None else None
    heatmap = picture.read_bytes() if matrix is not None and picture is not None and picture.is_file() else None
    data = explorer_json(
        run,
        run_dir,
        [row.failures for row in statistics],
        language=language,
        words={name: catalogue(name).page for name in LANGUAGES},
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            language=language,
            languages=LANGUAGES,
            words=words,
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            style_sheet=Markup(_page_file("page.css")),
            data=Markup(data),
            run=run,
            provenance=provenance(run),
            leaks=leak_reasons(run),
            facts=_facts(run, log),
            signatures=signatures(run),
            lines=list(zip(run.checkpoints, cells(run), strict=True)),
            daggers=daggers,
            notes={name: _notes(run, name) for name in LANGUAGES},
            analysis={name: sentences(run, analysis, name) for name in LANGUAGES if analysis is not None},
            matrices=[] if comparison is None else matrices(comparison),
            score_charts=_charts(score_charts(run, words) if comparison is None else []),
            training_charts=_charts(training_charts(log, words)),
            captions=_captions(run, statistics, references, words),
            robustness=None if matrix is None else matrix_section(matrix),
            heatmap=None if heatmap is None else base64.b64encode(heatmap).decode(),
            ratings=None if rating is None else rating_tables(rating),
            rating_counts="" if rating is None else rating_counts(rating),
            citation_signatures=list(dict.fromkeys(row.signature for row in run.checkpoints if row.signature)),
        )
    )


@cache
def _environment() -> Environment:
    """The templates; every value that is no markup is written on one line and escaped."""
    return Environment(
        loader=FunctionLoader(_page_file),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else one_line(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page_file(name: str) -> str:
    return (files("captune.report") / "page_files" / name).read_text(encoding="utf-8")


def _charts(charts: Sequence[tuple[str, str]]) -> list[tuple[str, Markup]]:
    return [(key, Markup(drawing)) for key, drawing in charts]


def _facts(run: RunScores, log: TrainingLog) -> dict[str, str]:
    """What was trained on what, and what it cost: key of the words that name it -> value, where it is known."""
    facts = {
        "data": ", ".join(part for part in (run.data, run.split) if part),
        "protocol": run.protocol,
        "evaluated_images": f"{run.images:,}" if run.images is not None else "",
        "model": log.facts.get("model", ""),
        "train_images": log.facts.get("images", ""),
        "captions_an_epoch": log.facts.get("captions", ""),
        **{key: log.facts.get(key, "") for key in ("steps", "step_captions", "device", "processes")},
        "time": _duration(log.seconds) if log.seconds is not None else "",
        "rate": f"{log.captions_per_s:.1f}" if log.captions_per_s is not None else "",
        "memory": f"{log.peak_memory / 1e9:.2f} GB" if log.peak_memory is not None else "",
        "energy": f"{log.energy / 3.6e6:.3f} kWh" if log.energy is not None else "",
    }
    return {key: str(value) for key, value in facts.items() if str(value)}


def _notes(run: RunScores, language: str) -> list[str]:
    """The notes beneath the page's table: which marks it has, and on which scale its scores are."""
    texts = catalogue(language)
    best = texts.text("note.best")
    if language == "en":
        return [best, *notes(run)]
    lines = [best]
    scale = scale_sentence({metric: run.finite(metric) for metric in run.metrics})
    if scale:
        lines.append(texts.text("note.scale") if scale == "Scale: CIDEr 0-10, others 0-1." else scale)
    tested = {rival for row in run.checkpoints for tests in row.p_values.values() for rival in tests}
    first = run.checkpoints[0].name
    rivals = {
        "pretrained": texts.text("note.pretrained") if first == "pretrained" else one_line(first),
        "previous": texts.text("note.previous"),
    }
    marks = [texts.text("note.mark", mark=DAGGERS[key], row=rivals[key]) for key in DAGGERS if key in tested]
    if marks:
        lines.append(texts.text("note.marks", marks=texts.join("note.separator", marks), p=SIGNIFICANT))
    return lines + [texts.text("note.leak", mark=mark, reason=reason) for reason, mark in leak_reasons(run).items()]


def _captions(
    run: RunScores, statistics: Sequence[CaptionStatistics], references: CaptionStatistics, words: Mapping[str, str]
) -> dict[str, Any] | None:
    """Charts and tables of the captions; None where there are none."""
    if not any(row.lengths for row in statistics):
        return None
    ordered, joined = drawn_rows(run)
    by_name = {row.name: entry for row, entry in zip(run.checkpoints, statistics, strict=True)}
    drawn = [by_name[row.name] for row in ordered.checkpoints]
    trained, training = drawn[: joined or 1], course_of(run).run.checkpoints
    gained, lost = most_changed_words(trained[0].words, trained[-1].words)
    ends = dict.fromkeys((0, len(trained) - 1))
    return {
        "charts": _charts(distribution_charts(run, drawn, references, words)),
        "changed_words": {
            "words_gained": {word: trained[-1].words[word] for word in gained},
            "words_lost": {word: trained[0].words[word] for word in lost},
        },
        "columns": [*(training[end].name for end in ends), *([None] if references.words else [])],
        "classes": _class_shares([*(trained[end] for end in ends), *([references] if references.words else [])]),
        "rows": [row.name for row in ordered.checkpoints],
        "failures": _failure_shares(drawn),
    }


def _class_shares(columns: Sequence[CaptionStatistics]) -> dict[str, list[float | None]]:
    """Word class -> its share of all words in every column."""
    shares = [word_classes(column.words) for column in columns]
    classes = next((list(known) for known in shares if known), [])
    return {name: [known.get(name) for known in shares] for name in classes}


def _failure_shares(rows: Sequence[CaptionStatistics]) -> dict[str, list[float]]:
    """Failure -> its share of the captions of every row, where any caption fails so."""
    failures = sorted({failure for row in rows for names in row.failures.values() for failure in names})
    return {
        failure: [sum(failure in names for names in row.failures.values()) / (len(row.lengths) or 1) for row in rows]
        for failure in failures
    }


def _duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
