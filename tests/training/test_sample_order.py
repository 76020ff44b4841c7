from __future__ import annotations

from collections import Counter
from typing import Literal

import pytest

from captune.config import OptimizationsConfig, TrainConfig
from captune.data.manifest import Sample
from captune.errors import DataError
from captune.training.sample_order import TrainingSample, TrainingSamples


def images(count: int, captions: int = 3) -> list[Sample]:
    return [
        Sample(str(i), f"{i}.jpg", tuple(f"caption {i} {c}" for c in range(captions)), "train") for i in range(count)
    ]


def captions_of(samples: TrainingSamples, epoch: int) -> list[str]:
    first = epoch * samples.steps_per_epoch
    return [
        c for step in range(first, first + samples.steps_per_epoch) for s in samples.batch(step) for c in s.captions
    ]


def test_an_epoch_of_each_is_every_caption_once_in_a_new_order() -> None:
    samples = TrainingSamples(images(7), TrainConfig(batch_size=4, captions_per_image=1, epochs=2), seed=1)
    assert samples.steps_per_epoch == 6  # 21 captions in batches of 4, the last of 1
    first, second = captions_of(samples, 0), captions_of(samples, 1)
    assert sorted(first) == sorted(second) == sorted(c for image in images(7) for c in image.captions)
    assert first != second


def test_captions_of_an_image_share_a_step() -> None:
    config = TrainConfig(batch_size=6, captions_per_image=2)
    samples = TrainingSamples(images(4), config, seed=1)
    dealt = [sample for step in range(samples.steps_per_epoch) for sample in samples.batch(step)]
    assert sorted(len(sample.captions) for sample in dealt) == [1] * 4 + [2] * 4
    assert sorted(captions_of(samples, 0)) == sorted(c for image in images(4) for c in image.captions)
    assert [sum(len(s.captions) for s in samples.batch(step)) for step in range(2)] == [6, 6]


def counts(samples: TrainingSamples, passed: int = 0) -> list[int]:
    """Captions of every step of a pass."""
    steps = range(passed * samples.steps_per_epoch, (passed + 1) * samples.steps_per_epoch)
    return [sum(len(sample.captions) for sample in samples.batch(step)) for step in steps]


@pytest.mark.parametrize(
    ("captions", "size", "expected"),
    [
        (1, 10, [10, 10, 4]),  # the captions of 24 images
        (2, 10, [10, 10, 10, 10, 8]),
        (3, 10, [9] * 8),
        (4, 10, [8] * 12),  # 8 and 12 are equally near
        (5, 13, [15] * 8),
        (5, 2, [5] * 24),
        (7, 10, [10] * 16 + [8]),  # slots of 5 and of 2
        (10, 10, [10] * 24),
        (1, 100, [24]),
    ],
)
def test_batch_size_is_captions_of_a_step(captions: int, size: int, expected: list[int]) -> None:
    samples = TrainingSamples(images(24, captions), TrainConfig(batch_size=size, epochs=2), seed=3)
    assert sorted(samples.step_captions, reverse=True) == expected
    assert counts(samples)[-1] == expected[-1]
    for passed in range(2):
        assert sorted(counts(samples, passed), reverse=True) == expected
    assert samples.exact == all(count == size for count in expected[:-1])


