"""What the page's image explorer needs: captions, references and scores of the images on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from captune.report.columns import order_metrics
from captune.report.course import course_of
from captune.report.record import RunScores

__all__ = ["MOST_CHARACTERS", "MOST_IMAGES", "explorer_data", "select_images"]

MOST_IMAGES = 1000
"""Images on one page; the rest stays in `scores.json`."""

MOST_CHARACTERS = 1000
"""Characters of a caption or reference on the page; a model that loops may write ten times as many."""

COLUMNS = ("CIDEr", "BLEU-4", "ROUGE-L")
"""Metrics that a card shows first, where they are given for every image."""


def select_images(run: RunScores, most: int = MOST_IMAGES) -> list[str]:
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
    longest: int = MOST_CHARACTERS,
) -> dict[str, Any]:
    """The explorer's data as JSON values.

    Args:
        run: the rows.
        images: ids of the images on the page.
        failures: for every row, image id -> failures of its caption.
        longest: characters of a caption or reference that are shown.

    Returns:
        `checkpoints`, `metrics`, `columns` (places of the metrics to show first), `failures` (their names),
        `left_out` (images that are not on the page) and `images`, one object an image: `i` its id, `r` its
        references, `c` a caption a row or null, `s` a list of scores a row for every metric, `f` the failures a row
        (left out when there are none). Pictures are added by the page as `t`.
    """
    metrics = _per_image_metrics(run)
    names = sorted({failure for row in failures for found in row.values() for failure in found})
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
    found = [[names.index(failure) for failure in row.get(image, ())] for row in failures]
    tree: dict[str, Any] = {
        "i": image,
        "r": [_shortened(text, longest) for text in run.references.get(image, ())],
        "c": [_shortened(row.captions[image], longest) if image in row.captions else None for row in run.checkpoints],
        "s": [[_score(row.per_image.get(image, {}).get(metric)) for row in run.checkpoints] for metric in metrics],
    }
    if any(found):
        tree["f"] = found
    return tree


def _per_image_metrics(run: RunScores) -> tuple[str, ...]:
    """Metrics that are given image by image."""
    return order_metrics(name for row in run.checkpoints for scores in row.per_image.values() for name in scores)


def _score(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"
