"""Making a study: its folder with pictures and database, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captune.apps.rating.design import Design, StudyOptions, Task, draw_design
from captune.apps.rating.material import Material
from captune.apps.rating.store import Store
from captune.apps.rating.tables import Rater
from captune.apps.rating.trials import trials_of
from captune.data.atomic import atomic_folder
from captune.data.images import load_image
from captune.errors import InputError

__all__ = ["add_raters", "create_study", "picture_path"]

LONGEST_SIDE, QUALITY = 1024, 88
"""Pixels and JPEG quality of the pictures in a study."""

MOST_RATERS = 1000


def create_study(folder: Path, material: Material, options: StudyOptions, names: Sequence[str] = ()) -> Store:
    """Draw a study and write it.

    Args:
        folder: that does not hold a study yet.
        material: the systems to be compared, the human control among them where it is wanted.
        options: what is asked of how many people.
        names: of the raters; the others are called `rater 1`, `rater 2`, ...

    Returns:
        The open study.

    Raises:
        InputError: the folder is there already, a picture cannot be read, or the options make no study.
    """
    if len(names) > options.raters:
        raise InputError(
            f"{len(names)} raters were named, and the study is for {options.raters}; give a larger number."
        )
    design = draw_design(material, options)
    settings: dict[str, Any] = {
        "source": material.source,
        "systems": [system.name for system in material.systems],
        "corpus": {system.name: dict(system.corpus) for system in material.systems},
        "per_image": {
            system.name: {image: dict(system.per_image[image]) for image in design.images if image in system.per_image}
            for system in material.systems
        },
        "attention": {str(image): list(pair) for image, pair in design.attention.items()},
        "evaluated": {image: material.evaluated[image] for image in design.images if image in material.evaluated},
        "tasks": {part: [task.captions for task in tasks] for part, tasks in design.tasks.items()},
    }
    with atomic_folder(folder, replace=False) as partial:
        partial.chmod(0o700)
        (partial / "pictures").mkdir()
        for place, image in enumerate(design.images):
            picture_path(partial, place).write_bytes(_picture(material.pictures[image]))
        Store.create(partial, design, settings)
        store = Store(partial)
        _add(store, design, options.raters, names)
        store.close()
    return Store(folder)


def add_raters(store: Store, total: int, names: Sequence[str] = ()) -> None:
    """Give links to more people, who take the tasks that follow those of the last one.

    Args:
        store: an open study.
        total: how many raters there are to be afterwards.
        names: of the new ones.

    Raises:
        InputError: there are more already, or a name is taken.
    """
    there = len(store.raters())
    if total < there:
        raise InputError(f"The study has {there} raters already, and links are not taken back; give {there} or more.")
    _add(store, _design_of(store), total, names)


def picture_path(folder: Path, image: int) -> Path:
    """Where the picture of an image lies in a study's folder."""
    return folder / "pictures" / f"{image}.jpg"


def _add(store: Store, design: Design, total: int, names: Sequence[str]) -> None:
    if total > MOST_RATERS:
        raise InputError(f"{total} raters are too many for one study; the limit is {MOST_RATERS}.")
    there = {rater.number: rater.name for rater in store.raters()}
    new = range(len(there), total)
    called = [*names, *(f"rater {number + 1}" for number in new[len(names) :])]
    if blank := next((name for name in called if not name.strip() or len(name) > 100), None):
        raise InputError(f"A rater is called {blank!r}; give a name of 1 to 100 characters.")
    store.add_raters(
        [(Rater(number, name), trials_of(design, number)) for number, name in zip(new, called, strict=True)]
    )


def _design_of(store: Store) -> Design:
    """The design as it was drawn, read back from the study."""
    captions = tuple(store.captions())
    tasks = {
        part: tuple(Task(part, captions[places[0]].image, tuple(places)) for places in listed)
        for part, listed in store.setting("tasks").items()
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
    """The picture upright, at a size for a screen, without what the file says of camera and place."""
    from PIL import Image

    picture = load_image(path, exif=True)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
