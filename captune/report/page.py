"""`report.html`: one self-contained page with the results of a run, image by image.

It is rendered from the templates, the style sheet and the script in `page_files/`, the words in `messages/` and the
files of a run. Its content security policy forbids the network, so it also opens from a mail attachment.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from captune.common import one_line
from captune.metrics import find_sentences, is_paragraph
from captune.report.analysis import Analysis, analyse
from captune.report.caption_statistics import (
    CaptionStatistics,
    RunCaptions,
    caption_statistics,
    most_changed_words,
    row_failures,
    word_classes,
)
from captune.report.columns import LOWER_IS_BETTER, column, describe, heading, order_metrics, scale_sentence
from captune.report.comparison import Comparison, matrices
from captune.report.headline import Headline, comparison_headline, examples, headline, headline_metric
from captune.report.learning_curve import SIGNIFICANT, TrainingLog, drawn_rows, split_training_rows
from captune.report.narrative import LANGUAGES, catalogue, sentences, summary
from captune.report.page_charts import (
    comparison_charts,
    distribution_charts,
    loss_charts,
    score_charts,
    training_charts,
)
from captune.report.rating import Rating, rating_counts, rating_tables
from captune.report.robustness_matrix import Matrix, matrix_section
from captune.report.scores_json import RunScores
from captune.report.settings import Setting, changed_settings, image_links, read_settings, run_differences
from captune.report.table import DAGGERS, cells, daggers, leak_reasons, notes, provenance, signatures
from captune.report.thumbnails import EMBEDDED_BYTES, embedded_thumbnails

__all__ = [
    "LANGUAGES",
    "MAX_CHARACTERS",
    "MAX_IMAGES",
    "build_page",
    "explorer_data",
    "explorer_json",
    "script_json",
    "select_images",
    "style_sheet",
]


# The data of the page's image explorer: captions, references, scores and pictures, as many as fit.

MAX_IMAGES = 1000
"""Images on one page; the rest stays in `scores.json`."""

MAX_CHARACTERS = 1000
"""Characters of a caption or reference on the page; a model that loops may write ten times as many."""

PAGE_BYTES = 4_700_000
"""Size of a page with texts, scores and pictures, so that it can be sent by mail."""

TEXT_CHARACTERS = 3_000_000
"""Size of texts and scores beyond which fewer of them are shown."""

_LIMITS = ((MAX_IMAGES, MAX_CHARACTERS), (MAX_IMAGES, 300), (500, 300), (200, 200), (50, 200), (20, 100))
"""Images and characters of a caption on the page, tried in turn."""

_HALLUCINATED = 10
"""Hallucinated objects that are listed for a row."""

COLUMNS = ("CIDEr", "BLEU-4", "ROUGE-L")
"""Metrics that a card shows first, where they are given for every image."""


def explorer_json(
    run: RunScores,
    run_dir: Path | None,
    failures: Sequence[Mapping[str, Sequence[str]]],
    always: Sequence[str] = (),
    **settings: Any,
) -> str:
    """Everything that the page's script shows and sorts, with as many images and as much text as fit.

    Args:
        run: the rows.
        run_dir: folder of the thumbnails; None for a page without pictures.
        failures: for every row, image id -> failures of its caption.
        always: images that are on the page in any case.
        settings: further values for the script.

    Returns:
        JSON for a script element; see `explorer_data`.
    """
    for images, characters in _LIMITS:
        tree = explorer_data(run, select_images(run, images, always), failures, characters)
        text = script_json(tree)
        if len(text) <= TEXT_CHARACTERS:
            break
    if run_dir is not None:
        budget = min(EMBEDDED_BYTES, PAGE_BYTES - len(text.encode("utf-8")))
        pictures = embedded_thumbnails(run_dir, [image["i"] for image in tree["images"]], budget)
        # Files next to the run are not served.
        links = {} if settings.get("live") else image_links(run_dir, pictures)
        for image in tree["images"]:
            if image["i"] in pictures:
                image["t"] = pictures[image["i"]]
            if image["i"] in links:
                image["l"] = links[image["i"]]
    return script_json({**settings, **tree})


def script_json(tree: Any) -> str:
    """JSON that is safe inside a script element, whatever text it holds."""
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def select_images(run: RunScores, most: int = MAX_IMAGES, always: Sequence[str] = ()) -> list[str]:
    """Ids of the images on the page, in the order of the data.

    All of them, or where there are too many those whose CIDEr (or first metric) changed most from the first row to
    the last, half of them improved and half regressed.

    Args:
        run: the rows.
        most: how many images at most, apart from `always`.
        always: images that are selected in any case.
    """
    images = list(dict.fromkeys(image for row in run.checkpoints for image in (*row.captions, *row.per_image)))
    if len(images) <= most:
        return images
    metrics = _per_image_metrics(run)
    metric = "CIDEr" if "CIDEr" in metrics else next(iter(metrics), "")
    rows = split_training_rows(run).run.checkpoints
    first, last = rows[0].per_image, rows[-1].per_image

    def change(image: str) -> float:
        value = last.get(image, {}).get(metric, 0.0) - first.get(image, {}).get(metric, 0.0)
        return value if math.isfinite(value) else 0.0

    ranked = sorted(images, key=change)
    kept = {*ranked[: most // 2], *ranked[len(ranked) - (most - most // 2) :], *always}
    return [image for image in images if image in kept]


def explorer_data(
    run: RunScores,
    images: Sequence[str],
    failures: Sequence[Mapping[str, Sequence[str]]],
    longest: int = MAX_CHARACTERS,
) -> dict[str, Any]:
    """The explorer's data as JSON values.

    Args:
        run: the rows.
        images: ids of the images on the page.
        failures: for every row, image id -> failures of its caption.
        longest: characters of a caption or reference that are shown.

    Returns:
        `checkpoints`, `metrics` (with the mark of those of which lower scores are better), `lower` (the indices of
        these), `columns` (indices of the metrics, in display order), `failures` (their names), `left_out` (how many
        images are not on the page) and `images`, one object an image: `i` its id, `r` its references, `c` a caption a
        row or null, `s` a list of scores a row for every metric, `f` the failures a row, `h` [start, end] of the
        hallucinated words a row, and where captions are paragraphs `n` the ends of the sentences a row (null for a
        short caption) and `m` those of the references (each left out when there are none).
        `explorer_json` adds the picture as `t` and the address of the image file as `l`.
    """
    metrics = _per_image_metrics(run)
    names = sorted({failure for row in failures for names in row.values() for failure in names})
    total = len({image for row in run.checkpoints for image in (*row.captions, *row.per_image)})
    first = [metrics.index(name) for name in COLUMNS if name in metrics]
    return {
        "checkpoints": [row.name for row in run.checkpoints],
        "metrics": list(map(heading, metrics)),
        "lower": [index for index, name in enumerate(metrics) if column(name).direction < 0],
        "columns": first + [index for index in range(len(metrics)) if index not in first],
        "failures": names,
        "left_out": total - len(images),
        "images": [_image(run, image, metrics, failures, names, longest) for image in images],
    }


def _image(
    run: RunScores,
    image: str,
    metrics: Sequence[str],
    failures: Sequence[Mapping[str, Sequence[str]]],
    names: Sequence[str],
    longest: int,
) -> dict[str, Any]:
    """One image's part of the data."""
    failed = [[names.index(failure) for failure in row.get(image, ())] for row in failures]
    tree: dict[str, Any] = {
        "i": image,
        "r": [_shortened(text, longest) for text in run.references.get(image, ())],
        "c": [_shortened(row.captions[image], longest) if image in row.captions else None for row in run.checkpoints],
        "s": [[_score(row.per_image.get(image, {}).get(metric)) for row in run.checkpoints] for metric in metrics],
    }
    if any(failed):
        tree["f"] = failed
    wrong = [
        [[start, end] for _, start, end in row.hallucinations.get(image, ()) if end <= longest]
        for row in run.checkpoints
    ]
    if any(wrong):
        tree["h"] = wrong
    sentences = [_sentence_ends(text) if text is not None and is_paragraph(text) else None for text in tree["c"]]
    if any(sentences):
        tree["n"] = sentences
        tree["m"] = [_sentence_ends(text) for text in tree["r"]]
    return tree


