"""Comparison at equal length: a win by length alone disappears, a win by content stays; oracles in numpy and scipy."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

import captune
from captune import cli
from captune.errors import MetricInputError
from captune.metrics import (
    Scorer,
    Scores,
    ScoringOptions,
    Signature,
    compare_at_equal_length,
    length_matching,
    length_ratio,
)
from captune.metrics.length_matching import cut_to_equal_length

WORDS = [f"word{number}" for number in range(300)]
IMAGES = 240
SIGNATURE = Signature(n=20, refs="1", tok="ptb")


def sentences(source: random.Random, count: int) -> list[str]:
    return [" ".join(source.choices(WORDS, k=8)).capitalize() + "." for _ in range(count)]


def noisy(source: random.Random, text: list[str], share: float) -> str:
    """The sentences with a share of their words replaced."""

    def replaced(word: str) -> str:
        other = source.choice(WORDS)
        return (other.capitalize() if word[0].isupper() else other) + ("." if word.endswith(".") else "")

    return " ".join(word if source.random() > share else replaced(word) for word in " ".join(text).split())


@pytest.fixture(scope="module")
def systems() -> dict[str, dict[str, str]]:
    """References of six sentences. `short` writes three of them; `long` is as good, and writes more for two images of
    three; `better` is as long as `short` with fewer errors."""
    source = random.Random(7)
    references, short, long, better = {}, {}, {}, {}
    for number in range(IMAGES):
        image, text = str(number), sentences(source, 6)
        references[image] = " ".join(text)
        short[image] = noisy(source, text[:3], 0.4)
        long[image] = noisy(source, text[: 3 if number % 3 == 0 else 6], 0.4)
        better[image] = noisy(source, text[:3], 0.2)
    return {"references": references, "short": short, "long": long, "better": better}


METRICS = ("rouge-l", "bleu", "cider")


@pytest.fixture(scope="module")
def scored(systems: dict[str, dict[str, str]]) -> tuple[Scorer, dict[str, Scores]]:
    references = {image: [text] for image, text in systems["references"].items()}
    scorer = Scorer(references, ScoringOptions(metrics=METRICS))
    return scorer, {name: scorer.score(systems[name]) for name in ("short", "long", "better")}


@pytest.mark.parametrize("method", ["pairs", "truncate"])
@pytest.mark.parametrize("column", ["ROUGE-L", "BLEU-4"])
def test_a_win_by_length_alone_disappears(
    systems: dict[str, dict[str, str]], scored: tuple[Scorer, dict[str, Scores]], method: str, column: str
) -> None:
    scorer, scores = scored
    plain = captune.metrics.paired_bootstrap(scores["long"], scores["short"])[column]
    assert plain.low > 0.03  # it seems to win
    result = compare_at_equal_length(
        scores["long"],
        scores["short"],
        (systems["long"], systems["short"]),
        method,  # type: ignore[arg-type]
        score=scorer.score,
    )
    drawn, swapped = result.tests[column]
    assert drawn.low < 0 < drawn.high
    assert min(drawn.p_value, swapped.p_value) > 0.05
    assert (result.images, result.total) == ((80 if method == "pairs" else IMAGES), IMAGES)
    assert result.ratio == pytest.approx(2 ** (2 / 3))
    assert result.matched_ratio == pytest.approx(1)


@pytest.mark.parametrize("method", ["pairs", "truncate"])
def test_a_win_by_content_stays(
    systems: dict[str, dict[str, str]], scored: tuple[Scorer, dict[str, Scores]], method: str
) -> None:
    scorer, scores = scored
    captions = systems["better"], systems["long"]
    result = compare_at_equal_length(scores["better"], scores["long"], captions, method, score=scorer.score)  # type: ignore[arg-type]
    drawn, swapped = result.tests["ROUGE-L"]
    assert drawn.low > 0
    assert max(drawn.p_value, swapped.p_value) < 0.05


def test_matched_pairs_equal_numpy_and_scipy(
    systems: dict[str, dict[str, str]], scored: tuple[Scorer, dict[str, Scores]]
) -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    _, scores = scored
    ours, others = systems["better"], systems["long"]
    result = compare_at_equal_length(scores["better"], scores["long"], (ours, others), resamples=4000)
    near = [i for i in ours if max(len(ours[i].split()), len(others[i].split())) <= 1.1 * len(ours[i].split())]
    assert result.images == len(near) == 80
    differences = np.array(
        [scores["better"].per_image[i]["ROUGE-L"] - scores["long"].per_image[i]["ROUGE-L"] for i in near]
    )
    drawn = result.tests["ROUGE-L"][0]
    assert drawn.difference == pytest.approx(differences.mean(), abs=1e-12)
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = expected.high - expected.low
    assert drawn.low == pytest.approx(expected.low, abs=0.08 * width)
    assert drawn.high == pytest.approx(expected.high, abs=0.08 * width)
    # A smaller difference, so that p is not at its limit.
    small = compare_at_equal_length(scores["long"], scores["short"], (systems["long"], systems["short"]))
    differences = np.array(
        [scores["long"].per_image[i]["ROUGE-L"] - scores["short"].per_image[i]["ROUGE-L"] for i in near]
    )
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=10_000, rng=np.random.default_rng(0)
    )
    assert small.tests["ROUGE-L"][1].p_value == pytest.approx(test.pvalue, abs=0.02)
    # BLEU is of summed statistics, and CIDEr keeps the document frequencies of all images.
    only = Scorer({i: [systems["references"][i]] for i in near}, ScoringOptions(metrics=("bleu",)))
    subset = only.score({i: ours[i] for i in near})
    assert result.tests["BLEU-4"][0].score == pytest.approx(subset.corpus["BLEU-4"], abs=1e-12)
    cider = np.mean([scores["better"].per_image[i]["CIDEr"] for i in near])
    assert result.tests["CIDEr"][0].score == pytest.approx(cider, abs=1e-12)


def test_truncation_cuts_the_longer_caption_at_a_sentence() -> None:
    ours = {"a": "One two three. Four five six. Seven.", "b": "One.", "c": "", "d": "One two three four"}
    others = {"a": "One two three four.", "b": "One two. Three four.", "c": "One two. Three.", "d": "One"}
    assert cut_to_equal_length(ours, others) == (
        {"a": "One two three.", "b": "One.", "c": "", "d": "One two three four"},
        {"a": "One two three four.", "b": "One two.", "c": "One two.", "d": "One"},
    )


def test_the_ratio_of_lengths() -> None:
    ours = {"a": "one two three four", "b": "one", "c": ""}
    others = {"a": "one two", "b": "one two", "c": "one"}
    assert length_ratio(ours, others) == pytest.approx(1)
    assert math.isnan(length_ratio({"a": ""}, {"a": "b"}))


def test_no_pair_and_wrong_arguments(scored: tuple[Scorer, dict[str, Scores]]) -> None:
    scorer, scores = scored
    one = {str(i): "One two three four." for i in range(IMAGES)}
    long = dict.fromkeys(one, "One two three four. Five six.")
    result = compare_at_equal_length(scores["long"], scores["short"], (long, one))
    assert (result.images, dict(result.tests)) == (0, {})
    with pytest.raises(MetricInputError, match="length tolerance of 2"):
        compare_at_equal_length(scores["long"], scores["short"], (long, one), tolerance=2)
    with pytest.raises(MetricInputError, match="give the scorer"):
        compare_at_equal_length(scores["long"], scores["short"], (long, one), "truncate")
    assert scorer.options.metrics == METRICS


@pytest.fixture
def files(systems: dict[str, dict[str, str]], tmp_path: Path) -> Path:
    for name, captions in systems.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(captions))
    return tmp_path


def compare(folder: Path, names: list[str], *more: object) -> int:
    predictions = [part for name in names for part in ("-p", folder / f"{name}.json")]
    arguments = ["compare", "-r", folder / "references.json", *predictions, "--resamples", 200, "--trials", 500, *more]
    return cli.run(lambda: cli.call(cli.app, [str(argument) for argument in arguments]))


@pytest.mark.parametrize("method", ["pairs", "truncate"])
def test_the_command(
    files: Path,
    systems: dict[str, dict[str, str]],
    scored: tuple[Scorer, dict[str, Scores]],
    method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["short", "long", "better"]
    assert compare(files, names, "--match-length", method, "--json", "--metrics", "rouge-l,bleu,cider") == 0
    answer = json.loads(capsys.readouterr().out)
    scorer, scores = scored
    for record, name in zip(answer["equal_length"], names[1:], strict=True):
        expected = compare_at_equal_length(
            scores[name],
            scores["short"],
            (systems[name], systems["short"]),
            method,  # type: ignore[arg-type]
            score=scorer.score,
            resamples=200,
            trials=500,
        )
        assert (record["system"], record["baseline"], record["method"]) == (name, "short", method)
        assert (record["images"], record["length_ratio"]) == (expected.images, expected.ratio)
        for column, (drawn, swapped) in expected.tests.items():
            numbers = record["differences"][column]
            assert numbers["difference"] == drawn.difference
            assert (numbers["low"], numbers["high"]) == (drawn.low, drawn.high)
            assert (numbers["p_bootstrap"], numbers["p_randomization"]) == (drawn.p_value, swapped.p_value)
    assert compare(files, names, "--match-length", method, "--all-pairs", "--columns", "ROUGE-L") == 0
    table = capsys.readouterr().out
    assert "better - long, equal length" in table
    assert "Captions of long are 1.59 times as long as those of short; equal length: " in table
    assert "80 of 240 images have captions that differ by at most 10 % in words" in table or method == "truncate"


def test_too_few_pairs_are_a_note(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = json.loads((files / "short.json").read_text())
    (files / "tiny.json").write_text(json.dumps({image: text.split()[0] for image, text in captions.items()}))
    assert compare(files, ["short", "tiny"], "--match-length", "pairs") == 0
    out = capsys.readouterr().out
    assert (
        "0 of 240 images have captions that differ by at most 10 % in words, fewer than the 20 that intervals and "
        "tests need; --match-length truncate compares all images."
    ) in out
    assert compare(files, ["short", "tiny"], "--match-length", "pairs", "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)["equal_length"]
    assert (record["images"], record["differences"], record["matched_length_ratio"]) == (0, {}, None)
    assert compare(files, ["short", "tiny", "tiny"], "--match-length", "pairs", "--pool-seeds") == 2
    assert "leave out --pool-seeds" in capsys.readouterr().err


def test_few_pairs_have_differences_only(
    files: Path, systems: dict[str, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {image: text if int(image) < 19 else text.split()[0] for image, text in systems["better"].items()}
    (files / "few.json").write_text(json.dumps(few))
    options = ["--match-length", "pairs", "--metrics", "rouge-l"]
    assert compare(files, ["short", "few"], *options) == 0
    out = capsys.readouterr().out
    table, note = out[out.index("few - short, equal length") :].split("\n\n")[:2]
    row = next(line for line in table.splitlines() if line.startswith("ROUGE-L"))
    assert row.split()[2:] == ["–"] * 4
    assert float(row.split()[1]) > 0.05
    assert "19 of 240 images have captions that differ by at most 10 % in words, fewer than the 20 that" in note
    assert compare(files, ["short", "few"], *options, "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)["equal_length"]
    numbers = record["differences"]["ROUGE-L"]
    assert numbers.pop("difference") > 0.05
    assert set(numbers.values()) == {None}
    references = {image: [text] for image, text in systems["references"].items()}
    both = {"short": systems["short"], "few": few}
    shown = repr(captune.compare(both, references, ["rouge-l"], match_length="pairs", resamples=9, trials=9))
    assert "times as long before; tests need 20 images)" in shown


def test_the_distribution_of_t_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    for degrees in (1, 2, 3, 4, 19, 20, 47, 1999):
        for value in (-30.0, -2.0, 0.0, 0.3, 4.0):
            expected = stats.t.cdf(value, degrees)
            assert length_matching._t_probability(value, degrees) == pytest.approx(expected, abs=1e-12)
        assert length_matching._t_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-8)
    tail = length_matching._normal_tail(0.025, 20)
    assert length_matching._t_p_value(2 * tail, 20) == pytest.approx(0.05)


def test_the_interval_of_equal_systems_holds_zero_as_often_as_it_should() -> None:
    """Two systems that differ by noise, on 20 images: a percentile bootstrap holds 0 in 92 % of the cases only."""
    random = np.random.default_rng(3)
    ids = tuple(map(str, range(20)))
    captions = dict.fromkeys(ids, "a dog")
    inside = rejected = 0
    cases = 400
    for case in range(cases):
        one, other = (Scores(ids, {"rouge-l": random.random((20, 1))}, SIGNATURE) for _ in range(2))
        result = compare_at_equal_length(one, other, (captions, captions), resamples=1000, trials=2, seed=case)
        drawn, _ = result.tests["ROUGE-L"]
        inside += drawn.low <= 0 <= drawn.high
        rejected += drawn.p_value < 0.05
    assert 0.93 <= inside / cases <= 0.97
    assert 0.03 <= rejected / cases <= 0.07


@pytest.mark.parametrize("method", ["pairs", "truncate"])
def test_a_system_without_words_has_no_ratio(files: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    captions = json.loads((files / "short.json").read_text())
    (files / "empty.json").write_text(json.dumps(dict.fromkeys(captions, "")))
    assert compare(files, ["short", "empty"], "--match-length", method) == 0
    out = capsys.readouterr().out
    assert "No image has words in the captions of both empty and short; they have no equal length." in out
    assert "nan" not in out


def test_in_python(systems: dict[str, dict[str, str]]) -> None:
    references = {image: [text] for image, text in systems["references"].items()}
    compared = captune.compare(
        {name: systems[name] for name in ("short", "long")},
        references,
        ["rouge-l"],
        match_length="pairs",
        resamples=100,
        trials=100,
    )
    assert compared.equal_length["long"].images == 80
    assert "long, equal length: ROUGE-L " in repr(compared)
    quick = {"resamples": 2, "trials": 2}
    assert captune.compare({"a": systems["short"], "b": systems["long"]}, references, **quick).equal_length == {}