@pytest.mark.parametrize("buckets", [True, False])
@pytest.mark.parametrize("captions_per_image", [1, 2, 5, 10])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_images_with_one_to_ten_captions(buckets: bool, captions_per_image: int, size: int) -> None:
    rows = [
        Sample(str(i), f"{i}.jpg", tuple(f"{i} {c}" + " word" * (i * c % 9) for c in range(1 + i * 7 % 10)), "train")
        for i in range(150)
    ]
    config = TrainConfig(
        batch_size=size,
        captions_per_image=captions_per_image,
        epochs=3,
        debug=OptimizationsConfig(length_buckets=buckets),
    )
    samples = TrainingSamples(rows, config, seed=5)
    every = sorted(c for row in rows for c in row.captions)
    assert [sorted(captions_of(samples, epoch)) for epoch in range(3)] == [every] * 3
    assert captions_of(samples, 0) != captions_of(samples, 1)
    for passed in range(3):
        assert sorted(counts(samples, passed)) == sorted(samples.step_captions)
    # All steps but the last are as near as the captions of one image allow.
    full = sorted(samples.step_captions)[1:]
    assert all(abs(count - size) <= max(0, captions_per_image - 1) for count in full)
    if size == 40:
        assert all(count == size for count in full)
    heaviest = samples.worst_case_step()
    assert sum(len(sample.captions) for sample in heaviest) in samples.step_captions
    backwards = [samples.batch(step) for step in reversed(range(samples.total_steps))]
    assert backwards[::-1] == [samples.batch(step) for step in range(samples.total_steps)]


def test_uneven_epochs_of_a_set_number_of_steps_take_every_sample_once_a_pass() -> None:
    rows = [Sample(str(i), f"{i}.jpg", ("word",) * (1 + i % 4), "train") for i in range(40)]
    samples = TrainingSamples(rows, TrainConfig(batch_size=10, steps_per_epoch=3, epochs=10), seed=5)
    dealt = [s.image for step in range(20) for s in samples.batch(step)]
    assert sorted(dealt) == sorted([*range(40)] * 2)


def test_steps_are_described() -> None:
    def described(rows: list[Sample], size: int) -> str:
        return TrainingSamples(rows, TrainConfig(batch_size=size), seed=1).describe_steps()

    assert described(images(24, 1), 10) == "10, 10, 4"
    assert described(images(24, 5), 10) == "10 x 12"
    assert described(images(24, 1), 5) == "5 x 4, 4 x 1"
    mixed = [Sample(str(i), f"{i}.jpg", ("word",) * (2 + i % 3), "train") for i in range(30)]
    assert described(mixed, 3) == "2-4 (mean 3.0) x 30"


def test_buckets_group_similar_lengths_and_lose_nothing() -> None:
    rows = [Sample(str(i), f"{i}.jpg", ("word " * (1 + i % 50),), "train") for i in range(1000)]
    spread = {}
    for buckets in (True, False):
        config = TrainConfig(batch_size=10, captions_per_image=1, debug=OptimizationsConfig(length_buckets=buckets))
        samples = TrainingSamples(rows, config, seed=1)
        batches = [[len(s.captions[0]) for s in samples.batch(step)] for step in range(samples.steps_per_epoch)]
        assert sorted(s.image for step in range(100) for s in samples.batch(step)) == list(range(1000))
        spread[buckets] = sum(max(batch) - min(batch) for batch in batches)
        assert batches[:10] != sorted(batches[:10])
    assert spread[True] < spread[False] / 20


def test_another_length_groups_others() -> None:
    """And only pools whose steps are requested are measured."""
    rows = [Sample(str(i), f"{i}.jpg", (f"{i % 7} " + "long " * (i % 11),), "train") for i in range(2500)]
    config = TrainConfig(batch_size=10, captions_per_image=1)
    measured: list[str] = []

    def length(sample: TrainingSample) -> int:
        measured.append(sample.captions[0])
        return int(sample.captions[0].split()[0])

    samples = TrainingSamples(rows, config, 1, length)
    for step in range(90):
        lengths = {sample.captions[0].split()[0] for sample in samples.batch(step)}
        assert len(lengths) <= 2
    assert len(measured) == 1020
    dealt = [sample.image for step in range(samples.steps_per_epoch) for sample in samples.batch(step)]
    assert sorted(dealt) == list(range(2500))
    config = config.model_copy(update={"debug": OptimizationsConfig(length_buckets=False)})
    assert TrainingSamples(rows, config, 1, length).batch(3) == TrainingSamples(rows, config, 1).batch(3)


