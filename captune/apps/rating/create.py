"""Creating a study (its folder with pictures and database), adding raters, and comparing it with its run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captune.apps.rating.store import Rater, Store
from captune.apps.rating.study_design import Design, StudyOptions, Task, as_shown, draw_design, trials_of
from captune.apps.rating.study_items import StudyItems
from captune.data import atomic_folder, load_image
from captune.errors import InputError
from captune.report import CheckpointScores, read_scores, thumbnail_sources

__all__ = ["add_raters", "create_study", "picture_path", "rated_rows"]

LONGEST_SIDE, QUALITY = 1024, 88
"""Pixels and JPEG quality of the pictures in a study."""

MOST_RATERS = 1000


def create_study(folder: Path, items: StudyItems, options: StudyOptions, names: Sequence[str] = ()) -> Store:
    """Draw and write a study.

    Args:
        folder: a new folder.
        items: the compared systems, including the human control if requested.
        options: of the design.
        names: of the first raters; the others are named `rater 1`, `rater 2`, ...

    Returns:
        The open study.

    Raises:
        InputError: the folder exists, a picture cannot be read, or the options are invalid.
    """
    if len(names) > options.raters:
        raise InputError(
            f"{len(names)} raters were named, and the study is for {options.raters}; give a larger number."
        )
    design = draw_design(items, options)
    settings: dict[str, Any] = {
        "source": items.source,
        "systems": [system.name for system in items.systems],
        "corpus": {system.name: dict(system.corpus) for system in items.systems},
        "per_image": {
            system.name: {image: dict(system.per_image[image]) for image in design.images if image in system.per_image}
            for system in items.systems
        },
        "attention": {str(image): list(pair) for image, pair in design.attention.items()},
        "evaluated": {image: items.evaluated[image] for image in design.images if image in items.evaluated},
        "tasks": {part: [task.captions for task in tasks] for part, tasks in design.tasks.items()},
    }
    with atomic_folder(folder, replace=False) as partial:
        partial.chmod(0o700)
        (partial / "pictures").mkdir()
        for number, image in enumerate(design.images):
            picture_path(partial, number).write_bytes(_picture(items.pictures[image]))
        Store.create(partial, design, settings)
        store = Store(partial)
        _add(store, design, options.raters, names)
        store.close()
    return Store(folder)


def add_raters(store: Store, total: int, names: Sequence[str] = ()) -> None:
    """Add raters, who take the tasks that follow those of the last one.

    Args:
        store: an open study.
        total: number of raters afterwards.
        names: of the new ones.

    Raises:
        InputError: there are more already, or a name is used.
    """
    existing = len(store.raters())
    if total < existing:
        raise InputError(f"The study has {existing} raters already, who keep their links; give {existing} or more.")
    _add(store, _design_of(store), total, names)


def picture_path(folder: Path, image: int) -> Path:
    """Path of an image's picture in the folder of a study."""
    return folder / "pictures" / f"{image}.jpg"


def _add(store: Store, design: Design, total: int, names: Sequence[str]) -> None:
    if total > MOST_RATERS:
        raise InputError(f"{total} raters are too many for one study; the limit is {MOST_RATERS}.")
    new = range(len(store.raters()), total)
    called = [*names, *(f"rater {number + 1}" for number in new[len(names) :])]
    if blank := next((name for name in called if not name.strip() or len(name) > 100), None):
        raise InputError(f"A rater is called {blank!r}; give a name of 1 to 100 characters.")
    store.add_raters(
        [(Rater(number, name), trials_of(design, number)) for number, name in zip(new, called, strict=True)]
    )


def _design_of(store: Store) -> Design:
    """The drawn design, read from the study."""
    captions = tuple(store.captions())
    tasks = {
        part: tuple(Task(part, captions[places[0]].image, tuple(places)) for places in captions_of_tasks)
        for part, captions_of_tasks in store.setting("tasks").items()
    }
    images = store.images()
    return Design(
        options=store.options,
        images=tuple(name for name, _ in images),
        strata=tuple(stratum for _, stratum in images),
        captions=captions,
        tasks=tasks,
        attention={int(image): (pair[0], pair[1]) for image, pair in store.setting("attention").items()},
    )


def _picture(path: Path) -> bytes:
    """The upright picture at the size of a screen, without metadata (camera, position)."""
    from PIL import Image

    picture = load_image(path, exif=True)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def rated_rows(store: Store, run_dir: Path) -> list[CheckpointScores]:
    """The rows of a run that a study compares; none if the study is not of this run.

    A run may be evaluated again, or its folder may hold another run, but the answers belong to the shown captions.

    Args:
        store: an open study.
        run_dir: folder of the run.

    Raises:
        InputError: the rows have other captions now than the study, or `scores.json` cannot be read.
    """
    # With several sources the names of systems begin with the name of their run.
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
    current = thumbnail_sources(run_dir) or {}
    try:
        evaluated = store.setting("evaluated")
    except KeyError:
        # Studies of older versions lack it.
        return None
    changed = next((image for image, source in evaluated.items() if current.get(image, source) != source), None)
    return None if changed is None else f"images ({changed!r})"