def _sentence_ends(text: str) -> list[int]:
    """The end of each sentence; the script computes the rest, so that the page stays small."""
    return [end for _, end in find_sentences(text)]


def _per_image_metrics(run: RunScores) -> tuple[str, ...]:
    """Metrics that are given image by image."""
    return order_metrics(name for row in run.checkpoints for scores in row.per_image.values() for name in scores)


def _score(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def build_page(
    run: RunScores,
    log: TrainingLog,
    *,
    run_dir: str | Path | None = None,
    language: str = "",
    comparison: Comparison | None = None,
    rating: Rating | None = None,
    matrix: Matrix | None = None,
    captions: RunCaptions | None = None,
    analysis: Analysis | None = None,
    live: str = "",
) -> str:
    """Build the page of a run.

    Args:
        run: the scores, with captions and references where there are some.
        log: the training log; an empty one omits its parts.
        run_dir: folder of the thumbnails; None for a page without pictures.
        language: "en" or "zh", in which the page opens; by default the browser's. A reader can switch.
        comparison: when the rows are several runs and not the checkpoints of one; their tests then replace the
            analysis and the charts of a training.
        rating: the results of a human rating of the captions (`captune.report.rating`), where there are some.
        matrix: scores on other data, corrupted images and prompts, where they were evaluated.
        captions: `caption_statistics` of the run, if they are already computed.
        analysis: `analyse` of the run, if it is already computed.
        live: version of the page for `captune report --watch`, whose server returns the state of the training;
            empty for a file.

    Returns:
        The complete HTML document, the same for the same run.
    """
    run_dir = None if run_dir is None else Path(run_dir)
    follow, language = not language, language or "en"
    words = catalogue(language).page
    table, run = run, run.scored
    captions = captions or caption_statistics(run)
    failures = [row_failures(run, row) for row in run.checkpoints]
    script = _page_file("page.js")
    if comparison is None:
        analysis = analysis or analyse(run, captions)
    picture = run_dir / "matrix.png" if run_dir is not None else None
    heatmap = picture.read_bytes() if matrix is not None and picture is not None and picture.is_file() else None
    shown_examples = examples(run)
    data = explorer_json(
        run,
        run_dir,
        failures,
        [example.image for example in shown_examples],
        language=language,
        follow=follow,
        live=live,
        name=run_dir.resolve().name if run_dir is not None else run.data,
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
            style_sheet=Markup(style_sheet()),
            data=Markup(data),
            run=run,
            live=live,
            headings=[(heading(metric), _explanations(metric)) for metric in run.metrics],
            headlines={name: _headline(run, comparison, name) for name in LANGUAGES},
            name=_name(run, run_dir, comparison),
            date=_date(run_dir) if comparison is None else "",
            examples=shown_examples,
            example_metric=headline_metric(run) or "",
            settings=_settings(run_dir, comparison),
            row_heading="checkpoint" if comparison is None else "compared_run",
            compared_runs=[] if comparison is None else list(comparison.run_names),
            summary={name: summary(table, analysis, name) for name in LANGUAGES if analysis is not None},
            provenance=provenance(run),
            leaks=leak_reasons(table),
            facts=_facts(run, log),
            signatures=signatures(run),
            lines=list(zip(table.checkpoints, cells(table), strict=True)),
            daggers=daggers,
            notes={name: _notes(table, name) for name in LANGUAGES},
            analysis={name: sentences(table, analysis, name) for name in LANGUAGES if analysis is not None},
            matrices=[] if comparison is None else matrices(comparison),
            score_charts=_charts(
                score_charts(run, words) if comparison is None else comparison_charts(comparison, words)
            ),
            training_charts=_charts(
                training_charts(log, words) if comparison is None else loss_charts(comparison, words)
            ),
            runs_without_losses=[] if comparison is None else _without_losses(comparison),
            hallucinated=_hallucinated(run),
            captions=_captions(run, captions, failures, words),
            robustness=None if matrix is None else matrix_section(matrix),
            heatmap=None if heatmap is None else base64.b64encode(heatmap).decode(),
            ratings=None if rating is None else rating_tables(rating),
            rating_counts="" if rating is None else rating_counts(rating),
            citation_signatures=list(dict.fromkeys(row.signature for row in run.checkpoints if row.signature)),
        )
    )


