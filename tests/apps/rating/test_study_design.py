"""Which rater judges what: sampling, balance, order, blindness of form, and the same study from the same seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.apps.rating.study_design import Design, StudyOptions, Trial, draw_design, shown_caption, trials_of
from captune.apps.rating.study_items import HUMAN, StudyItems
from captune.errors import InputError


def _tasks(trials: list[Trial], part: str) -> list[Trial]:
    return [trial for trial in trials if trial.part == part and trial.kind == "task"]


@given(raters=st.integers(1, 7), images=st.integers(1, 18), data=st.data())
@settings(max_examples=25, deadline=None)
def test_every_task_is_judged_as_often_as_any_other(
    items: StudyItems, raters: int, images: int, data: st.DataObject
) -> None:
    judgements = data.draw(st.integers(1, raters))
    design = draw_design(items, StudyOptions(images=images, raters=raters, judgements=judgements))
    for part, tasks in design.tasks.items():
        counts = Counter[tuple[int, ...]]()
        for rater in range(raters):
            judged = [tuple(sorted(trial.captions)) for trial in _tasks(trials_of(design, rater), part)]
            assert len(judged) == len(set(judged)), "no rater judges a task twice"
            counts.update(judged)
        assert counts == dict.fromkeys((task.captions for task in tasks), judgements)


def test_images_are_drawn_alike_from_every_third_of_the_scores(items: StudyItems) -> None:
    design = draw_design(items, StudyOptions(images=9))
    assert Counter(design.strata) == {0: 3, 1: 3, 2: 3}
    scores = {
        stratum: [
            sum(system.per_image[image]["CIDEr"] for system in items.systems if system.name != HUMAN)
            for image, image_stratum in zip(design.images, design.strata, strict=True)
            if image_stratum == stratum
        ]
        for stratum in range(3)
    }
    assert max(scores[0]) <= min(scores[1])
    assert max(scores[1]) <= min(scores[2])


def test_the_seed_decides_everything(items: StudyItems) -> None:
    first, again, other = (draw_design(items, StudyOptions(images=6, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert [trials_of(first, rater) for rater in range(5)] == [trials_of(again, rater) for rater in range(5)]
    assert trials_of(first, 0) != trials_of(first, 1)
    assert first.images != other.images


def test_pairs_of_systems_are_compared_equally_often(items: StudyItems) -> None:
    design = draw_design(items, StudyOptions(images=18, pairs_per_image=2, design="pairwise"))
    used = Counter(
        frozenset((one, other))
        for task in design.tasks["pairwise"]
        for one in design.captions[task.captions[0]].systems
        for other in design.captions[task.captions[1]].systems
    )
    assert len(used) == len(list(combinations(items.systems, 2)))
    # Shared captions are credited to several pairs; without them the counts differ by one at most.
    assert max(used.values()) - min(used.values()) <= 3


def test_no_system_leads(items: StudyItems) -> None:
    design = draw_design(items, StudyOptions(images=18, design="pairwise"))
    for rater in range(3):
        lead = Counter[str]()
        for trial in _tasks(trials_of(design, rater), "pairwise"):
            lead.update(design.captions[trial.captions[0]].systems)
            lead.subtract(design.captions[trial.captions[1]].systems)
        # The best system is in 54 comparisons; chance alone would give differences of 7 and more.
        assert all(abs(count) <= 4 for count in lead.values()), lead


def test_equal_captions_are_shown_once_and_never_compared(items: StudyItems) -> None:
    twin = replace(items.systems[0], name="twin", captions=items.systems[0].captions)
    design = draw_design(replace(items, systems=(*items.systems, twin)), StudyOptions(images=6))
    for caption in design.captions:
        assert ("twin" in caption.systems) == ("pretrained" in caption.systems)
    texts = [(caption.image, caption.text) for caption in design.captions if caption.systems]
    assert len(texts) == len(set(texts))


def test_only_twins_leave_nothing_to_compare(items: StudyItems) -> None:
    twins = tuple(replace(items.systems[0], name=name) for name in ("one", "two"))
    with pytest.raises(InputError, match="nothing to compare"):
        draw_design(replace(items, systems=twins), StudyOptions(images=6, design="pairwise"))


def test_repeats_and_checks(items: StudyItems) -> None:
    design = draw_design(items, StudyOptions(images=12, attention=0.1, repeats=0.2))
    trials = trials_of(design, 1)
    for part in ("pairwise", "rubric"):
        kinds = Counter(trial.kind for trial in trials if trial.part == part)
        assert kinds["attention"] == round(0.1 * kinds["task"])
        assert kinds["repeat"] == round(0.2 * kinds["task"])
    for position, trial in enumerate(trials):
        if trial.kind == "repeat":
            assert trial.repeats is not None
            before = trials[trial.repeats]
            assert before.kind == "task"
            assert before.captions == trial.captions[::-1]
            assert position - trial.repeats > 3
        if trial.kind == "attention":
            assert not any(design.captions[index].systems for index in trial.captions)
    assert [trial.part for trial in trials] == sorted(trial.part for trial in trials), "pairs come first"


def test_false_captions_share_no_word_of_content_where_they_can(items: StudyItems) -> None:
    design = draw_design(items, StudyOptions(images=12))
    small = {"beside", "there", "next", "the"}
    for image, (true, false) in design.attention.items():
        right = {word for text in items.references[design.images[image]] for word in text.lower().split()} - small
        wrong = set(design.captions[false].text.lower().rstrip(".").split()) - small
        assert design.captions[true].text != design.captions[false].text
        assert len({word for word in right & wrong if len(word) > 2}) <= 2


def test_screens_of_one_image_stand_apart(items: StudyItems) -> None:
    trials = trials_of(draw_design(items, StudyOptions(images=12, attention=0, repeats=0)), 0)
    adjacent = sum(one.image == other.image for one, other in pairwise(trials))
    assert adjacent <= 2


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("a dog  runs\n fast", "A dog runs fast."),
        ("A dog runs .", "A dog runs."),
        ("two men , one with a hat", "Two men, one with a hat."),
        ("the dog does n't run !", "The dog doesn't run!"),
        ('" a dog "', "A dog."),
        ("\u202ea dog\u0000\x1b[31m", "A dog[31m."),
        ("一只狗在跑", "一只狗在跑。"),
        ("", ""),
        (" . ", "."),
    ],
)
def test_all_captions_have_one_form(written: str, shown: str) -> None:
    assert shown_caption(written) == shown


def test_captions_may_be_shown_as_written(items: StudyItems) -> None:
    design = draw_design(items, StudyOptions(images=6, as_written=True))
    assert any(caption.text.endswith(" .") for caption in design.captions)
    assert any(caption.text.startswith("a ") for caption in design.captions)


def test_without_metrics_images_are_drawn_by_length(items: StudyItems) -> None:
    bare = tuple(replace(system, corpus={}, per_image={}) for system in items.systems)
    design: Design = draw_design(replace(items, systems=bare), StudyOptions(images=6))
    assert len(design.images) == 6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"images": 0}, "must be 1 at least"),
        ({"judgements": 4}, "4 judgements of each task need at least as many raters, not 3"),
        ({"attention": 0.9}, "shares of the tasks"),
        ({"repeats": -0.1}, "shares of the tasks"),
        ({"pairs_per_image": 0}, "pairs_per_image must be 1"),
    ],
)
def test_options_that_make_no_study(items: StudyItems, options: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        draw_design(items, StudyOptions(**options))  # type: ignore[arg-type]


def test_checks_need_references(items: StudyItems) -> None:
    with pytest.raises(InputError, match="--attention 0"):
        draw_design(replace(items, references={}), StudyOptions())
    assert draw_design(replace(items, references={}), StudyOptions(attention=0)).attention == {}
