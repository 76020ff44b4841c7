"""`report.html`: one self-contained page that shows what training did, image by image.

The page is built from `page_files/` (a skeleton, a style sheet, a script, a dictionary) and what a run holds. It
needs no network, forbids itself any by its content security policy, and opens from a mail attachment years later.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from captune.report.captions import CaptionStatistics, caption_statistics
from captune.report.comparison import Comparison
from captune.report.explorer import MOST_CHARACTERS, MOST_IMAGES, explorer_data, select_images
from captune.report.matrix import Matrix
from captune.report.matrix_table import matrix_part
from captune.report.narrative import LANGUAGES, catalogue
from captune.report.page_parts import (
    analysis_part,
    comparison_part,
    distributions_part,
    facts_part,
    leak_part,
    notes_part,
    score_charts,
    table_part,
    training_part,
)
from captune.report.rating import rating_part
from captune.report.record import RunScores
from captune.report.table import provenance
from captune.report.text import one_line
from captune.report.thumbnails import EMBEDDED_BYTES, embedded_thumbnails
from captune.report.training_log import TrainingLog

__all__ = ["LANGUAGES", "build_page"]

PAGE_BYTES = 4_700_000
"""What texts, scores and pictures of a page may take together, so that it can be sent by mail."""

TEXT_CHARACTERS = 3_000_000
"""What texts and scores may take of that before less of them is shown."""

_LIMITS = ((MOST_IMAGES, MOST_CHARACTERS), (MOST_IMAGES, 300), (500, 300), (200, 200), (50, 200), (20, 100))
"""Images and characters of a caption on the page, tried in turn."""


def build_page(
    run: RunScores,
    log: TrainingLog,
    *,
    run_dir: Path | None = None,
    language: str = "en",
    comparison: Comparison | None = None,
    rating: Mapping[str, Any] | None = None,
    matrix: Matrix | None = None,
) -> str:
    """Build the page of a run.

    Args:
        run: the scores, with captions and references where there are some.
        log: what the training log tells; an empty one leaves its parts out.
        run_dir: where the small pictures lie (`captune.report.thumbnails`); None for a page without any.
        language: "en" or "zh", in which the page opens; a reader can switch.
        comparison: when the rows are several runs and not the checkpoints of one; their tests then stand in the
            place of the analysis of a course, and there is no chart of one.
        rating: what people said of the captions (`captune.report.rating`), where they were asked.
        matrix: how the model does on other data, damaged images and prompts, where that was evaluated.

    Returns:
        The whole HTML document, the same for the same run.
    """
    words = _dictionary()
    statistics, references = caption_statistics(run)
    data = _data(run, run_dir, statistics, words, language)
    script = _page_file("page.js")
    document = _fill(
        _page_file("page.html"),
        {
            "lang": language,
            "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            "title": escape(one_line(f"{run.data} – captune")),
            "css": _page_file("page.css"),
            "heading": escape(one_line(provenance(run))),
            "leaks": leak_part(run),
            "facts": facts_part(run, log),
            "table": table_part(run),
            "notes": notes_part(run),
            "score_charts": score_charts(run) if comparison is None else "",
            "analysis": analysis_part(run) if comparison is None else comparison_part(comparison),
            "training": training_part(log),
            "distributions": distributions_part(run, statistics, references),
            "rating": rating_part(rating) if rating is not None else "",
            "rating_link": '<a href="#people" data-t="people"></a>' if rating is not None else "",
            "transfer": _transfer(matrix, run_dir) if matrix is not None else "",
            "transfer_link": '<a href="#transfer" data-t="transfer"></a>' if matrix is not None else "",
            "citation": escape(_citation(run)),
            "data": data,
            "script": script,
        },
    )
    return _translated(document, words[language])


def _transfer(matrix: Matrix, run_dir: Path | None) -> str:
    """The section of the matrix, with its picture where one was drawn."""
    picture = None if run_dir is None else run_dir / "matrix.png"
    return matrix_part(matrix, picture.read_bytes() if picture is not None and picture.is_file() else None)


def _data(
    run: RunScores,
    run_dir: Path | None,
    statistics: Sequence[CaptionStatistics],
    words: Mapping[str, Mapping[str, str]],
    language: str,
) -> str:
    """Everything that the script shows and sorts, as JSON, with as many images and as much text as a page may hold."""
    failures = [row.failures for row in statistics]
    for most, longest in _LIMITS:
        tree = explorer_data(run, select_images(run, most), failures, longest)
        text = _json(tree)
        if len(text) <= TEXT_CHARACTERS:
            break
    if run_dir is not None:
        room = min(EMBEDDED_BYTES, PAGE_BYTES - len(text.encode("utf-8")))
        pictures = embedded_thumbnails(run_dir, [image["i"] for image in tree["images"]], room)
        for image in tree["images"]:
            if image["i"] in pictures:
                image["t"] = pictures[image["i"]]
    return _json({"language": language, "words": words, **tree})


def _json(tree: Any) -> str:
    """JSON that may stand inside a script element whatever text it holds."""
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _citation(run: RunScores) -> str:
    """A sentence that a paper can quote, with the signature."""
    given = list(dict.fromkeys(row.signature for row in run.checkpoints if row.signature))
    signature = f", signature {given[0]}" if len(given) == 1 else ""
    return one_line(f"Scored with captune on {provenance(run)}{signature}.")


def _page_file(name: str) -> str:
    return (files("captune.report") / "page_files" / name).read_text(encoding="utf-8")


def _dictionary() -> dict[str, dict[str, str]]:
    return {language: dict(catalogue(language).page) for language in LANGUAGES}


def _fill(skeleton: str, parts: Mapping[str, str]) -> str:
    """Put every part in its place, in one pass: what a part holds is never taken for a place."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], skeleton)


def _translated(document: str, words: Mapping[str, str]) -> str:
    """Write the words of one language into the elements that ask for them, so that no script is needed to read."""
    head, mark, rest = document.partition('<script type="application/json"')
    filled = re.sub(
        r'(data-t="([^"]*)"[^>]*>)[^<]*(?=</)',
        lambda match: match[1] + escape(words.get(match[2], match[2])),
        head,
    )
    return filled + mark + rest
