"""Whether a study is of the captions that a run holds now.

A run's folder may be evaluated anew, or hold another run; what people said belongs to the captions that they saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from captune.apps.rating.design import as_shown
from captune.apps.rating.store import Store
from captune.errors import InputError
from captune.report import CheckpointScores, read_scores
from captune.report.thumbnails import thumbnail_sources

__all__ = ["rated_rows"]


def rated_rows(store: Store, run_dir: Path) -> list[CheckpointScores]:
    """The rows of a run that a study compares; none where it is not of this run.

    Args:
        store: an open study.
        run_dir: folder of the run.

    Raises:
        InputError: the study was made of other captions than these rows have now, or `scores.json` cannot be read.
    """
    # With several sources the systems of a run have its name in front.
    prefix = f"{run_dir.resolve().name}/"
    rows = {row.name: row for row in read_scores(run_dir).checkpoints}
    rows |= {prefix + name: row for name, row in rows.items()}
    compared = [rows[name] for name in store.setting("systems") if name in rows]
    changed = _changed_captions(store, rows) or (_changed_images(store, run_dir) if compared else None)
    if changed is not None:
        raise InputError(
            f"The study in {store.folder} was made of other {changed} than {run_dir} holds now; read its results with "
            f"`captune rate {store.folder} --results`, and make another study with --study."
        )
    return compared


def _changed_captions(store: Store, rows: Mapping[str, CheckpointScores]) -> str | None:
    images = [name for name, _ in store.images()]
    options = store.options
    for caption in store.captions():
        image = images[caption.image]
        for system in caption.systems:
            if system in rows and as_shown(rows[system].captions.get(image, ""), options) != caption.text:
                return f"captions (of {system} for image {image!r})"
    return None


def _changed_images(store: Store, run_dir: Path) -> str | None:
    now = thumbnail_sources(run_dir) or {}
    try:
        then = store.setting("evaluated")
    except KeyError:
        # Studies of older versions do not tell.
        return None
    other = next((image for image, source in then.items() if now.get(image, source) != source), None)
    return None if other is None else f"images ({other!r})"