def style_sheet() -> str:
    """The style sheet of all pages."""
    return _page_file("page.css")


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
    """Model, data and cost of the run: message key -> value, if it is known."""
    facts = {
        "data": ", ".join(part for part in (run.data, run.split) if part),
        "protocol": run.protocol,
        "evaluated_images": f"{run.images:,}" if run.images is not None else "",
        "model": log.facts.get("model", ""),
        "train_images": _count(log.facts.get("images", "")),
        "train_images_left_out": f"{len(log.left_out):,} ({log.left_out_names})" if log.left_out else "",
        "captions_an_epoch": _count(log.facts.get("captions", "")),
        "steps": _count(log.facts.get("steps", "")),
        **{key: log.facts.get(key, "") for key in ("step_captions", "device", "processes")},
        "time": _duration(log.seconds) if log.seconds is not None else "",
        "rate": f"{log.captions_per_s:.1f}" if log.captions_per_s is not None else "",
        "memory": f"{log.peak_memory / 1e9:.2f} GB" if log.peak_memory is not None else "",
        "energy": f"{log.energy / 3.6e6:.3f} kWh" if log.energy is not None else "",
    }
    return {key: str(value) for key, value in facts.items() if str(value)}


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _explanations(metric: str) -> dict[str, str]:
    """What a metric measures in every language; English from the metric itself, also for the others by default."""
    english = describe(metric)
    return {name: catalogue(name).metrics.get(metric, english) for name in LANGUAGES}


