"""The data of the page's image explorer: captions, references, scores and pictures, as many as a page can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captune.report.columns import order_metrics
from captune.report.course import course_of
from captune.report.record import RunScores
from captune.report.thumbnails import EMBEDDED_BYTES, embedded_thumbnails

__all__ = ["MAX_CHARACTERS", "MAX_IMAGES", "explorer_data", "explorer_json", "script_json", "select_images"]

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

COLUMNS = ("CIDEr", "BLEU-4", "ROUGE-L")
"""Metrics that a card shows first, where they are given for every image."""


def explorer_json(
    run: RunScores,
    run_dir: Path | None,
    failures: Sequence[Mapping[str, Sequence[str]]],
    **settings: Any,
) -> str:
    """Everything that the page's script shows and sorts, with as many images and as much text as fit.

    Args:
        run: the rows.
        run_dir: where the thumbnails are; None for a page without pictures.
        failures: for every row, image id -> failures of its caption.
        settings: further values for the script.

    Returns:
        JSON for a script element; see `explorer_data`.
    """
    for images, characters in _LIMITS:
        tree = explorer_data(run, select_images(run, images), failures, characters)
        text = script_json(tree)
        if len(text) <= TEXT_CHARACTERS:
            break
    if run_dir is not None:
        budget = min(EMBEDDED_BYTES, PAGE_BYTES - len(text.encode("utf-8")))
        pictures = embedded_thumbnails(run_dir, [image["i"] for image in tree["images"]], budget)
        for image in tree["images"]:
            if image["i"] in pictures:
                image["t"] = pictures[image["i"]]
    return script_json({**settings, **tree})


def script_json(tree: Any) -> str:
    """JSON that is safe inside a script element, whatever text it holds."""
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def select_images(run: RunScores, most: int = MAX_IMAGES) -> list[str]:
    """Ids of the images on the page, in the order of the data.

    All of them, or where there are too many those whose CIDEr (or first metric) changed most from the first row to
    the last, half of them improved and half regressed.

    Args:
        run: the rows.
        most: how many images at most.
    """
    images = list(dict.fromkeys(image for row in run.checkpoints for image in (*row.captions, *row.per_image)))
    if len(images) <= most:
        return images
    metrics = _per_image_metrics(run)
    metric = "CIDEr" if "CIDEr" in metrics else next(iter(metrics), "")
    rows = course_of(run).run.checkpoints
    first, last = rows[0].per_image, rows[-1].per_image

    def change(image: str) -> float:
        value = last.get(image, {}).get(metric, 0.0) - first.get(image, {}).get(metric, 0.0)
        return value if math.isfinite(value) else 0.0

    ranked = sorted(images, key=change)
    kept = {*ranked[: most // 2], *ranked[len(ranked) - (most - most // 2) :]}
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
        `checkpoints`, `metrics`, `columns` (indices of the metrics, the most telling first), `failures` (their
        names), `left_out` (how many images are not on the page) and `images`, one object an image: `i` its id, `r`
        its references, `c` a caption a row or null, `s` a list of scores a row for every metric, `f` the failures a
        row (left out when there are none). `explorer_json` adds the picture as `t`.
    """
    metrics = _per_image_metrics(run)
    names = sorted({failure for row in failures for names in row.values() for failure in names})
    total = len({image for row in run.checkpoints for image in (*row.captions, *row.per_image)})
    first = [metrics.index(name) for name in COLUMNS if name in metrics]
    return {
        "checkpoints": [row.name for row in run.checkpoints],
        "metrics": list(metrics),
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
    return tree


def _per_image_metrics(run: RunScores) -> tuple[str, ...]:
    """Metrics that are given image by image."""
    return order_metrics(name for row in run.checkpoints for scores in row.per_image.values() for name in scores)


def _score(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"
