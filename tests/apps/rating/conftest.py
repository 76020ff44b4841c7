"""Runs and studies small enough for fast tests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from simulated_raters import MakeStudy, opinion

from captune.apps.rating.create import create_study
from captune.apps.rating.store import Store
from captune.apps.rating.study_design import StudyOptions
from captune.apps.rating.study_items import StudyItems, choose_systems, read_study_items, with_human
from captune.metrics import score_captions
from captune.report import CheckpointScores, RunScores, write_scores

COLOURS = ("red", "blue", "green", "yellow", "black")
THINGS = ("ball", "dog", "car", "house", "tree")
SKILL = {"pretrained": 0.2, "epoch0": 0.6, "epoch1": 0.9}


@pytest.fixture(scope="session")
def rated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three checkpoints on 18 images, each better than the one before, with its pictures in `pictures/`."""
    chance = random.Random(7)
    folder = tmp_path_factory.mktemp("rated") / "run"
    (folder / "pictures").mkdir(parents=True)
    facts = {
        f"IMG-{number:03d}": [chance.choice(words) for words in (COLOURS, THINGS, COLOURS, THINGS)]
        for number in range(18)
    }
    references = {}
    for image, (colour, thing, other, more) in facts.items():
        Image.new("RGB", (64, 48), colour).save(folder / "pictures" / f"{image}.jpg")
        references[image] = (
            f"A {colour} {thing} is beside a {other} {more} .",
            f"There is a {colour} {thing} next to a {other} {more} .",
        )
    rows = []
    for number, (name, skill) in enumerate(SKILL.items()):
        captions = {}
        for image, words in facts.items():
            caption_words = [
                word if chance.random() < skill else chance.choice(COLOURS if index % 2 == 0 else THINGS)
                for index, word in enumerate(words)
            ]
            captions[image] = "a {} {} beside a {} {}".format(*caption_words)
        scores = score_captions(captions, {image: list(texts) for image, texts in references.items()})
        rows.append(
            CheckpointScores(
                name=name,
                epoch=number - 1 if number else None,
                corpus=scores.corpus,
                per_image={str(image): values for image, values in scores.per_image.items()},
                captions=captions,
                signature=scores.signature,
            )
        )
    run = RunScores("toy", tuple(rows), "test", "karpathy", len(facts), references)
    write_scores(run, folder)
    return folder


@pytest.fixture(scope="session")
def items(rated_run: Path) -> StudyItems:
    """All three checkpoints and the human control."""
    read = read_study_items([rated_run], pictures=rated_run / "pictures")
    return with_human(choose_systems(read, list(SKILL)), seed=1)


@pytest.fixture
def make_study(items: StudyItems, tmp_path: Path) -> Iterator[MakeStudy]:
    """A function that makes a study in a new folder."""
    made: list[Store] = []

    def make(study_items: StudyItems = items, *, names: tuple[str, ...] = (), **options: Any) -> Store:
        settings = {"images": 6, "seed": 3, **options}
        made.append(create_study(tmp_path / f"study-{len(made)}", study_items, StudyOptions(**settings), names))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture(scope="session")
def answered(items: StudyItems, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A finished study of three raters on ten images, to be read only."""
    folder, chance = tmp_path_factory.mktemp("answered") / "study", random.Random(5)
    store = create_study(folder, items, StudyOptions(images=10, seed=3))
    for rater in store.raters():
        for position in range(len(store.trials(rater.number))):
            assert store.save_answer(rater.number, position, opinion(store, rater.number, position, chance), 2.5)
    yield store
    store.close()