def _headline(run: RunScores, comparison: Comparison | None, language: str) -> Headline:
    return headline(run, language) if comparison is None else comparison_headline(comparison, language)


def _name(run: RunScores, run_dir: Path | None, comparison: Comparison | None) -> str:
    """Name of the run, or of the compared runs."""
    if comparison is not None:
        return " · ".join(row.name for row in run.checkpoints)
    return run_dir.resolve().name if run_dir is not None else run.data


def _date(run_dir: Path | None) -> str:
    """The day of the scores, from their file; empty if there is none."""
    try:
        changed = (run_dir / "scores.json").stat().st_mtime if run_dir is not None else None
    except OSError:
        return ""
    return "" if changed is None else datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%d")


def _settings(run_dir: Path | None, comparison: Comparison | None) -> list[Setting] | None:
    """What differs from the defaults, or between compared runs; None without stored configurations."""
    if comparison is not None:
        return run_differences(comparison.settings) if all(comparison.settings) else None
    settings = read_settings(run_dir) if run_dir is not None else {}
    return changed_settings(settings) if settings else None


def _without_losses(comparison: Comparison) -> list[str]:
    """Names of compared runs without a readable training loss, which the chart of losses lacks."""
    logs = zip(comparison.run_names, comparison.logs, strict=False)
    return [name for name, log in logs if not any(map(math.isfinite, log.loss))]


