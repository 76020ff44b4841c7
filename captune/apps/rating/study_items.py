"""What a study can be made of: systems with their captions, references, pictures and automatic scores."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from captune.data import ImageFolder, hash_file, read_manifest, resolve_image
from captune.errors import CaptuneError, InputError
from captune.metrics import read_predictions, read_references, score_captions, similar_ids_hint
from captune.report import read_scores, split_training_rows, thumbnail_path, thumbnail_sources

__all__ = ["HUMAN", "StudyItems", "System", "choose_systems", "read_study_items", "with_human"]

HUMAN = "human"
"""Name of the control: one reference caption of each image, shown like the caption of a system."""


@dataclass(frozen=True, slots=True)
class System:
    """One author of captions.

    Attributes:
        name: unique in the study.
        captions: image id -> caption.
        corpus: automatic metric -> corpus score; empty without scores.
        per_image: image id -> automatic metric -> score.
    """

    name: str
    captions: Mapping[str, str]
    corpus: Mapping[str, float] = field(default_factory=dict)
    per_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StudyItems:
    """The data of a study.

    Attributes:
        systems: in the order of the sources.
        references: image id -> its reference captions; may be empty.
        pictures: image id -> its file.
        source: paths of the sources, for the results page.
        evaluated: image id -> hash of the captioned file, if a run has it.
        ends: first and last checkpoint of the training, if all systems are of one run.
    """

    systems: tuple[System, ...]
    references: Mapping[str, Sequence[str]]
    pictures: Mapping[str, Path]
    source: str
    evaluated: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """Images that every system captioned and that have a picture, in the order of the first system."""
        first, *others = self.systems
        return tuple(
            image
            for image in first.captions
            if image in self.pictures and all(image in system.captions for system in others)
        )

    def left_out(self) -> list[str]:
        """Sentences about images that are excluded because of missing ids, with the closest ids."""
        captioned = list(dict.fromkeys(image for system in self.systems for image in system.captions))
        shared = [image for image in captioned if all(image in system.captions for system in self.systems)]
        sentences = []
        for system in self.systems:
            missing = [image for image in captioned if image not in system.captions]
            if missing:
                only = [image for image in system.captions if image not in shared]
                sentences.append(
                    f"{system.name} has no caption of {len(missing):,} of {len(captioned):,} images, such as "
                    f"{missing[0]!r}, which are left out{similar_ids_hint(only, missing)}."
                )
        for what, known in (("picture", self.pictures), ("reference caption", self.references)):
            missing = [image for image in shared if image not in known]
            if missing and known:
                only = [image for image in known if image not in shared]
                sentences.append(
                    f"{len(missing):,} of {len(shared):,} images have no {what}, such as {missing[0]!r}"
                    f"{similar_ids_hint(only, missing)}."
                )
        return sentences


def read_study_items(
    sources: Sequence[Path], *, references: Path | None = None, pictures: Path | None = None
) -> StudyItems:
    """Read runs and result files.

    Args:
        sources: run directories with a `scores.json`, or result files (one caption an image). With several sources
            the systems of a run are named `run/checkpoint`.
        references: file with reference captions; by default those in `scores.json`. Result files are scored
            against them.
        pictures: a manifest, or a folder in which an image's file is named after its id; by default those of the
            run's configuration, then of the references file, then the run's thumbnails.

    Raises:
        InputError: a source cannot be read, two systems have one name, or there is no picture.
    """
    systems: list[System] = []
    references_of: dict[str, Sequence[str]] = {}
    files: dict[str, Path] = {}
    file_names: dict[str, str] = {}
    evaluated: dict[str, str] = {}
    ends: tuple[str, ...] = ()
    if references is not None:
        read = read_references(references)
        references_of = {image: captions for image, captions in read.captions.items() if captions}
        file_names = read.file_names
        files = {image: path for image, path in read.images.items() if path.is_file()}
    for source in sources:
        if source.is_dir():
            run = read_scores(source).scored
            prefix = f"{source.resolve().name}/" if len(sources) > 1 else ""
            systems += [
                System(f"{prefix}{row.name}", row.captions, row.corpus, row.per_image) for row in run.checkpoints
            ]
            rows = split_training_rows(run).run.checkpoints
            if len(sources) == 1 and len(rows) > 1:
                ends = (rows[0].name, rows[-1].name)
            references_of = {**run.references, **references_of}
            files = {**_pictures_of_run(source, run.checkpoints[-1].captions), **files}
            evaluated = {**(thumbnail_sources(source) or {}), **evaluated}
        else:
            systems.append(_scored(System(source.stem, read_predictions(source).captions), references_of))
    names = [system.name for system in systems]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"Two systems are called {repeated!r}; rename a file or give a source once.")
    if HUMAN in names:
        raise InputError(f"A system is called {HUMAN!r}, which is the name of the control; rename the file.")
    ids = set().union(*(system.captions for system in systems))
    if pictures is not None:
        files = _pictures_in(pictures, ids, file_names)
    if not ids & files.keys():
        raise InputError(
            "No picture of a captioned image was found; give --pictures with a manifest, or a folder whose files are "
            "named after the image ids, or as in the references (file_name)."
        )
    source_names = ", ".join(str(source) for source in sources)
    return StudyItems(tuple(systems), references_of, files, source_names, evaluated, ends)


def choose_systems(items: StudyItems, names: Sequence[str] | None) -> StudyItems:
    """Keep some systems.

    Args:
        items: all that were read.
        names: those to keep; None keeps the first and the last (of one run: the pretrained model and the last epoch).

    Raises:
        InputError: a name is unknown or repeated, or a system has no captions.
    """
    by_name = {system.name: system for system in items.systems}
    if names is None:
        names = list(dict.fromkeys(items.ends or (items.systems[0].name, items.systems[-1].name)))
    if unknown := next((name for name in names if name not in by_name), None):
        raise InputError(f"There is no system {unknown!r}; there are: {', '.join(by_name)}.")
    if len(set(names)) != len(names):
        raise InputError("A system was named twice; name every system once.")
    systems = tuple(by_name[name] for name in names)
    if empty := next((system.name for system in systems if not system.captions), None):
        raise InputError(f"The system {empty!r} has no captions to show; evaluate it again.")
    return replace(items, systems=systems)


def with_human(items: StudyItems, seed: int) -> StudyItems:
    """Add one reference caption of each image as another system.

    Args:
        items: with references.
        seed: of the choice among an image's references.

    Raises:
        InputError: there are no references.
    """
    if not items.references:
        raise InputError(
            "The human control is a reference caption, and there are none; give --references or --no-human."
        )
    captions = {
        image: random.Random(f"{seed}/human/{image}").choice(list(texts)) for image, texts in items.references.items()
    }
    return replace(items, systems=(*items.systems, System(HUMAN, captions)))


def _scored(system: System, references: Mapping[str, Sequence[str]]) -> System:
    """A result file with the scores of its captions, if all of them have references."""
    common = {image: list(references[image]) for image in system.captions if image in references}
    if len(common) < 2 or len(common) != len(system.captions):
        return system
    scores = score_captions({image: system.captions[image] for image in common}, common)
    return replace(
        system, corpus=scores.corpus, per_image={str(image): values for image, values in scores.per_image.items()}
    )


def _pictures_of_run(run_dir: Path, images: Iterable[str]) -> dict[str, Path]:
    """The pictures that a run was evaluated on, or its thumbnails of files that have changed since."""
    hashes = thumbnail_sources(run_dir)
    ids = set(images)
    small = {image: path for image in ids if (path := thumbnail_path(run_dir, image)).is_file()}
    evaluated: dict[str, Path] = {}
    if (run_dir / "config.yaml").is_file():
        evaluated = _evaluated_pictures(run_dir)
    if hashes is None:
        return small | evaluated
    same = {
        image: path for image, path in evaluated.items() if image in ids and hash_file(path).hex() == hashes.get(image)
    }
    return {image: path for image, path in small.items() if image in hashes} | same


def _evaluated_pictures(run_dir: Path) -> dict[str, Path]:
    """Image id -> file, from the manifest in a run's configuration; empty if the data has moved."""
    from captune.config import load_stored_config

    try:
        config = load_stored_config(run_dir)
        manifest = config.data.evaluate or config.data.train
        samples = read_manifest(manifest)
    except (CaptuneError, OSError):
        return {}
    paths = {sample.id: resolve_image(manifest, sample.image) for sample in samples}
    return {image: path for image, path in paths.items() if path.is_file()}


def _pictures_in(source: Path, images: Iterable[str], file_names: Mapping[str, str]) -> dict[str, Path]:
    """Image id -> file, from a manifest or a folder."""
    if source.is_file():
        return {sample.id: resolve_image(source, sample.image) for sample in read_manifest(source)}
    if not source.is_dir():
        raise InputError(f"{source} does not exist; --pictures takes a manifest or a folder.")
    folder = ImageFolder(source)
    files = {image: folder.find(image, file_names.get(image)) for image in images}
    return {image: path for image, path in files.items() if path is not None}
