"""What counts as a caption that went wrong, and that people's captions do not."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune.metrics.diagnostics import STOP_MARKS, find_failures


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("a dog runs on the grass", []),
        ("", ["empty"]),
        (" \n.", ["empty"]),
        ("dog dog dog", []),
        ("a very very very big dog", []),
        ("dog dog dog dog", ["repetition"]),
        ("a dog and a dog", []),
        ("a dog a dog a dog", ["repetition"]),
        ("the man in the red shirt the man in the red shirt the man in the red shirt", ["repetition"]),
        ("a cat . a cat", []),
        (
            "the man is walking the man is standing the man is walking the man is standing the man is walking the man",
            ["repetition"],
        ),
        ("a dog ### Human: and", ["stop symbol"]),
        ("a dog</s>", ["stop symbol"]),
        ("[/INST] a dog", ["stop symbol"]),
        ("a sign that says human: stop # 2", []),
        ("<think>The user wants", ["thinking"]),
        ("<think>A dog?</think> A dog runs.", []),
        ("A dog? </think> A dog runs.", []),
        ("A dog runs. <think>Or a cat", []),
        ("<|channel|>analysis I see a dog", ["thinking"]),
        ("<|channel>thought I see a dog", ["thinking"]),
        ("◁think▷ I see a dog", ["thinking"]),
        ("[THINK]I see a dog", ["thinking"]),
        ("<seed:think>I see a dog", ["thinking"]),
        ("a man is thinking", []),
        ("Here is a caption: a dog", ["preface"]),
        ("Here's a short description of the image: a dog", ["preface"]),
        ("Sure! A dog runs.", ["preface"]),
        ("Caption: a dog", ["preface"]),
        ("好的，一只狗", ["preface"]),
        ("以下是图片的描述：一只狗", ["preface"]),
        ("The image shows a dog.", []),
        ("Here is a dog on the grass.", []),
        ("A sure-footed goat climbs.", []),
        ("**A dog** runs", ["markdown"]),
        ("**Caption:** a dog", ["preface", "markdown"]),
        ("# A dog", ["markdown"]),
        ("# 6 of the team runs", []),
        ("A scene:\n- a dog\n- a cat", ["markdown"]),
        ("1. a dog", ["markdown"]),
        ("```\na dog\n```", ["markdown"]),
        ('"A dog runs."', ["markdown"]),
        ("“A dog runs.”", ["markdown"]),
        ('a sign reads "stop"', []),
        ("a man - a tall one - runs", []),
        ("'Stop' is on the dog's sign", []),
    ],
)
def test_by_example(caption: str, kinds: list[str]) -> None:
    assert find_failures([caption]).of(0) == kinds


def test_run_on_needs_both_limits() -> None:
    references = [["a dog runs on the grass", "dog"]]
    words = [f"w{number}" for number in range(30)]
    for count, flagged in ((12, False), (19, False), (20, True)):
        failures = find_failures([" ".join(words[:count])], references)
        assert failures.flags["run-on"].tolist() == [flagged]
    long_references = [[" ".join(words[:15])]]
    assert not find_failures([" ".join(words)], long_references).flags["run-on"][0]


def test_unfinished_needs_finished_flags() -> None:
    assert "unfinished" not in find_failures(["a"]).flags
    assert find_failures(["a", "b"], finished=[True, False]).flags["unfinished"].tolist() == [False, True]


def test_thinking_text_that_was_removed_is_flagged_as_recorded() -> None:
    assert find_failures(["", "a dog"], unclosed=[True, False]).of(0) == ["empty", "thinking"]
    assert find_failures(["", "a dog"]).of(0) == ["empty"]


def test_rates() -> None:
    quiet = {"thinking": 0.0, "preface": 0.0, "markdown": 0.0}
    rates = find_failures(["", "a dog</s>", "a dog", ""]).rates
    assert rates == {"empty": 0.5, "repetition": 0.0, "stop symbol": 0.25, **quiet, "any": 0.75}
    assert find_failures([]).rates["any"] == 0.0


@pytest.mark.parametrize("mark", STOP_MARKS)
def test_every_mark_is_found(mark: str) -> None:
    assert find_failures([f"a dog {mark}"]).of(0) == ["stop symbol"]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=14).map(" ".join), min_size=1, max_size=5))
def test_a_caption_is_judged_independently_of_others(captions: list[str]) -> None:
    in_one_call = find_failures(captions, tokenize="13a").flags["repetition"].tolist()
    assert in_one_call == [bool(find_failures([one], tokenize="13a").flags["repetition"][0]) for one in captions]


@given(st.lists(st.sampled_from("ab"), max_size=14))
def test_loops_equal_their_definition(words: list[str]) -> None:
    def loops() -> bool:
        for period in range(1, 11):
            times = 4 if period == 1 else 3
            for start in range(len(words) - times * period + 1):
                block = words[start : start + period]
                if words[start : start + times * period] == block * times:
                    return True
        return False

    assert bool(find_failures([" ".join(words)], tokenize="13a").flags["repetition"][0]) == loops()


def test_time_is_linear() -> None:
    started = time.process_time()
    failures = find_failures(["word " * 200_000, " ".join(map(str, range(200_000))), "<" * 300_000])
    assert failures.flags["repetition"].tolist() == [True, False, True]
    assert time.process_time() - started < 20


def test_people_are_not_flagged(shared: Path) -> None:
    with (shared / "captions" / "flickr30k" / "flickr_annotations_30k.csv").open(encoding="utf-8") as file:
        captions = [caption for row in csv.DictReader(file) for caption in json.loads(row["raw"])]
    assert len(captions) == 155_070
    failures = find_failures(captions, tokenize="none")
    flagged = [captions[index] for index in failures.flags["repetition"].nonzero()[0]]
    assert len(flagged) < 10
    assert all("missing" in caption.lower() or "picture" in caption for caption in flagged)
    for name in ("empty", "stop symbol", "thinking", "preface", "markdown"):
        assert not failures.flags[name].any()