def _notes(run: RunScores, language: str) -> list[str]:
    """The notes below the page's table: its marks and the scale of its scores."""
    texts = catalogue(language)
    best = texts.text("note.best")
    if language == "en":
        return [best, *notes(run)]
    lines = [best]
    if scale := scale_sentence({metric: run.finite(metric) for metric in run.metrics}, texts.messages):
        lines.append(scale)
    if any(column(metric).direction < 0 for metric in run.metrics):
        lines.append(texts.text("note.lower", mark=LOWER_IS_BETTER))
    tested = {rival for row in run.checkpoints for tests in row.p_values.values() for rival in tests}
    first = run.checkpoints[0].name
    rivals = {
        "pretrained": texts.text("note.pretrained") if first == "pretrained" else one_line(first),
        "previous": texts.text("note.previous"),
    }
    marks = [texts.text("note.mark", mark=DAGGERS[key], row=rivals[key]) for key in DAGGERS if key in tested]
    if marks:
        lines.append(texts.text("note.marks", marks=texts.join("note.separator", marks), p=SIGNIFICANT))
    counted = [row for row in run.checkpoints if row.thinking]
    if counted:
        rows = [
            texts.text("note.thinking.row", row=one_line(row.name), captions=len(row.captions), **row.thinking_counts)
            for row in counted
        ]
        lines.append(texts.text("note.thinking", rows=texts.join("note.separator", rows)))
    lines += [
        texts.text("note.error", row=one_line(row.name), reason=one_line(row.error))
        for row in run.checkpoints
        if row.error is not None
    ]
    return lines + [texts.text("note.leak", mark=mark, reason=reason) for reason, mark in leak_reasons(run).items()]


def _captions(
    run: RunScores,
    captions: RunCaptions,
    failures: Sequence[Mapping[str, Sequence[str]]],
    words: Mapping[str, str],
) -> dict[str, Any] | None:
    """Charts and tables of the captions; None where there are none."""
    if not any(row.lengths for row in captions.rows.values()):
        return None
    ordered, joined = drawn_rows(run)
    references = captions.references
    drawn = [captions.rows[row.name] for row in ordered.checkpoints]
    failures_of = {row.name: failed for row, failed in zip(run.checkpoints, failures, strict=True)}
    # The first and the last checkpoint of a training; systems that are no training, all of them.
    shown = list(dict.fromkeys((0, joined - 1))) if joined else range(len(drawn))
    changed: dict[str, dict[str, int]] = {}
    if len(shown) == 2:
        before, after = (drawn[index].words for index in shown)
        gained, lost = most_changed_words(before, after)
        changed = {
            "words_gained": {word: after[word] for word in gained},
            "words_lost": {word: before[word] for word in lost},
        }
    return {
        "charts": _charts(distribution_charts(run, drawn, references, words)),
        "changed_words": changed,
        "columns": [*(ordered.checkpoints[index].name for index in shown), *([None] if references.words else [])],
        "classes": _class_shares([*(drawn[index] for index in shown), *([references] if references.words else [])]),
        "rows": [row.name for row in ordered.checkpoints],
        "failures": _failure_shares([failures_of[row.name] for row in ordered.checkpoints], drawn),
    }


def _hallucinated(run: RunScores) -> dict[str, dict[str, int]]:
    """Row -> its most frequent hallucinated objects with their counts; empty where no row has any."""
    counts = {
        row.name: Counter(name for mentions in row.hallucinations.values() for name, _, _ in mentions)
        for row in run.checkpoints
    }
    return {name: dict(row.most_common(_HALLUCINATED)) for name, row in counts.items()} if any(counts.values()) else {}


def _class_shares(columns: Sequence[CaptionStatistics]) -> dict[str, list[float | None]]:
    """Word class -> its share of all words in every column."""
    shares = [word_classes(column.words) for column in columns]
    classes = next((list(known) for known in shares if known), [])
    return {name: [known.get(name) for known in shares] for name in classes}


def _failure_shares(
    failures: Sequence[Mapping[str, Sequence[str]]], rows: Sequence[CaptionStatistics]
) -> dict[str, list[float]]:
    """Failure -> its share of the captions of every row, for failures that occur."""
    kinds = sorted({kind for failed in failures for names in failed.values() for kind in names})
    return {
        kind: [
            sum(kind in names for names in failed.values()) / (len(row.lengths) or 1)
            for failed, row in zip(failures, rows, strict=True)
        ]
        for kind in kinds
    }


def _duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