def test_the_longest_sample_is_the_one_with_the_longest_row() -> None:
    """Five times the same caption is one in a shared row, and five in separate rows."""
    same = Sample("same", "same.jpg", ("a dog that runs " * 2,) * 5, "train")
    other = Sample("other", "other.jpg", ("one dog runs on grass", "two dogs stand", "the sun sets"), "train")
    for shared, longest in ((True, "other"), (False, "same")):
        config = TrainConfig(captions_per_image=5, debug=OptimizationsConfig(shared_prefix=shared))
        (sample,) = TrainingSamples([same, other], config, seed=1).longest(1)
        assert [same, other][sample.image].id == longest


def test_one_draws_a_caption_of_every_image_per_epoch() -> None:
    samples = TrainingSamples(images(50), TrainConfig(batch_size=8, caption_targets="random", epochs=3), seed=1)
    drawn = [captions_of(samples, epoch) for epoch in range(3)]
    for captions in drawn:
        assert len({caption.split()[1] for caption in captions}) == 50
    assert len({tuple(sorted(captions)) for captions in drawn}) == 3
    draws = Counter(caption.split()[2] for captions in drawn for caption in captions)
    assert min(draws.values()) > 25  # of 150 draws of 3


def test_joined_is_one_target_an_image() -> None:
    samples = TrainingSamples(images(2), TrainConfig(batch_size=2, caption_targets="joined"), seed=1)
    assert "caption 0 0 caption 0 1 caption 0 2" in captions_of(samples, 0)


def test_counted_epochs_continue_where_the_last_stopped() -> None:
    config = TrainConfig(batch_size=4, captions_per_image=1, steps_per_epoch=2, epochs=9)
    samples = TrainingSamples(images(6, captions=1), config, seed=3)
    dealt = [s.image for step in range(samples.total_steps) for s in samples.batch(step)]
    assert len(dealt) == 72
    for start in range(0, 72, 6):
        assert sorted(dealt[start : start + 6]) == list(range(6))


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    config = TrainConfig(batch_size=4)
    one, other = TrainingSamples(images(9), config, seed=5), TrainingSamples(images(9), config, seed=5)
    backwards = [other.batch(step) for step in reversed(range(other.total_steps))]
    assert [one.batch(step) for step in range(one.total_steps)] == backwards[::-1]
    assert TrainingSamples(images(9), config, seed=6).batch(0) != one.batch(0)


def test_no_captions() -> None:
    with pytest.raises(DataError, match="no captions"):
        TrainingSamples(images(2, captions=0), TrainConfig(), seed=0)


@pytest.mark.parametrize("targets", ["separate", "random", "joined"])
def test_instructions_are_mixed_and_belong_to_a_sample_of_a_pass(
    targets: Literal["separate", "random", "joined"],
) -> None:
    mixed = ("Describe.", "Say.", "说吧。")
    config = TrainConfig(batch_size=4, captions_per_image=2, caption_targets=targets, instructions=mixed, epochs=3)

    def instructions(count: int) -> dict[tuple[int, int, tuple[str, ...]], str | None]:
        samples = TrainingSamples(images(count), config, seed=5)
        dealt = (
            (step // samples.steps_per_epoch, s) for step in range(samples.total_steps) for s in samples.batch(step)
        )
        return {(passed, sample.image, sample.captions): sample.instruction for passed, sample in dealt}

    few, many = instructions(30), instructions(60)
    # The instruction of a sample does not depend on the other data.
    assert few.items() <= many.items()
    counts = Counter(many.values())
    assert set(counts) == set(mixed)
    assert min(counts.values()) > len(many) / 5
    first, second = ({key[1:]: one for key, one in many.items() if key[0] == passed} for passed in (0, 1))
    assert first != second
    plain = TrainingSamples(images(3), TrainConfig(batch_size=4), seed=5)
    assert all(sample.instruction is None for sample in plain.batch(0))
